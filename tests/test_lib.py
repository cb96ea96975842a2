"""vda/ops/_lib.py: arguments, life without the compiled module; and the doctor."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch

from vda import __version__, doctor
from vda.__main__ import main
from vda.ops import OPS, _lib, consensus, warp, warp_occlusion, warp_reference

# ---- checks ----


def test_check_accepts_sizes_and_letters() -> None:
    _lib.check(torch.zeros(2, 3), "x", (torch.float32,), (2, "W"))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "x: wanted a tensor or DLPack array, got NoneType"),
        (torch.zeros(2, 3).half(), TypeError, "x: wanted element type float32, float64, got float16"),
        (torch.zeros(2, 4), ValueError, r"x: wanted shape \[B, 3\], got \[2, 4\]"),
        (torch.zeros(2, 3, 1), ValueError, r"x: wanted shape \[B, 3\], got \[2, 3, 1\]"),
        (torch.zeros(()), ValueError, r"x: wanted shape \[B, 3\], got \[\]"),
    ],
)
def test_check_names_argument_wanted_and_got(x: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _lib.check(x, "x", (torch.float32, torch.float64), ("B", 3))


def test_check_devices() -> None:
    here, nowhere = torch.zeros(1), torch.zeros(1, device="meta")
    _lib.check_devices(a=here, b=None, c=here)
    with pytest.raises(ValueError, match=r"c: wanted device cpu \(of a\), got meta"):
        _lib.check_devices(a=here, b=None, c=nowhere)


# ---- without the compiled module ----


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lib, "_compiled", None)
    monkeypatch.setattr(_lib, "_reason", "vda._C is not built")
    monkeypatch.setattr(_lib, "_said", set())


@pytest.mark.usefixtures("unbuilt")
def test_references_serve_and_say_so_once() -> None:
    image, flow = torch.randn(1, 2, 5, 6, requires_grad=True), torch.randn(1, 2, 5, 6, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="vda._C is not built; until then the plain-torch references serve"):
        out = warp(image, flow)
    assert torch.equal(out, warp_reference(image, flow))
    out.sum().backward()
    assert image.grad is not None
    assert flow.grad is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels = torch.zeros(1, 5, 6, dtype=torch.uint8)
        consensus(labels, labels, flow.detach())
        warp_occlusion(image.detach(), image.detach(), flow.detach(), alpha=1.0)
    with pytest.raises(ValueError, match="flow: wanted shape"):
        warp(image, flow[:, :1])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ModuleNotFoundError("no", name="vda._C"), "vda._C is not built for this Python: run `pip install -e .`"),
        (ImportError("GLIBCXX_9 not found"), "vda._C does not load (GLIBCXX_9 not found): rebuild it"),
    ],
)
def test_cause_and_cure_in_one_sentence(monkeypatch: pytest.MonkeyPatch, error: ImportError, sentence: str) -> None:
    def fails(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", fails)
    module, reason = _lib._import()
    assert module is None
    assert sentence in reason


def test_cuda_tensors_without_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lib, "_compiled", SimpleNamespace(cuda=False))
    assert _lib.why_off("cpu") == ""
    assert "built without CUDA: install nvcc" in _lib.why_off("cuda")
    assert "no kernels for device mps" in _lib.why_off("mps")


def test_older_module_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lib, "_compiled", SimpleNamespace(cuda=False))
    with pytest.raises(RuntimeError, match=r"vda\._C has no warp: it is older than vda/ops"):
        warp(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, 2))


def test_import_needs_no_gpu_and_starts_no_cuda() -> None:
    code = "import torch, vda.ops; assert not torch.cuda.is_initialized(); print(len(vda.ops.OPS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(OPS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_runs_on_the_current_stream() -> None:
    image = torch.zeros(1, 1, 512, 512, device="cuda")
    flow = torch.zeros(1, 2, 512, 512, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a slow producer: another stream would overtake it
        image.fill_(3.0)
        out = warp(image, flow)
    stream.synchronize()
    assert (out == 3).all()


# ---- the doctor ----


def test_doctor_lists_every_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert all(op in text for op in OPS)
    assert f"vda      {__version__}" in text
    assert text.count("C++ kernel") == len(OPS)


@pytest.mark.usefixtures("unbuilt")
def test_doctor_says_why_a_kernel_is_off() -> None:
    text = doctor.report()
    assert "cpu: vda._C is not built" in text
    assert "C++ kernel" not in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "python -m vda: wanted a command (data, doctor"),
        (["doktor"], "got 'doktor'"),
        (["doctor", "--all"], "wanted no further argument, got '--all'"),
    ],
)
def test_bad_command_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
