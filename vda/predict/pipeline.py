"""Frames through a network, with reading before it and writing behind it in threads of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vda.data.clip import Image, LabelMap
from vda.data.transforms import resize_image
from vda.errors import UsageError
from vda.models import upsample

T = TypeVar("T")
_AHEAD = 4  # items; a frame of 4K is 25 MB


class Segmented(NamedTuple):
    """One frame. label [H, W] class indices; confidence [H, W], 255 times the probability of that class, or None."""

    name: str
    frame: Image
    label: LabelMap
    confidence: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Segmenter:
    """A network on frames of any size. size: (height, width) at which it sees them. confidence: whether to give it."""

    network: nn.Module
    size: tuple[int, int]
    device: torch.device
    confidence: bool = False

    def __call__(self, frames: Iterable[tuple[str, Image]]) -> Iterator[Segmented]:
        """Frames in turn. Logits are upsampled to the frame's size before the argmax.

        Raises UsageError, naming the frame, where the network does not give finite numbers.
        """
        self.network.eval()
        for name, frame in frames:
            label, confidence = self._segment(frame, name)
            yield Segmented(name, frame, label, confidence)

    @torch.inference_mode()
    def _segment(self, frame: Image, name: str) -> tuple[LabelMap, NDArray[np.uint8] | None]:
        small = torch.from_numpy(resize_image(frame, self.size)).to(self.device)
        logits = self.network(small.permute(2, 0, 1)[None].float() / 255)
        if not bool(torch.isfinite(logits).all()):
            raise UsageError(f"frame {name}: wanted finite logits, the checkpoint's network gives others")
        full = upsample(logits, frame.shape[:2])[0]
        label = full.argmax(0)
        if not self.confidence:
            return _bytes(label), None
        return _bytes(label), _bytes(full.softmax(0).amax(0).mul(255).round())


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    return values.to("cpu", torch.uint8).numpy()


def ahead(items: Iterable[T], depth: int = _AHEAD) -> Iterator[T]:
    """The items in order, made by a thread that is at most `depth` of them ahead.

    What making them raises is raised here, in its turn. The thread ends with this iterator, however that ends.
    """
    done = object()
    made: queue.Queue[object] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                made.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    break
            if close := getattr(items, "close", None):  # a generator that was left early
                close()
            put(done)
        except BaseException as error:  # any: it is the caller's, and the thread must not end without a word
            put(_Raised(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not done:
            if isinstance(item, _Raised):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class _Raised:
    error: BaseException
