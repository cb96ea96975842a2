"""Where predictions come from when they are scored: a network, or a folder of label images that somebody else made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vda.data.clip import IGNORE, Clip, LabelMap, VideoDataset
from vda.data.labels import check_label_header, image_size, read_label
from vda.errors import UsageError
from vda.models import upsample

Predictor = Callable[[Clip, int], LabelMap]  # (clip, i) -> [H, W] uint8: a class, or 255 where nothing is predicted


class NetworkPredictor:
    """The class of the greatest logit, after upsampling to the frame's size. The network is put into eval mode."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network.eval(), device

    @torch.inference_mode()
    def __call__(self, clip: Clip, i: int) -> LabelMap:
        image = torch.from_numpy(clip.frame(i)).to(self.device).permute(2, 0, 1)[None].float() / 255
        classes = upsample(self.network(image), (image.shape[-2], image.shape[-1])).argmax(1)[0]
        return np.asarray(classes.to("cpu", torch.uint8).numpy())


class FolderPredictor:
    """Files FOLDER/CLIP/FRAME.png of class numbers, 8-bit grey or palette, 255 where nothing is predicted.

    CLIP and FRAME are the names that the data set gives. Everything but the pixels is checked at once: UsageError
    naming the file that no frame of the data set belongs to, that is of another size or kind, or that is missing
    although its frame has labels (or, with `every_frame`, at all). Class numbers are checked on reading.
    """

    def __init__(self, folder: Path, dataset: VideoDataset, *, every_frame: bool = False) -> None:
        self.folder, self.num_classes = folder, dataset.num_classes
        unclaimed = set(folder.rglob("*.png"))
        for clip in dataset.clips:
            for i in range(len(clip)):
                path = self.path(clip, i)
                unclaimed.discard(path)
                if not path.exists():
                    self._check_missing(path, clip, i, every_frame)
                    continue
                size = check_label_header(path, palette=True)
                if size != dataset.size:
                    wanted = f"{dataset.size[1]} x {dataset.size[0]} pixels, the size at which {dataset.name} is read"
                    raise UsageError(f"{path}: wanted {wanted}, found {size[1]} x {size[0]}")
        if unclaimed:
            example = self.path(dataset.clips[0], 0).relative_to(folder)
            raise UsageError(
                f"{min(unclaimed)}: wanted a name of a frame of {dataset.name}, such as {example}, found another; "
                f"{len(unclaimed)} such files"
            )

    def path(self, clip: Clip, i: int) -> Path:
        """The file of frame i of a clip."""
        return self.folder / clip.name / f"{clip.frame_names[i]}.png"

    def _check_missing(self, path: Path, clip: Clip, i: int, every_frame: bool) -> None:
        if every_frame:
            raise UsageError(f"{path}: wanted a prediction for every frame, which TC is computed from, found none")
        if clip.label(i) is not None:
            raise UsageError(f"{path}: wanted a prediction for every labelled frame, found none")

    def __call__(self, clip: Clip, i: int) -> LabelMap:
        path = self.path(clip, i)
        label = read_label(path, palette=True)
        unknown = np.flatnonzero(np.bincount(label.ravel(), minlength=256)[self.num_classes : IGNORE])
        if unknown.size:
            found = self.num_classes + int(unknown[0])
            raise UsageError(f"{path}: wanted classes 0 .. {self.num_classes - 1} or {IGNORE} (none), found {found}")
        return label


def holds_predictions(folder: Path) -> bool:
    """Whether a folder holds files CLIP/FRAME.png, not checkpoints. UsageError where it holds neither."""
    if any(any(folder.glob(name)) for name in ("manifest.json", "finished.json", "step-*")):
        return False
    found = any(folder.glob("*/*.png"))
    if folder.is_dir() and not found:
        raise UsageError(f"{folder}: wanted a checkpoint, or label images named CLIP/FRAME.png, found neither")
    return found


def size_of_predictions(folder: Path) -> tuple[int, int]:
    """(height, width) of the first file. UsageError where it is no image, or one of a size beyond reason."""
    return image_size(min(folder.glob("*/*.png")))
