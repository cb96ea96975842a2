"""Data sets by name. A new one is one function and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from vda.data.camvid import camvid
from vda.data.cityscapes import cityscapes
from vda.data.cityscapes_vps import cityscapes_vps
from vda.data.clip import IGNORE, Clip, VideoDataset
from vda.data.description import described, description_of
from vda.data.manifest import manifest_file, verify
from vda.data.motion import motion
from vda.data.pairs import pairs
from vda.data.synthetic import embedded_by_name
from vda.data.synthia_seq import synthia_seq
from vda.data.viper import viper
from vda.errors import UsageError

# name -> function(split, root=..., size=(height, width)); `root` is None for a data set that needs none, and without
# `size` a data set is read at a size of its own.
DATASETS: dict[str, Callable[..., VideoDataset]] = {
    "camvid": camvid,
    "cityscapes": cityscapes,
    "cityscapes-vps": cityscapes_vps,
    "embedded": embedded_by_name,
    "motion": motion,
    "pairs": pairs,
    "synthia-seq": synthia_seq,
    "viper": viper,
}


def open_dataset(name: str, root: Path | None, size: tuple[int, int] | None) -> VideoDataset:
    """The data set `DATASET/SPLIT`, or the split of a description `FILE.yaml/SPLIT`, frames read at `size` (height,
    width), or at its own size where that is None.

    Raises UsageError for an unknown name (with the nearest one), a missing root, or files that are not as expected, or
    not those that `vda data check` has seen.
    """
    dataset = load_dataset(name, root, size)
    verify(dataset, manifest_file(name, root))
    return dataset


def load_dataset(name: str, root: Path | None, size: tuple[int, int] | None) -> VideoDataset:
    """As `open_dataset`, whatever a manifest says."""
    if described_by := description_of(name):
        return described(*described_by, size)
    dataset, _, split = name.partition("/")
    if dataset not in DATASETS or not split:
        near = difflib.get_close_matches(dataset, DATASETS, n=1)
        hint = f"; perhaps you meant {near[0]}/{split or 'SPLIT'}" if near else ""
        raise UsageError(
            f"data set {name!r}: wanted DATASET/SPLIT with DATASET one of {', '.join(DATASETS)} or a FILE.yaml{hint}"
        )
    return DATASETS[dataset](split, root=root, **({} if size is None else {"size": size}))


__all__ = ["DATASETS", "IGNORE", "Clip", "VideoDataset", "load_dataset", "open_dataset"]
