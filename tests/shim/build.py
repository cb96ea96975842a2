"""Compiles csrc against the CUDA-on-CPU shim of this folder into a module with the interface of vda._C.

Objects are cached under build/shim by the hash of everything that goes into them, so a second run costs nothing and
an edited kernel recompiles alone.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "shim"
FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
DEFINES = ("-DVDA_CUDA_SHIM", "-DVDA_WITH_CUDA", '-DVDA_VERSION="shim"', '-DVDA_ARCHITECTURES="shim"')
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


def compiler() -> str:
    """The C++ compiler, g++ or $CXX."""
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise FileNotFoundError("the shim tests need a C++ compiler: install g++ or set CXX")
    return found


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


@functools.cache
def _common_hash() -> bytes:
    headers = sorted([*CSRC.glob("*.h"), *CSRC.glob("*.cuh"), *HERE.glob("*.h")])
    version = subprocess.run([compiler(), "--version"], capture_output=True, check=True).stdout
    return version + b"".join(header.read_bytes() for header in headers)


def _compile(source: Path, flags: Sequence[str], includes: Sequence[str]) -> Path:
    """The object file of one source, from the cache if nothing has changed."""
    key = hashlib.sha256(_common_hash() + source.read_bytes() + repr((flags, includes)).encode()).hexdigest()[:20]
    target = CACHE / f"{source.name}-{key}.o"
    if not target.exists():
        # Under a name of its own first: two test runs may build at once.
        partial = CACHE / f"{target.name}.{os.getpid()}"
        _run([compiler(), *flags, *includes, "-x", "c++", "-c", source, "-o", partial])
        partial.replace(target)
    return target


def build(sources: Sequence[Path] | None = None, *, sanitize: bool = False) -> Path:
    """Path of the module built from sources (default: all of csrc), with ASan and UBSan if asked."""
    import pybind11

    CACHE.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{HERE}", f"-I{CSRC}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    if sources is None:
        sources = sorted([*CSRC.glob("*.cpp"), *CSRC.glob("*.cu")])
    checked = SANITIZE if sanitize else ()

    def compile_(source: Path) -> Path:
        if source.name == "bind.cpp":  # touches no array: built once and without checks it serves both modules
            how: tuple[str, ...] = ("-O0", "-g0")
        else:  # checks at -O1 take three times as long to compile, and the test inputs are small
            how = ("-O0", "-g1", *checked) if sanitize else ("-O1", "-g1")
        return _compile(source, (*FLAGS, *DEFINES, *how), includes)

    with (CACHE / "lock").open("w") as lock, ThreadPoolExecutor(os.cpu_count()) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another test process may build the same; then its objects are there
        objects = list(pool.map(compile_, [*sources, HERE / "shim.cpp"]))
    key = hashlib.sha256(repr((objects, checked)).encode()).hexdigest()[:20]
    module = CACHE / key / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        module.parent.mkdir(exist_ok=True)
        partial = module.with_suffix(f".{os.getpid()}")
        _run([compiler(), "-shared", *checked, *objects, "-o", partial, "-pthread"])
        partial.replace(module)
    return module


def load(path: Path, name: str = "vda_shim._C") -> ModuleType:
    """Import a built module under another name than vda._C, which may be loaded beside it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
