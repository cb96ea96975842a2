"""The example of docs/examples/cpp builds against csrc alone: no Python, no torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A bar moves by four pixels; what it covers in the other frame is not visible there.
EXPECTED = 5 * "..........####    ..............\n" + "140 of 160 pixels are visible\n"


@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs cmake and ninja")
def test_example_builds_against_csrc_alone(tmp_path: Path) -> None:
    example = tmp_path / "docs" / "examples" / "cpp"
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "docs" / "examples" / "cpp", example)
    configure = ["cmake", "-B", "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    for command in (configure, ["cmake", "--build", "build"]):
        done = subprocess.run(command, cwd=example, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([example / "build" / "example"], capture_output=True, text=True, check=True)
    assert done.stdout == EXPECTED
