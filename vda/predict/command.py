"""`python -m vda predict`: from a checkpoint and a video to an overlay, label files and confidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vda.device import choose_device
from vda.errors import UsageError
from vda.predict.colours import palette_of
from vda.predict.footage import Footage, open_footage
from vda.predict.pipeline import Segmenter, ahead
from vda.predict.writer import ClipWriter, Kind, Record
from vda.progress import progress
from vda.run import network_of, open_checkpoint


@dataclass(frozen=True)
class Predict:
    """The classes of every frame of a video, of images, or of one image.

    OUTPUT gets overlay/CLIP.webm (VP9) and labels/CLIP/FRAME.png (8-bit class indices at the size of the input); with
    --write also confidence/CLIP/FRAME.png (255 times the probability of the class) and colour/CLIP/FRAME.png. Memory
    does not grow with the length. A clip appears under its name when it is whole; the same command again does the
    clips that are not.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder of a method or a round of a run, of which the last checkpoint is taken, or of a checkpoint."""
    input: Annotated[Path, tyro.conf.Positional]
    """A video (mp4, avi, webm, ..), an image, a folder of images in the order of their names, or of such folders."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for the predictions; new, empty, or that of an earlier call with the same checkpoint and settings."""
    write: tuple[Kind, ...] = ("overlay", "labels")
    """What to write."""
    size: tuple[int, int] | None = None
    """Height and width at which the network sees the frames; that of the training where not given."""
    rate: float | None = None
    """Frames per second of the overlay; the video's own, and 25 for images, where not given."""
    opacity: float = 0.55
    """Weight of the classes' colours in the overlay, 0 to 1."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""


def predict_main(arguments: list[str]) -> None:
    """Run `python -m vda predict`."""
    predict(tyro.cli(Predict, args=arguments, prog="python -m vda predict"))


def predict(options: Predict) -> None:
    """Predicts all clips of the input that are not done yet.

    Raises UsageError for input, a checkpoint or a setting that does not fit; the clips before it stay.
    """
    _check(options)
    device = choose_device(options.device)
    clips = open_footage(options.input, options.rate)
    checkpoint = open_checkpoint(options.checkpoint)
    size = options.size or tuple(checkpoint.meta["config"]["data"]["size"])
    palette = palette_of(checkpoint)
    made_by = {
        "model": checkpoint.digest,
        "classes": checkpoint.meta["classes"],
        "palette": palette.tolist(),
        "size": size,
        "write": sorted(options.write),
        "opacity": options.opacity,
        "rate": options.rate,
    }
    record = Record(options.out, made_by)
    todo = [clip for clip in clips if not record.done(clip)]
    segmenter = Segmenter(network_of(checkpoint, device), size, device, "confidence" in options.write)
    record.write()
    for clip in todo:
        with ClipWriter(options.out, clip, options.write, palette, options.opacity) as writer:
            frames = _segmented(segmenter, clip, writer)
        record.add(clip, frames)
    done = f", {len(clips) - len(todo)} were done before" if len(todo) < len(clips) else ""
    frames = sum(record.clips[clip.name]["frames"] for clip in clips)
    print(f"{options.out}: {', '.join(options.write)} of {len(clips)} clips, {frames} frames{done}")


def _segmented(segmenter: Segmenter, clip: Footage, writer: ClipWriter) -> int:
    """Reading, the network and writing, one beside the other; the number of frames."""
    total = clip.count or None
    count = 0
    for found in progress(ahead(segmenter(ahead(clip.frames()))), desc=clip.name, unit="frame", total=total):
        writer.write(found)
        count += 1
    return count


def _check(options: Predict) -> None:
    for name, good, wanted, found in (
        ("write", options.write and len({*options.write}) == len(options.write), "each kind once", options.write),
        ("size", options.size is None or min(options.size) >= 32, "at least 32 x 32", options.size),
        ("rate", options.rate is None or 0 < options.rate < 1000, "between 0 and 1000", options.rate),
        ("opacity", 0 <= options.opacity <= 1, "0 to 1", options.opacity),
    ):
        if not good:
            raise UsageError(f"--{name}: wanted {wanted}, found {found}")
