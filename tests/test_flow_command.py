"""`python -m vda flow` and `weights`, as a user calls them: what is written, and one sentence for what is wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from vda.__main__ import COMMANDS, main
from vda.data.flow_files import read_flow
from vda.flow.cache import MANIFEST
from vda.flow.providers import DISFlow
from vda.pictures import flow_image


def textured(shift: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (64, 160, 3)).astype(np.uint8), (0, 0), 2)
    return np.ascontiguousarray(image[:, 20 - shift : 140 - shift])


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    names = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    for name, shift in zip(names, (0, 3), strict=True):
        cv2.imwrite(name, textured(shift)[..., ::-1])
    cv2.imwrite(str(tmp_path / "grey.png"), textured(0)[..., 0])
    cv2.imwrite(str(tmp_path / "small.png"), textured(0)[:40])
    return names


def test_two_images(images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = DISFlow().between(textured(0), textured(3))
    assert np.median(wanted[0]) == pytest.approx(3, abs=0.2)  # what is at x in the first is at x + 3 in the second
    for suffix in (".flo", ".npy", ".png"):
        assert main(["flow", *images, "-o", str(tmp_path / f"flow{suffix}")]) == 0
        assert "dis-medium, length" in capsys.readouterr().out
    assert np.array_equal(read_flow(tmp_path / "flow.flo"), wanted)
    assert np.abs(read_flow(tmp_path / "flow.npy") - wanted).max() <= 0.05 + 1e-5
    assert np.array_equal(cv2.imread(str(tmp_path / "flow.png"))[..., ::-1], flow_image(wanted))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["a.png", "small.png", "-o", "x.png"],
            "wanted two images of one size, found 120 x 64 and 120 x 40",
        ),
        (["a.png", "grey.png", "-o", "x.png"], "grey.png: wanted a colour image, found mode L"),
        (["a.png", "none.png", "-o", "x.png"], "none.png: wanted an image, cannot read it"),
        (["a.png", "b.png", "-o", "x.jpg"], "x.jpg: wanted a .png, .flo or .npy in a folder that exists"),
        (["a.png", "b.png", "-o", "nowhere/x.png"], "wanted a .png, .flo or .npy in a folder that exists"),
        (["a.png", "b.png", "-o", "x.png", "--flow.provider", "exact"], "--flow.provider exact: wanted one that looks"),
        (["a.png", "b.png", "c.png", "-o", "x.png"], "wanted a data set or two images, got 3 inputs"),
        (["motion/val", "-o", "a.png"], "a.png"),
        (["motion/val", "-o", "cache", "--flow.cache", "other"], "--flow.cache is for reading one"),
        (["motion/val", "-o", "cache", "--workers", "0"], "wanted --workers of at least 1, got 0"),
    ],
)
def test_bad_input_is_one_sentence(
    images: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["flow", *arguments]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not (tmp_path / "cache" / MANIFEST).exists()


def test_weights_import_without_a_file_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["weights", "import"])
    assert "required" in capsys.readouterr().err.lower()
    assert main(["weights"]) == 2
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
