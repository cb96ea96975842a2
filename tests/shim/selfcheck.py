"""Runs every op, CPU kernel and CUDA kernel, from one module; meant for a build with sanitizers (see test_shim.py).

selfcheck.py <module>               every op against its reference
selfcheck.py <module> cpu|cuda      a wrong size, which a sanitizer has to report
selfcheck.py <selftest> shared      a read beyond shared memory, likewise
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where it is used: the faults need no torch, which is slow to load under a sanitizer
    import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shim import build

Way = Callable[[], contextlib.AbstractContextManager[None]]  # enters what decides which kernels run
SIZES = ((7, 37), (6, 40))  # odd, and a part of a warp left over; rows that fit every access of 16 bytes


def check_ops(path: Path | None) -> None:
    """Every op against its reference: from the module at path, or (None) the installed one on the GPU."""
    import torch

    torch.manual_seed(0)
    if path is None:
        torch.set_default_device("cuda")
    else:
        sys.modules["vda._C"] = build.load(path, "vda._C")
    ways = ways_of(path)
    for H, W in SIZES:
        check_size(ways, H, W)
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            for way in ways:
                gradients(way, H, W)
        torch.use_deterministic_algorithms(False)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for way in ways:
            correlation_gradients(way, dtype)
    for way in ways:
        segmentation_gradients(way)
    print("every op checked")


def ways_of(path: Path | None) -> list[Way]:
    """The kernels to check: those of the CPU, and the optimised and the readable ones of CUDA."""
    from vda.ops import _lib

    if path is None:
        return [contextlib.nullcontext, _lib.naive]

    @contextlib.contextmanager
    def shim(seed: str, kernels: Way = contextlib.nullcontext) -> Iterator[None]:
        os.environ["VDA_SHIM_SEED"] = seed
        with _lib.routed_to(sys.modules["vda._C"]), kernels():
            yield

    # Each seed is another order of the threads.
    return [contextlib.nullcontext, lambda: shim("0"), lambda: shim("9"), lambda: shim("0", _lib.naive)]


def check_size(ways: Sequence[Way], H: int, W: int) -> None:
    import torch
    from conftest import hostile_flow, layouts, smooth_flow

    from vda import ops

    def image(channels: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.rand(2, channels, H, W).to(dtype)

    def labels(layout: int = 2) -> torch.Tensor:
        return layouts(torch.randint(0, 4, (2, H, W), dtype=torch.uint8))[layout]

    def flow(*lead: int) -> torch.Tensor:
        return hostile_flow(max(1, int(torch.tensor(lead).prod())), H, W).view(*lead, 2, H, W)

    def warp_case(dtype: torch.dtype) -> list[tuple[Any, ...]]:
        return [
            (x, flow(2), {"mode": mode, "padding": padding})
            for x in layouts(image(3, dtype))
            for mode in ("bilinear", "nearest")
            for padding in ("zeros", "border")
        ] + [
            (labels(0), flow(2), {"mode": "nearest", "fill": 255}),
            (labels(), flow(2), {"mode": "nearest", "fill": 255}),
            (image(19, dtype).to(memory_format=torch.channels_last), flow(2), {}),
        ]

    def aggregate_case(dtype: torch.dtype) -> list[tuple[Any, ...]]:
        probs = torch.rand(2, 5, H, W).softmax(1).to(dtype)
        near = torch.rand(2, 2, 5, H, W).softmax(2).to(dtype)
        frames = torch.rand(2, 2, 3, H, W).to(dtype)
        return [(probs, near, flow(2, 2), image(3, dtype), frames, {"alpha": 1.0})]

    def labels_case(dtype: torch.dtype) -> list[tuple[Any, ...]]:
        # From pixel to pixel of the logits another class is certain: the CUDA kernel then leaves its fast path.
        flips = 300 * (torch.arange(2)[:, None, None] * 2 - 1) * (torch.arange(5) % 2 * 2 - 1)
        cases = []
        for classes, certain, layout in ((5, 0, 0), (23, 0, 1), (2, flips, 2)):  # 23: more than it takes at once
            for height, width in ((H, W), (18, 130)):  # less than a tile, and several
                logits, near = torch.rand(1, classes, 2, 5) + certain, torch.rand(1, 2, classes, 2, 5) + certain
                logits, near = (layouts(x.to(dtype))[layout] for x in (logits, near))
                flows = torch.stack([hostile_flow(1, height, width), smooth_flow(1, height, width, 0.1)], 1)
                frame, frames = torch.rand(1, 3, height, width), torch.rand(1, 2, 3, height, width)
                cases.append((logits, near, flows, frame, frames, {"alpha": 1.0}))
        return cases

    def thresholds_case(dtype: torch.dtype) -> list[tuple[Any, ...]]:
        confidence, label = torch.rand(2, H, W).to(dtype), torch.randint(0, 4, (2, H, W), dtype=torch.uint8)
        label[0] = 255
        return [(confidence, label, torch.full((5,), 0.9), {"rule": rule}) for rule in ops.thresholds.RULES]

    cases: dict[str, Callable[[torch.dtype], list[tuple[Any, ...]]]] = {
        "aggregate": aggregate_case,
        "aggregate_labels": labels_case,
        "apply_thresholds": lambda dtype: [
            (labels(layout), torch.rand(2, H, W).to(dtype), torch.rand(2, 3), {}) for layout in (0, 2)
        ],
        "class_thresholds": thresholds_case,
        "consensus": lambda dtype: [
            (labels(layout), labels(), flow(2), {"mode": mode, "predictions": predictions})
            for layout in (0, 2)
            for mode in ("strict", "lenient", "fill_in")
            for predictions in (None, ops.Predictions(*torch.rand(2, 2, H, W).to(dtype), torch.rand(3)))
        ],
        "correlation": lambda dtype: [(image(19, dtype), image(19, dtype), {"max_displacement": 4})],
        # 23: another kernel than of 5; 33: more classes than the fast CUDA kernels hold. All in float32 inside.
        "segmentation_sums": lambda dtype: [
            (layouts(torch.rand(2, classes, 3, 5).to(dtype))[layout], labels(layout), {})
            for classes, layout in ((5, 0), (23, 2), (33, 3))
            if classes == 5 or dtype == torch.float32
        ],
        "warp": warp_case,
        "warp_occlusion": lambda dtype: [(image(3, dtype), image(3, dtype), flow(2), {"alpha": 2.0})],
    }
    assert set(cases) == set(ops.OPS), "an op has no case here"

    for name, case in cases.items():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for *arguments, options in case(dtype):
                wanted = getattr(ops, f"{name}_reference")(*arguments, **options)
                for way in ways:
                    with way():
                        compare(getattr(ops, name), arguments, options, wanted, dtype)


def compare(op: Any, arguments: Any, options: Any, wanted: Any, dtype: torch.dtype) -> None:
    import torch

    # Looser than the tests of each op: what is looked for here are faults in memory.
    tolerances = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
    found = op(*arguments, **options)
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    for mine, reference in pairs:
        if mine.dtype == torch.uint8:  # of nearly equal classes either may win
            assert (mine != reference).float().mean() < 0.01
            continue
        tolerance = max(tolerances[dtype], tolerances.get(mine.dtype, 0.0))  # what is rounded last may be the output
        torch.testing.assert_close(mine, reference, atol=tolerance, rtol=tolerance, equal_nan=True)


def correlation_gradients(way: Way, dtype: torch.dtype) -> None:
    """On tensor cores, fp32 as TF32: an odd size from planes, an even one channels-last, two tiles along x."""
    import torch

    from vda import ops

    torch.backends.cuda.matmul.fp32_precision = "tf32"
    for width, layout in ((37, torch.contiguous_format), (34, torch.channels_last)):
        maps = [torch.rand(2, 24, 9, width).to(dtype=dtype, memory_format=layout) for _ in range(2)]
        results = []
        for op in (ops.correlation, ops.correlation_reference):
            a, b = (f.clone().requires_grad_() for f in maps)
            with way():
                out = op(a, b, max_displacement=4)
                out.sum().backward()
            results.append((out, a.grad, b.grad))
        for mine, wanted in zip(*results, strict=True):
            torch.testing.assert_close(mine, wanted, atol=5e-2, rtol=5e-2)
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def segmentation_gradients(way: Way) -> None:
    """Two by two CUDA tiles; more classes than their kernels hold; float64."""
    import torch

    from vda import ops

    for classes, dtype, size in (
        (5, torch.float32, (18, 130)),
        (23, torch.float32, (18, 130)),
        (33, torch.float32, (5, 9)),
        (3, torch.float64, (5, 9)),
    ):
        labels = torch.randint(0, classes, (1, *size), dtype=torch.uint8)
        results = []
        for op in (ops.segmentation_sums, ops.segmentation_sums_reference):
            torch.manual_seed(classes)
            logits = torch.rand(1, classes, 3, 7, dtype=dtype, requires_grad=True)
            with way():
                sums = op(logits, labels)
                (sums.square.sum() + sums.overlap[:, 1].sum()).backward()
            results.append(logits.grad)
        torch.testing.assert_close(*results, atol=1e-3, rtol=1e-3)


def gradients(way: Way, H: int, W: int) -> None:
    """Every backward kernel, in fp32 and fp64."""
    import torch

    from vda import ops

    for dtype in (torch.float32, torch.float64):
        a = torch.rand(2, 5, H, W, dtype=dtype, requires_grad=True)
        b = torch.rand(2, 5, H, W, dtype=dtype, requires_grad=True)
        flow = (torch.randn(2, 2, H, W, dtype=dtype) * 9).requires_grad_()
        with way():
            for padding in ("zeros", "border"):
                ops.warp(a, flow, padding=padding).square().sum().backward()
                ops.warp(a.detach(), flow, padding=padding).square().sum().backward()
            ops.warp(a, flow, mode="nearest").sum().backward()
            ops.correlation(a, b, max_displacement=4).square().sum().backward()
        for x in (a, b, flow):
            assert x.grad is not None
            assert x.grad.isfinite().all()


def fault(path: Path, device: str) -> None:
    """Claims that an image is taller than it is."""
    module = build.load(path, "vda._C")
    height, width = 4, 8
    image, out = (ctypes.c_float * (height * width))(), (ctypes.c_float * (64 * width))()
    flow = (ctypes.c_float * (2 * 64 * width))()
    module.warp(
        device,
        1,
        0,
        image=(ctypes.addressof(image), (0, 0, width, 1), "float32"),
        flow=(ctypes.addressof(flow), (0, 64 * width, width, 1), "float32"),
        out=(ctypes.addressof(out), (), "float32"),
        batch=1,
        channels=1,
        height=64,
        width=width,
        dtype="float32",
        padding="zeros",
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        check_ops(Path(sys.argv[1]))
    elif sys.argv[2] == "shared":
        ctypes.CDLL(sys.argv[1]).run_misuse(-1, (ctypes.c_int * 32)())
    else:
        fault(Path(sys.argv[1]), sys.argv[2])
