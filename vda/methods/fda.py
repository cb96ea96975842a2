"""FDA: Fourier domain adaptation (Yang and Soatto, CVPR 2020, arXiv 2004.05498).

The source takes on the low frequencies of the amplitude spectrum of a random target frame, in a window of beta; three
networks with beta = 0.01, 0.05, 0.09 are trained, and the mean of their predictions (multi-band transfer) labels the
target for three more.

    round 1: L = CE(FDA(x_s), y_s) + 0.005 robust entropy(P_t)
    later:   L = CE(FDA(x_s), y_s) + CE(P_t, y^_t) + 0.005 robust entropy(P_t)

A pixel is labelled in the surest 34 % of its class, or from a confidence of 0.9 on: the published code; the paper's
text says 66 %. The result is the last network, since every method here ends in one. The published window is a pixel off
centre and leaves an imaginary part; here it is symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from vda.data.tubes import Batch, true_labels
from vda.fused import cross_entropy
from vda.losses import robust_entropy
from vda.methods.base import Losses, Method, Round, Settings, frame_labels, frames, supervised
from vda.models import untracked
from vda.ops import segmentation_sums
from vda.options import Pseudo, wanted
from vda.spectral import transfer_spectrum

if TYPE_CHECKING:
    from vda.run import Run


@dataclass(frozen=True)
class FDASettings(Settings):
    """Fourier transfer of the source, and self-training on the mean of several bands."""

    betas: tuple[float, ...] = (0.01, 0.05, 0.09)
    """Half-widths of the transferred window, as parts of the shorter side; one network each."""
    rounds: int = 2
    """Rounds over all bands; from the second on with pseudo labels of the mean of the last ones."""
    lambda_ent: float = 0.005
    """Weight of the target's robust entropy."""
    eta: float = 2.0
    """Exponent of the robust entropy."""
    pseudo: Pseudo = field(default_factory=lambda: Pseudo(policy="top_portion", alpha=0.34))

    def __post_init__(self) -> None:
        wanted(bool(self.betas) and all(0 <= b < 0.5 for b in self.betas), "fda.betas", "0 to 0.5 each", self.betas)
        wanted(self.rounds >= 1, "fda.rounds", "at least 1", self.rounds)


class FDA(Method):
    """Cross entropy on source frames in the target's colours, and pseudo labels where there are any."""

    title = "FDA"
    settings_type = FDASettings

    def __init__(self, network: nn.Module, settings: FDASettings, beta: float) -> None:
        super().__init__(network)
        self.settings, self.beta = settings, beta

    def losses(self, source: Batch, target: Batch) -> Iterator[Losses]:
        images = transfer_spectrum(frames(source), frames(target), self.beta)
        with untracked(self.network):
            yield {"seg": supervised(self.network, images, frame_labels(source))}
        logits = self.network(frames(target))
        losses = {"ent": self.settings.lambda_ent * robust_entropy(logits, self.settings.eta)}
        if target.labels is not None:
            losses["pseudo"] = cross_entropy(segmentation_sums(logits, frame_labels(target)))
        yield losses

    @classmethod
    def rounds(cls, run: Run, settings: Any, folder: Path) -> Iterator[Round]:
        labels = None
        for r in range(settings.rounds):
            source = run.tubes(run.source, true_labels, number=r)
            target = run.tubes(run.target, labels, stream=1, number=r)
            bands = {beta: folder / f"round-{r + 1}" / f"beta-{beta:g}" for beta in settings.betas}
            for beta, here in bands.items():
                yield Round(here, cls(run.network(settings.start), settings, beta), settings.optimiser, source, target)
            if r + 1 < settings.rounds:
                labels = run.pseudo_labels(folder / f"round-{r + 2}", list(bands.values()), settings.pseudo)

    @classmethod
    def check(cls, run: Run, settings: Any) -> None:
        if settings.pseudo.aggregate and settings.rounds > 1:
            run.check_flow({1})
