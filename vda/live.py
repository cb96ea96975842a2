"""What can be watched while a round trains: log.jsonl, a line a step; panels, a picture now and then; TensorBoard.

The files lie in the round's folder. log.jsonl has "phase", "iteration", the value of each loss, "lr" (of the backbone;
heads have ten times as much), "data_seconds" (waiting for the batch) and "seconds" (the step itself). A round that goes
on from a checkpoint drops what was logged beyond it, so that every step stands there once.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vda.checkpoint import atomic_write
from vda.data.clip import Image, LabelMap
from vda.data.transforms import resize_image, resize_label
from vda.data.tubes import Batch, Mixed
from vda.distributed import is_first
from vda.errors import UsageError
from vda.files import naming
from vda.methods.base import Round, full_logits
from vda.models.network import SegmentationNetwork
from vda.pictures import colour_label

if TYPE_CHECKING:
    from vda.config import Config

LOG, PANELS = "log.jsonl", "panels"
PICTURE_WIDTH = 480  # of one of the three in a row, at most
CAPTION_HEIGHT = 18


def check_tensorboard() -> None:
    """Raises UsageError where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError('tensorboard: wanted the package, found none: pip install -e ".[tensorboard]"')


class Live:
    """The log, panels and TensorBoard of one round, of the first process; a context, in which they are open."""

    def __init__(self, training: Round, phase: str, config: Config, palette: NDArray[np.uint8], start: int) -> None:
        """phase: the round's name in the log. palette: [K, 3] RGB. start: the iteration that the round goes on with."""
        self.training, self.phase, self.palette = training, phase, palette
        self.panel_every = config.panel_every if is_first() else 0
        folder = training.folder
        self._log = _open_log(folder / LOG, start) if is_first() else None
        self._board: Any = None
        if config.tensorboard and is_first():
            from torch.utils.tensorboard import SummaryWriter  # an optional extra

            # tells TensorBoard to forget the steps of a stopped run from `start` on
            self._board = SummaryWriter(folder, purge_step=start)
        self._data_seconds = self._began = 0.0

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            with naming(self.training.folder / LOG):
                self._log.close()
        if self._board is not None:
            self._board.close()

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same; how long each was waited for goes into the log."""
        asked = time.perf_counter()
        for batch in batches:
            self._began = time.perf_counter()
            self._data_seconds = self._began - asked
            yield batch
            asked = time.perf_counter()

    def step(self, iteration: int, losses: Mapping[str, float], source: Any, target: Any) -> None:
        """Logs a step that has just been taken on these batches, and draws a panel where it is time for one."""
        optimiser = self.training.optimiser
        values = {
            "lr": optimiser.lr * optimiser.factor(iteration),
            "data_seconds": round(self._data_seconds, 4),
            "seconds": round(time.perf_counter() - self._began, 4),
        }
        if self._log is not None:
            with naming(self.training.folder / LOG):
                self._log.write(json.dumps({"phase": self.phase, "iteration": iteration, **losses, **values}) + "\n")
        if self._board is not None:
            for name, value in ({f"loss/{loss}": value for loss, value in losses.items()} | values).items():
                self._board.add_scalar(name, value, iteration)
        done, network = iteration + 1, self.training.method.network
        due = self.panel_every and (done % self.panel_every == 0 or done == optimiser.iterations)
        if due and isinstance(network, SegmentationNetwork):
            picture = panel(network, panel_rows(self.training, source, target), self.palette)
            folder = self.training.folder / PANELS
            folder.mkdir(exist_ok=True)
            atomic_write(folder / f"step-{done:06d}.jpg", _jpeg(picture))
            if self._board is not None:
                self._board.add_image("panel", picture, iteration, dataformats="HWC")


def _open_log(path: Path, start: int) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    trim_log(path, start)
    return path.open("a", buffering=1)


def trim_log(path: Path, start: int) -> None:
    """Drops what the log has beyond the checkpoint that a round goes on from, and a line torn by a power cut."""
    kept = [entry for entry in read_log(path) if entry["iteration"] < start]
    atomic_write(path, "".join(f"{json.dumps(entry)}\n" for entry in kept).encode())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log, none where there is no file; a line that is torn is left out."""
    entries = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("iteration"), int):
                entries.append(entry)
    return entries


# --- panels


class Row(NamedTuple):
    """What a row of a panel shows: the first frame of one tube of a batch. label: what its label is called."""

    domain: str
    label: str
    batch: Batch
    tube: int = 0


def panel_rows(training: Round, source: Batch | None, target: Batch | None) -> list[Row]:
    """One row for each domain that a step has seen."""
    # what the oracle takes for its source are frames of the target with their labels
    rows = [] if source is None else [Row("target" if training.method.ceiling else "source", "label", source)]
    if target is not None:
        tube = int(target.part.argmax())  # where the source is mixed in, it is the first part
        mixed_in = isinstance(training.target, Mixed) and not target.part[tube]
        rows.append(Row("source", "label", target) if mixed_in else Row("target", "pseudo label", target, tube))
    return rows


def panel(network: nn.Module, rows: Sequence[Row], palette: NDArray[np.uint8]) -> Image:
    """The rows one below another, [H, W, 3]: a frame as the network gets it, what the network, in evaluation
    mode, makes of it now, and its label if it has one. palette: [K, 3] RGB."""
    drawn = []
    for domain, name, batch, tube in rows:
        image = batch.frames[tube, :1]
        frame = np.rint(255 * image[0].clamp(0, 1).permute(1, 2, 0).cpu().numpy()).astype(np.uint8)
        pictures = [_captioned(f"{domain}: {batch.names[tube][0]}", resize_image(frame, _fitting(frame)))]
        labels = {"prediction": _predict(network, image)}  # before the label, which a row may not have
        if batch.labels is not None:
            labels[name] = batch.labels[tube, 0].cpu().numpy()
        for caption, label in labels.items():
            pictures.append(_captioned(caption, colour_label(resize_label(label, _fitting(label)), palette)))
        drawn.append(np.hstack(pictures))
    width = max(row.shape[1] for row in drawn)
    return np.vstack([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in drawn])


@torch.no_grad()
def _predict(network: nn.Module, image: Tensor) -> LabelMap:
    """[H, W] classes of [1, 3, H, W]; leaves the network as it was."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    prediction = full_logits(network, image).argmax(1)[0].to("cpu", torch.uint8).numpy()
    for module, training in modes.items():
        module.training = training
    return prediction


def _fitting(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """Height and width at which a picture is shown."""
    height, width = picture.shape[:2]
    scale = min(1.0, PICTURE_WIDTH / width)
    return max(1, round(scale * height)), max(1, round(scale * width))


def _captioned(caption: str, picture: Image) -> Image:
    strip = np.zeros((CAPTION_HEIGHT, picture.shape[1], 3), np.uint8)
    cv2.putText(strip, caption, (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([strip, picture])


def _jpeg(picture: Image) -> bytes:
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 92])
    return data.tobytes()
