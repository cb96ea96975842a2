"""`python -m vda flow` and `python -m vda weights`: flow of a data set or of two images, weights of flow networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from PIL import Image as Pillow

from vda import distributed
from vda.checkpoint import atomic_write
from vda.data import open_dataset
from vda.data.clip import Image
from vda.data.flow_files import WRITERS, write_flow
from vda.device import choose_device
from vda.errors import UsageError
from vda.flow.cache import precompute
from vda.flow.providers import DISFlow, NetworkFlow, provider
from vda.flow.weights import family, import_weights
from vda.options import Flow
from vda.pictures import flow_image, png


@dataclass(frozen=True)
class FlowCommand:
    """Optical flow, computed ahead for a data set (resumable; torchrun shares the pairs), or between two images."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """A data set as DATASET/SPLIT, or two image files: the flow goes from the first to the second."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder of the cache. For images a file: .png for a picture on the colour wheel, .flo or .npy for the flow."""
    root: Path | None = None
    """Folder of the data set."""
    size: tuple[int, int] = (512, 1024)
    """Height and width at which frames are read; those of the run that will use the flow."""
    steps: tuple[int, ...] = (1,)
    """Distances between the frames of a pair: 1, and tau where it differs."""
    workers: int = 2
    """Pairs computed side by side."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a flow network runs; auto takes the GPU where there is one."""
    flow: Flow = field(default_factory=Flow)


def flow_main(arguments: list[str]) -> None:
    """Run `python -m vda flow`."""
    command = tyro.cli(FlowCommand, args=arguments, prog="python -m vda flow")
    if command.flow.cache is not None:
        raise UsageError("vda flow: wanted --out FOLDER for the cache to fill; --flow.cache is for reading one")
    if len(command.inputs) == 2:
        return between_images(command)
    if len(command.inputs) != 1:
        raise UsageError(f"vda flow: wanted a data set or two images, got {len(command.inputs)} inputs")
    for name, value in (("workers", command.workers), ("steps", min(command.steps, default=0))):
        if value < 1:
            raise UsageError(f"vda flow: wanted --{name} of at least 1, got {value}")
    distributed.start(command.device)
    dataset = open_dataset(command.inputs[0], command.root, command.size)
    source = provider(command.flow, choose_device(command.device))
    new = precompute(source, dataset, command.out, steps=command.steps, workers=command.workers)
    print(f"{command.out}: flow of {dataset.name} by {source.name}, {new} pairs computed now")
    return None


def between_images(command: FlowCommand) -> None:
    distributed.check_alone("vda flow of two images")
    if command.out.suffix not in (".png", *WRITERS) or not command.out.parent.is_dir():
        raise UsageError(f"{command.out}: wanted a .png, .flo or .npy in a folder that exists")
    first, second = (read_image(Path(name)) for name in command.inputs)
    if first.shape != second.shape:
        sizes = " and ".join(f"{x.shape[1]} x {x.shape[0]}" for x in (first, second))
        raise UsageError(f"{command.inputs[1]}: wanted two images of one size, found {sizes}")
    source = provider(command.flow, choose_device(command.device))
    if not isinstance(source, DISFlow | NetworkFlow):
        raise UsageError(
            f"--flow.provider {command.flow.provider}: wanted one that looks at images (dis, flownet2, raft)"
        )
    flow = source.between(first, second)
    if command.out.suffix == ".png":
        atomic_write(command.out, png(flow_image(flow)))
    else:
        try:
            write_flow(command.out, flow)
        except ValueError as error:
            raise UsageError(f"{command.out}: {error}") from None
    length = np.hypot(*flow)
    print(f"{command.out}: {source.name}, length {np.median(length):.2f} px in the median, {length.max():.2f} at most")


def read_image(path: Path) -> Image:
    """RGB image [H, W, 3]; UsageError for a missing file, and for a grey one, which would not be what it seems."""
    try:
        with Pillow.open(path) as image:
            if image.mode not in ("RGB", "RGBA", "P"):
                raise UsageError(f"{path}: wanted a colour image, found mode {image.mode}")
            return np.array(image.convert("RGB"))
    except OSError as error:
        raise UsageError(f"{path}: wanted an image, cannot read it ({error})") from None


@dataclass(frozen=True)
class Import:
    """Recognise, check and store the weights of a flow network."""

    file: tyro.conf.Positional[Path]
    """A torch checkpoint of the FlowNet2 family or of RAFT (princeton-vl's or torchvision's), as it was published."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """Where to write it; VARIANT.safetensors beside the file where not given."""


def weights_main(arguments: list[str]) -> None:
    """Run `python -m vda weights`."""
    if not arguments or (arguments[0] != "import" and arguments[0] not in ("-h", "--help")):
        raise UsageError(f"vda weights: wanted import FILE, got {' '.join(arguments) or 'nothing'}")
    command = tyro.cli(Import, args=arguments[arguments[0] == "import" :], prog="python -m vda weights import")
    variant, out, sha256 = import_weights(command.file, command.out)
    use = f"--flow.provider {family(variant)} --flow.weights {out}"
    print(f"{out}: {variant}, weights SHA-256 {sha256}; use it with {use}")
