"""Builds vda/_C from csrc with CMake and Ninja. Needs neither torch nor a GPU.

VDA_CUDA=auto|on|off      auto (default) compiles the CUDA kernels when nvcc is found
VDA_CUDA_ARCHITECTURES    compute capabilities such as "80;90"; default: the present GPU's, else all of DEFAULT
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT = (80, 86, 89, 90, 100, 120)  # Ampere, Ada, Hopper, Blackwell; PTX of the last serves what comes after


def find_nvcc() -> Path | None:
    """nvcc from CUDACXX, CUDA_HOME, PATH, the usual place, or the PyPI package nvidia-cuda-nvcc."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    # Inside pip's build isolation sys.path hides the environment's packages, sysconfig still knows where they are.
    packages = Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvcc")
    candidates = [
        os.environ.get("CUDACXX"),
        f"{home}/bin/nvcc" if home else None,
        shutil.which("nvcc"),
        None if home else "/usr/local/cuda/bin/nvcc",
        *map(str, sorted(packages, reverse=True)),
    ]
    return next((Path(c).resolve() for c in candidates if c and os.access(c, os.X_OK)), None)


def architectures(nvcc: Path) -> str:
    """The CMAKE_CUDA_ARCHITECTURES to build: real code for each, PTX of the last."""
    wanted = re.findall(r"\d+[af]?", os.environ.get("VDA_CUDA_ARCHITECTURES", ""))
    if not wanted and (smi := shutil.which("nvidia-smi")):
        query = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
        present = subprocess.run(query, capture_output=True, text=True, check=False)
        wanted = sorted({cap.replace(".", "") for cap in re.findall(r"^\d+\.\d+", present.stdout, re.M)}, key=int)
    if not wanted:
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
        wanted = [str(arch) for arch in DEFAULT if f"compute_{arch}" in known.split()]
    return ";".join([f"{arch}-real" for arch in wanted[:-1]] + wanted[-1:])


def cuda_architectures() -> tuple[Path | None, str]:
    """(nvcc, architectures), or (None, "") for a build without CUDA."""
    switch = os.environ.get("VDA_CUDA", "auto")
    if switch not in ("auto", "on", "off"):
        raise SystemExit(f"VDA_CUDA: wanted auto, on or off, got {switch!r}")
    nvcc = find_nvcc() if switch != "off" else None
    if nvcc:
        return nvcc, architectures(nvcc)
    if switch == "on":
        raise SystemExit(
            "VDA_CUDA=on, but nvcc was not found: install the CUDA toolkit (or `pip install nvidia-cuda-nvcc`), "
            "or set CUDACXX to the full path of nvcc."
        )
    reason = "VDA_CUDA=off" if switch == "off" else "nvcc was not found"
    print(f"vda: {reason}; building the CPU kernels only", file=sys.stderr)
    return None, ""


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        nvcc, archs = cuda_architectures()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-S", ROOT / "csrc", "-B", build, "-G", "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DVDA_VERSION={self.distribution.get_version()}",
            f"-DVDA_OUTPUT={output.parent}",
            f"-DVDA_ARCHITECTURES={archs}",
        ]  # fmt: skip
        if nvcc:
            print(f"vda: CUDA kernels for {archs} with {nvcc}", file=sys.stderr)
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        # What was compiled before is good as long as it was configured alike; else CMake would mix old and new.
        how = repr([*map(str, configure), shutil.which("ninja"), os.environ.get("CXX"), os.environ.get("CXXFLAGS")])
        before = build / "configured"
        same = before.exists() and before.read_text() == how
        before.unlink(missing_ok=True)
        subprocess.run(configure if same else [*configure, "--fresh"], check=True)
        before.write_text(how)
        subprocess.run(["cmake", "--build", build], check=True)


sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.*"))
setup(ext_modules=[Extension("vda._C", sources=sources)], cmdclass={"build_ext": CMakeBuild})
