"""`python -m vda export`: a checkpoint's network as one file for torch.export or ONNX, compared with the checkpoint."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vda.checkpoint import Checkpoint, atomic_write
from vda.errors import UsageError
from vda.models import upsample
from vda.predict.colours import palette_of
from vda.run import network_of, open_checkpoint

METADATA = "metadata.json"  # name of the extra file in a .pt2; in ONNX, keys of the model's metadata
_TOLERANCE = 1e-3  # of the largest logit: float32 in another order of summation is a thousandth of that
_EQUAL = 0.999  # share of pixels with one class; the rest are ties
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Export:
    """A network as one file: .pt2 for torch.export, .onnx for ONNX (wants the extra `export`).

    Input "images": float32 [N, 3, H, W], RGB in [0, 1]; the normalisation is inside. Output "logits": float32
    [N, K, H, W] at the size of the input; the class of a pixel is their argmax. N, H and W are free (H and W from 32).
    Classes, palette, training size and the hash of the weights lie in the file's metadata. The file is run and
    compared with the checkpoint before it gets its name.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder of a method or a round of a run, of which the last checkpoint is taken, or of a checkpoint."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """FILE.pt2 or FILE.onnx."""


@dataclass(frozen=True)
class Parity:
    """How far an exported network is from its checkpoint: the largest difference of a logit, the largest logit, and the
    share of pixels with one class."""

    difference: float
    largest: float
    equal: float

    @property
    def holds(self) -> bool:
        return self.difference <= _TOLERANCE * max(1.0, self.largest) and self.equal >= _EQUAL  # False for NaN


class Segmentation(nn.Module):
    """images [N, 3, H, W] in [0, 1] -> logits [N, K, H, W]: the network and the upsampling behind it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return upsample(self.network(images), (images.shape[-2], images.shape[-1]))


def export_main(arguments: list[str]) -> None:
    """Run `python -m vda export`."""
    options = tyro.cli(Export, args=arguments, prog="python -m vda export")
    parity = export(options.checkpoint, options.out)
    print(
        f"{options.out}: logits within {parity.difference:.1e} of the checkpoint's (the largest is "
        f"{parity.largest:.1f}), {100 * parity.equal:.3f} % of the pixels have its class"
    )


def export(path: Path, out: Path) -> Parity:
    """Writes the network of a checkpoint to `out` and returns how far it is from the checkpoint.

    Raises UsageError, and writes nothing, for a suffix that is neither .pt2 nor .onnx, a folder that does not exist,
    missing packages, and a file whose logits or classes are not the checkpoint's.
    """
    if out.suffix not in FORMATS or not out.parent.is_dir() or out.is_dir():
        raise UsageError(f"{out}: wanted a file {' or '.join(FORMATS)} in a folder that exists")
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise UsageError(f'{out}: wanted the packages {", ".join(missing)}; pip install -e ".[export]" brings them')
    checkpoint = open_checkpoint(path)
    network = network_of(checkpoint, torch.device("cpu")).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model = Segmentation(network).eval().requires_grad_(False)
    size = tuple(checkpoint.meta["config"]["data"]["size"])
    write, load = FORMATS[out.suffix]
    content = write(traced(model, size), metadata(checkpoint))
    try:
        found = compare(load(content), model, size)
    except AssertionError as error:  # of torch 2.10, which ties the graph to sizes like that of the example
        wanted = "a graph for frames of any size; take a newer torch"
        raise UsageError(f"{out}: wanted {wanted}, {torch.__version__} made one for some alone ({error})") from None
    if not found.holds:
        raise UsageError(
            f"{out}: wanted the checkpoint's logits, found a difference of {found.difference:.1e} where the largest is "
            f"{found.largest:.1f}, and {100 * found.equal:.2f} % of the pixels with its class; nothing is written"
        )
    atomic_write(out, content)
    return found


def metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a user of the file needs beside it, in plain JSON types."""
    return {
        "classes": checkpoint.meta["classes"],
        "palette": palette_of(checkpoint).tolist(),
        "size": checkpoint.meta["config"]["data"]["size"],
        "network": checkpoint.meta["network"],
        "model": checkpoint.digest,
        "input": "images: float32 [N, 3, H, W], RGB in [0, 1], H and W from 32",
        "output": "logits: float32 [N, K, H, W], one of K for each of the classes",
    }


@torch.no_grad()
def traced(model: nn.Module, size: tuple[int, int]) -> ExportedProgram:
    """The model as a graph with free batch, height and width; `size` is that of the example."""
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    return torch.export.export(model, (torch.rand(2, 3, *size),), dynamic_shapes={"images": free})


# --- the two formats: (graph, metadata) -> file content, and file content -> what runs it


def to_pt2(graph: ExportedProgram, about: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(graph, buffer, extra_files={METADATA: json.dumps(about)})
    return buffer.getvalue()


def run_pt2(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


def to_onnx(graph: ExportedProgram, about: dict[str, Any]) -> bytes:
    plain = graph.run_decompositions({torch.ops.aten.adaptive_avg_pool2d.default: _pooled})
    program = torch.onnx.export(plain, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False)
    assert program is not None
    for key, value in about.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    return program.model_proto.SerializeToString()


def run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(np.asarray(session.run(["logits"], {"images": images.numpy()})[0]))


FORMATS: dict[str, tuple[Callable[..., bytes], Callable[[bytes], Callable[[Tensor], Tensor]]]] = {
    ".pt2": (to_pt2, run_pt2),
    ".onnx": (to_onnx, run_onnx),
}


def _pooled(x: Tensor, bins: list[int]) -> Tensor:
    """Adaptive average pooling [N, C, H, W] -> [N, C, *bins] by two matrix products, since ONNX has it for fixed sizes
    alone."""
    rows, columns = (_bins(n, count, x) for n, count in zip(x.shape[-2:], bins, strict=True))
    return rows @ x @ columns.transpose(0, 1)


def _bins(n: int, count: int, like: Tensor) -> Tensor:
    """[count, n]: row b averages the cells floor(b n / count) .. ceil((b + 1) n / count) - 1."""
    b = torch.arange(count, device=like.device)[:, None]
    cell = torch.arange(n, device=like.device)[None]
    start, end = b * n // count, ((b + 1) * n + count - 1) // count
    inside = ((cell >= start) & (cell < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)


@torch.no_grad()
def compare(exported: Callable[[Tensor], Tensor], model: nn.Module, size: tuple[int, int]) -> Parity:
    """Both on the same smooth random images: one of the training size, two of another, odd one."""
    generator = torch.Generator().manual_seed(0)
    difference, largest, equal = [], [], []
    for shape in ((1, *size), (2, size[0] // 4 * 2 + 33, size[1] // 4 * 2 + 35)):
        coarse = torch.rand(shape[0], 3, 9, 9, generator=generator)
        images = F.interpolate(coarse, shape[1:], mode="bilinear")
        found, wanted = exported(images), model(images)
        difference.append(float((found - wanted).abs().max()))
        largest.append(float(wanted.abs().max()))
        equal.append(float((found.argmax(1) == wanted.argmax(1)).float().mean()))
    return Parity(float(np.max(difference)), max(largest), min(equal))
