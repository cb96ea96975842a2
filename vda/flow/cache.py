"""Flow computed ahead: one small file per ordered pair of frames, and a manifest that says whose flow it is.

ROOT/manifest.json, ROOT/CLIP/FRAME_I-FRAME_J.npy: int16 [2, H, W] in tenths of a pixel, -32768 where unknown. Files are
written whole or not at all, so a stopped run goes on where it was; reading maps them into memory. Several processes
share the pairs, in one folder that all of them see.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vda import distributed
from vda.checkpoint import atomic_write
from vda.data.clip import Clip, FlowField, VideoDataset
from vda.data.flow_files import from_tenths, in_tenths
from vda.errors import UsageError
from vda.flow.providers import FlowProvider, both_ways
from vda.progress import progress

FORMAT = "vda-flow-cache-1"
MANIFEST = "manifest.json"
LACKING = "not all there yet; run `python -m vda flow` for this data set, with all --steps that are needed, to its end"


@dataclass(frozen=True)
class Manifest:
    """Whose flow a cache holds. provider: `FlowProvider.name`, which names the weights too."""

    provider: str
    dataset: str
    size: tuple[int, int]
    format: str = FORMAT


def pair_path(root: Path, clip: Clip, i: int, j: int) -> Path:
    return root / clip.name / f"{clip.frame_names[i]}-{clip.frame_names[j]}.npy"


class CachedFlow:
    """The flow in a cache, as a provider; its name says that it is rounded.

    Raises UsageError where the cache is of another provider, data set or size, or lacks a pair.
    """

    def __init__(self, root: Path, dataset: VideoDataset, provider: str) -> None:
        self.root, self.name, self.size = root, f"{provider}-tenths", dataset.size
        check_manifest(root, Manifest(provider, dataset.name, dataset.size))

    def check(self, dataset: VideoDataset, steps: Iterable[int]) -> None:
        """UsageError unless both directions of all pairs are there; reads none of them."""
        for clip, i, j in frame_pairs(dataset, steps):
            for path in (pair_path(self.root, clip, i, j), pair_path(self.root, clip, j, i)):
                if not _whole(path, self.size):
                    raise UsageError(f"{path}: {LACKING}")

    def __call__(self, clip: Clip, i: int, j: int) -> FlowField:
        path = pair_path(self.root, clip, i, j)
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UsageError(f"{path}: {LACKING}") from None
        except (ValueError, EOFError, OSError) as error:
            raise UsageError(f"{path}: wanted a flow of the cache, cannot read it ({error})") from None
        if not isinstance(stored, np.ndarray) or stored.dtype != np.int16 or stored.shape != (2, *self.size):
            found = f"{stored.dtype} {list(stored.shape)}" if isinstance(stored, np.ndarray) else "an archive"
            raise UsageError(f"{path}: wanted int16 flow of the frames' size, found {found}")
        return from_tenths(stored)


def check_manifest(root: Path, wanted: Manifest) -> None:
    """UsageError unless the cache at `root` is the wanted one."""
    path = root / MANIFEST
    try:
        found = json.loads(path.read_text())
    except OSError:
        raise UsageError(f"{path}: wanted a flow cache, found none; make it with `python -m vda flow`") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: wanted the manifest of a flow cache, the file is damaged or another") from None
    for key, value in _plain(wanted).items():
        if not isinstance(found, dict) or found.get(key) != value:
            other = found.get(key) if isinstance(found, dict) else found
            raise UsageError(f"{path}: this flow is of another {key}: wanted {value}, found {other}")


def precompute(
    provider: FlowProvider, dataset: VideoDataset, root: Path, *, steps: Iterable[int] = (1,), workers: int = 1
) -> int:
    """Computes both directions of every pair of frames `step` apart, for each step; the number of pairs computed now.

    Pairs that are there already are left alone. Raises UsageError where `root` is a cache of something else.
    """
    pairs = list(frame_pairs(dataset, steps))
    todo = distributed.by_first(_begin, root, Manifest(provider.name, dataset.name, dataset.size), dataset, pairs)
    own = distributed.share(todo)

    def compute(number: int) -> None:
        clip, i, j = pairs[number]
        there, back = both_ways(provider, clip, i, j)
        _store(pair_path(root, clip, i, j), there)
        _store(pair_path(root, clip, j, i), back)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        results = pool.map(compute, own)
        done = len(pairs) - len(todo)
        try:
            for _ in progress(results, desc="flow", unit="pair", initial=done, total=done + len(own)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    distributed.wait()  # what the first process reports is there
    return len(todo)


def _begin(root: Path, manifest: Manifest, dataset: VideoDataset, pairs: Sequence[tuple[Clip, int, int]]) -> list[int]:
    """Makes or checks the cache; the numbers of the pairs that it lacks."""
    if (root / MANIFEST).exists():
        check_manifest(root, manifest)
    else:
        root.mkdir(parents=True, exist_ok=True)
        atomic_write(root / MANIFEST, (json.dumps(_plain(manifest), indent=1) + "\n").encode())
    for clip in dataset.clips:
        (root / clip.name).mkdir(exist_ok=True)
    return [number for number, pair in enumerate(pairs) if not _done(root, *pair, dataset.size)]


def frame_pairs(dataset: VideoDataset, steps: Iterable[int]) -> Iterator[tuple[Clip, int, int]]:
    """All (clip, i, i + step), clip by clip."""
    for clip in dataset.clips:
        for step in sorted(set(steps)):
            yield from ((clip, i, i + step) for i in range(len(clip) - step))


def _done(root: Path, clip: Clip, i: int, j: int, size: tuple[int, int]) -> bool:
    return _whole(pair_path(root, clip, i, j), size) and _whole(pair_path(root, clip, j, i), size)


def _whole(path: Path, size: tuple[int, int]) -> bool:
    """Whether a file is there and not cut off, by its length: a header of 128 bytes and 16 bits for u and v each."""
    try:
        return path.stat().st_size >= 128 + 2 * 2 * size[0] * size[1]
    except FileNotFoundError:
        return False


def _store(path: Path, flow: FlowField) -> None:
    buffer = io.BytesIO()
    np.save(buffer, in_tenths(flow))
    atomic_write(path, buffer.getvalue())


def _plain(manifest: Manifest) -> dict[str, Any]:
    return asdict(manifest) | {"size": list(manifest.size)}
