"""The compiled module: its version, what it links to, and the switches of setup.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import vda
from vda.ops import _lib

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def module() -> ModuleType:
    compiled, reason = _lib.load()
    assert compiled is not None, reason
    return compiled


def test_version_is_the_package_s(module: ModuleType) -> None:
    assert module.version == vda.__version__, "run `pip install -e .` again"
    assert module.cuda == bool(module.architectures)


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_no_symbol_of_torch(module: ModuleType) -> None:
    assert module.__file__ is not None
    command = ["nm", "-D", "--undefined-only", "--demangle", module.__file__]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Py" in symbols  # nm has read something
    foreign = ("c10::", "at::", "torch", "THP", "cudnn", "cublas")
    assert not [line for line in symbols.splitlines() if any(name in line for name in foreign)]


@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd")
def test_links_the_c_and_cpp_runtime_only(module: ModuleType) -> None:
    assert module.__file__ is not None
    listing = subprocess.run(["ldd", module.__file__], capture_output=True, text=True, check=True).stdout
    names = {line.split()[0].split("/")[-1].split(".so")[0] for line in listing.splitlines()}
    runtime = {"linux-vdso", "libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl", "librt"}
    assert {name for name in names if not name.startswith("ld-linux")} <= runtime


def test_no_torch_header_in_csrc() -> None:
    for source in (ROOT / "csrc").iterdir():
        includes = [line for line in source.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in includes if "torch" in line or "ATen" in line or "c10" in line], source


def no_nvcc(tmp_path: Path) -> dict[str, str]:
    """An environment in which setup.py finds no nvcc."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDACXX", "CUDA_PATH")}
    return kept | {"CUDA_HOME": str(tmp_path), "PATH": str(tmp_path)}


@pytest.mark.parametrize(
    ("switch", "sentence"),
    [
        ("on", "VDA_CUDA=on, but nvcc was not found: install the CUDA toolkit (or `pip install nvidia-cuda-nvcc"),
        ("maybe", "VDA_CUDA: wanted auto, on or off, got 'maybe'"),
    ],
)
def test_cuda_switch_fails_with_one_sentence(tmp_path: Path, switch: str, sentence: str) -> None:
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-temp",
        str(tmp_path),
        "--build-lib",
        str(tmp_path),
    ]
    environment = no_nvcc(tmp_path) | {"VDA_CUDA": switch}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
