"""Runs every op, CPU kernel and CUDA kernel, from one module; meant for a build with sanitizers (see test_shim.py).

selfcheck.py <module>               every op against its reference
selfcheck.py <module> cpu|cuda      a wrong size, which a sanitizer has to report
selfcheck.py <selftest> shared      a read beyond shared memory, likewise
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where it is used: the faults need no torch, which is slow to load under a sanitizer
    import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shim import build

H, W = 7, 37  # odd, and a part of a warp left over


def check_ops(path: Path | None) -> None:
    """Every op against its reference: from the module at path, or (None) the installed one on the GPU."""
    import torch

    torch.manual_seed(0)
    if path is None:
        torch.set_default_device("cuda")
    else:
        sys.modules["vda._C"] = module = build.load(path, "vda._C")
    from conftest import hostile_flow, layouts, smooth_flow

    from vda import ops
    from vda.ops import _lib

    def image(channels: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.rand(2, channels, H, W).to(dtype)

    def labels() -> torch.Tensor:
        return layouts(torch.randint(0, 4, (2, H, W), dtype=torch.uint8))[2]

    def flow(*lead: int) -> torch.Tensor:
        return hostile_flow(max(1, int(torch.tensor(lead).prod())), H, W).view(*lead, 2, H, W)

    def warp_case(dtype: torch.dtype) -> list[tuple[Any, ...]]:
        return [
            (x, flow(2), {"mode": mode, "padding": padding})
            for x in layouts(image(3, dtype))
            for mode in ("bilinear", "nearest")
            for padding in ("zeros", "border")
        ] + [(labels(), flow(2), {"mode": "nearest", "fill": 255})]

    def aggregate_case(dtype: torch.dtype) -> list[tuple[Any, ...]]:
        probs = torch.rand(2, 5, H, W).softmax(1).to(dtype)
        near = torch.rand(2, 2, 5, H, W).softmax(2).to(dtype)
        frames = torch.rand(2, 2, 3, H, W).to(dtype)
        return [(probs, near, flow(2, 2), image(3, dtype), frames, {"alpha": 1.0})]

    def labels_case(dtype: torch.dtype) -> list[tuple[Any, ...]]:
        cases = []
        for height, width in ((H, W), (18, 130)):  # less than a tile, and several
            logits, near = torch.rand(1, 5, 3, 17).to(dtype), torch.rand(1, 2, 5, 3, 17).to(dtype)
            flows = torch.stack([hostile_flow(1, height, width), smooth_flow(1, height, width, 0.1)], 1)
            frame, frames = torch.rand(1, 3, height, width), torch.rand(1, 2, 3, height, width)
            cases.append((logits, near, flows, frame, frames, {"alpha": 1.0}))
        return cases

    def thresholds_case(dtype: torch.dtype) -> list[tuple[Any, ...]]:
        confidence, label = torch.rand(2, H, W).to(dtype), torch.randint(0, 4, (2, H, W), dtype=torch.uint8)
        label[0] = 255
        return [(confidence, label, torch.full((5,), 0.9), {"rule": rule}) for rule in ("paper", "iast")]

    cases: dict[str, Callable[[torch.dtype], list[tuple[Any, ...]]]] = {
        "aggregate": aggregate_case,
        "aggregate_labels": labels_case,
        "apply_thresholds": lambda dtype: [(labels(), torch.rand(2, H, W).to(dtype), torch.rand(2, 3), {})],
        "class_thresholds": thresholds_case,
        "consensus": lambda _: [
            (labels(), labels(), flow(2), {"mode": mode}) for mode in ("strict", "lenient", "fill_in")
        ],
        "correlation": lambda dtype: [(image(19, dtype), image(19, dtype), {"max_displacement": 4})],
        "warp": warp_case,
        "warp_occlusion": lambda dtype: [(image(3, dtype), image(3, dtype), flow(2), {"alpha": 2.0})],
    }
    assert set(cases) == set(ops.OPS), "an op has no case here"

    for name, case in cases.items():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for *arguments, options in case(dtype):
                wanted = getattr(ops, f"{name}_reference")(*arguments, **options)
                compare(getattr(ops, name), arguments, options, wanted, dtype)
                if path is None:
                    with _lib.naive():
                        compare(getattr(ops, name), arguments, options, wanted, dtype)
                    continue
                for seed in ("0", "9"):
                    os.environ["VDA_SHIM_SEED"] = seed
                    with _lib.routed_to(module):
                        compare(getattr(ops, name), arguments, options, wanted, dtype)
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        gradients(ops, _lib, None)
        if path is None:
            with _lib.naive():
                gradients(ops, _lib, None)
        else:
            gradients(ops, _lib, module)
    print("every op checked")


def compare(op: Any, arguments: Any, options: Any, wanted: Any, dtype: torch.dtype) -> None:
    import torch

    # Looser than the tests of each op: what is looked for here are faults in memory.
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    found = op(*arguments, **options)
    pairs = zip(found, wanted, strict=True) if isinstance(found, tuple) else [(found, wanted)]
    for mine, reference in pairs:
        torch.testing.assert_close(mine, reference, atol=tolerance, rtol=tolerance, equal_nan=True)


def gradients(ops: Any, lib: Any, module: Any) -> None:
    """Every backward kernel, in fp32 and fp64."""
    import torch

    for dtype in (torch.float32, torch.float64):
        a = torch.rand(2, 5, H, W, dtype=dtype, requires_grad=True)
        b = torch.rand(2, 5, H, W, dtype=dtype, requires_grad=True)
        flow = (torch.randn(2, 2, H, W, dtype=dtype) * 9).requires_grad_()

        def run(a: torch.Tensor = a, b: torch.Tensor = b, flow: torch.Tensor = flow) -> None:
            for padding in ("zeros", "border"):
                ops.warp(a, flow, padding=padding).square().sum().backward()
            ops.warp(a, flow, mode="nearest").sum().backward()
            ops.correlation(a, b, max_displacement=4).square().sum().backward()

        if module is None:
            run()
        else:
            with lib.routed_to(module):
                run()
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
        ctypes.CDLL(sys.argv[1]).run_misuse(4, (ctypes.c_int * 32)())
    else:
        fault(Path(sys.argv[1]), sys.argv[2])
