"""Training batches: tubes of T frames, drawn as a pure function of (seed, iteration), from one data set or several.

Because nothing else decides what is drawn and how it is augmented, a stopped run continues with the very
batch that the uninterrupted run would have seen, with any number of loader processes.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vda.data.clip import Clip, FlowField, FlowSource, LabelMap, VideoDataset
from vda.data.transforms import Augment, Sample, augment
from vda.distributed import share
from vda.errors import UsageError
from vda.flow.providers import both_ways

LabelSource = Callable[[Clip, int], LabelMap | None]


def true_labels(clip: Clip, i: int) -> LabelMap | None:
    """The data set's own labels."""
    return clip.label(i)


def known_flow(clip: Clip, i: int, j: int) -> FlowField:
    """The data set's own flow, NaN where it has none."""
    flow = clip.exact_flow(i, j)
    return np.full((2, *clip.frame(i).shape[:2]), np.nan, np.float32) if flow is None else flow


@dataclass(frozen=True)
class Batch:
    """B tubes of T frames; index T grows with time.

    frames [B, T, 3, H, W] RGB, uint8 from the loader, float32 in [0, 1] after `to`. labels [B, T, H, W] uint8, 255 is
    ignored; None where unlabelled. flows [B, T - 1, 2, 2, H, W] float32, pixels: flows[:, t, 0] = F_{t -> t+1},
    flows[:, t, 1] = F_{t+1 -> t}; None where not asked for. names: CLIP/FRAME of every frame. part [B] int64: which of
    the parts of `Mixed` a tube is from, 0 without parts; on the CPU.
    """

    frames: Tensor
    labels: Tensor | None
    flows: Tensor | None
    names: list[list[str]]
    part: Tensor

    def pin_memory(self) -> Batch:
        """Called by the loader; lets the copy to a GPU run beside the computation."""

        def pin(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.pin_memory()

        return replace(self, frames=self.frames.pin_memory(), labels=pin(self.labels), flows=pin(self.flows))

    def to(self, device: torch.device) -> Batch:
        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        frames = self.frames.to(device, non_blocking=True)
        return replace(
            self,
            frames=frames.float() / 255 if frames.dtype == torch.uint8 else frames,
            labels=move(self.labels),
            flows=move(self.flows),
        )


@dataclass(frozen=True)
class Draw:
    """One sample of the stream: `index` says which tube, (`epoch`, `index`) how it is augmented."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Drawn:
    """One tube on its way into a batch; fields as of `Batch`."""

    sample: Sample
    names: list[str]
    part: int = 0


class Samples(Dataset["Drawn | UsageError"]):
    """What batches are drawn from. An item is a tube, or what is wrong with its files: an exception that is raised in a
    loader process loses its sentence."""

    seed: int

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, draw: Draw) -> Drawn | UsageError:
        raise NotImplementedError


class Tubes(Samples):
    """Every tube of `length` frames, `step` apart, that lies inside one clip."""

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        length: int,
        step: int,
        augment: Augment,
        seed: int,
        labels: LabelSource | None,
        flow: FlowSource | None = None,
        focus: Sequence[int] = (),
    ) -> None:
        """labels, flow: where they come from; None leaves them out. focus: classes for `Augment.focus`.

        Raises UsageError where no clip is long enough."""
        self.dataset, self.augment, self.seed = dataset, augment, seed
        self.labels, self.flow, self.focus = labels, flow, tuple(focus)
        span = (length - 1) * step
        self.tubes = [
            (clip, tuple(range(start, start + span + 1, step)))
            for clip in dataset.clips
            for start in range(len(clip) - span)
        ]
        if not self.tubes:
            longest = max((len(clip) for clip in dataset.clips), default=0)
            raise UsageError(
                f"data set {dataset.name}: tubes of {length} frames, {step} apart, want clips of at least "
                f"{span + 1} frames, the longest of {len(dataset.clips)} clips has {longest}"
            )

    def __len__(self) -> int:
        return len(self.tubes)

    def chosen(self, indices: Iterable[int]) -> Tubes:
        """The same with some of the tubes alone."""
        fewer = copy.copy(self)
        fewer.tubes = [self.tubes[i] for i in indices]
        if not fewer.tubes:
            raise UsageError(f"data set {self.dataset.name}: wanted at least one of its {len(self)} tubes, chose none")
        return fewer

    def part(self, share: float, number: int) -> Tubes:
        """A random `share` of the tubes, at least one; another draw for each `number`."""
        order = np.random.default_rng([self.seed, number, len(self)]).permutation(len(self))
        return self.chosen(np.sort(order[: max(1, int(share * len(self)))]))

    def __getitem__(self, draw: Draw) -> Drawn | UsageError:
        try:
            return self._sample(draw)
        except UsageError as error:
            return error

    def _sample(self, draw: Draw) -> Drawn:
        clip, indices = self.tubes[draw.index]
        rng = np.random.default_rng([self.seed, draw.epoch, draw.index])
        sample = Sample(
            frames=np.stack([clip.frame(i) for i in indices]),
            labels=None if self.labels is None else np.stack([self._label(clip, i) for i in indices]),
            flows=None if self.flow is None else self._flows(clip, indices),
        )
        names = [f"{clip.name}/{clip.frame_names[i]}" for i in indices]
        return Drawn(augment(sample, self.augment, rng, self.focus), names)

    def _label(self, clip: Clip, i: int) -> LabelMap:
        assert self.labels is not None
        label = self.labels(clip, i)
        if label is None:
            raise UsageError(f"data set {self.dataset.name}: frame {clip.name}/{clip.frame_names[i]} has no label")
        return label

    def _flows(self, clip: Clip, indices: Sequence[int]) -> NDArray[np.float32]:
        assert self.flow is not None
        return np.stack([np.stack(both_ways(self.flow, clip, i, j)) for i, j in pairwise(indices)])


class Mixed(Samples):
    """Several sets of tubes as one; every tube of every part is drawn equally often."""

    def __init__(self, parts: Sequence[Tubes]) -> None:
        self.parts, self.seed = parts, parts[0].seed
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, draw: Draw) -> Drawn | UsageError:
        number = int(np.searchsorted(self._ends, draw.index, side="right"))
        part = self.parts[number]
        item = part[Draw(draw.epoch, draw.index - int(self._ends[number]) + len(part))]
        return item if isinstance(item, UsageError) else replace(item, part=number)


def draws(size: int, batch: int, seed: int, start: int, stop: int) -> Iterator[list[Draw]]:
    """Batches `start` .. `stop` - 1 of the endless stream of shuffled epochs over `size` tubes."""

    @lru_cache(maxsize=2)
    def order(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, epoch]).permutation(size)

    for iteration in range(start, stop):
        places = (divmod(iteration * batch + b, size) for b in range(batch))
        yield [Draw(epoch, int(order(epoch)[place])) for epoch, place in places]


def loader(tubes: Samples, *, batch: int, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
    """Batches `start` .. `stop` - 1 of a training run, frames still uint8 until `Batch.to`.

    batch: tubes of all processes together; each gets its share.
    """
    batches = [list(share(whole)) for whole in draws(len(tubes), batch, tubes.seed, start, stop)]
    loaded = DataLoader(
        tubes,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_leave_stops_to_the_parent,
        pin_memory=torch.cuda.is_available(),
    )
    for item in loaded:
        if isinstance(item, UsageError):
            raise item
        yield item


def _leave_stops_to_the_parent(worker: int) -> None:
    # a terminal, torchrun and batch systems send them to all processes, but the step that is under way wants its batch
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)


def collate(items: list[Drawn | UsageError]) -> Batch | UsageError:
    """Samples of one size into a batch, or the first error among them."""
    for item in items:
        if isinstance(item, UsageError):
            return item
    return _batch([item for item in items if not isinstance(item, UsageError)])


def _batch(items: list[Drawn]) -> Batch:
    def stack(field: str) -> Tensor | None:
        arrays = [getattr(item.sample, field) for item in items]
        return None if any(array is None for array in arrays) else torch.from_numpy(np.stack(arrays))

    frames = stack("frames")
    assert frames is not None
    return Batch(
        frames=frames.permute(0, 1, 4, 2, 3).contiguous(),
        labels=stack("labels"),
        flows=stack("flows"),
        names=[item.names for item in items],
        part=torch.tensor([item.part for item in items]),
    )
