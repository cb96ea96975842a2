"""`python -m vda export`: the file gives what the checkpoint gives, and says what it is; or there is no file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints import CLASSES, small_checkpoint

from vda import export
from vda.__main__ import main
from vda.checkpoint import load_checkpoint
from vda.models import upsample
from vda.run import network_of, open_checkpoint

NETWORKS = ("deeplab-resnet18", "pspnet-resnet18")
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
SIZES = ((1, 64, 96), (1, 33, 129), (3, 121, 58))  # the training size, and odd ones


@pytest.fixture(scope="module", params=NETWORKS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param)


def wanted(checkpoint: Path, images: torch.Tensor) -> torch.Tensor:
    network = network_of(open_checkpoint(checkpoint), torch.device("cpu"))
    with torch.no_grad():
        return upsample(network(images), (images.shape[2], images.shape[3]))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_file_gives_the_logits_of_the_checkpoint(
    checkpoint: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if suffix == ".onnx":
        for package in export._ONNX_PACKAGES:
            pytest.importorskip(package)
    file = tmp_path / f"network{suffix}"
    status = main(["export", str(checkpoint), "-o", str(file)])
    if status == 2 and OLD and "made one for some alone" in capsys.readouterr().err:
        assert not list(tmp_path.iterdir())
        pytest.skip("this torch cannot make graphs for frames of any size, and the command says so")
    assert status == 0
    out = capsys.readouterr().out
    assert f"{file}: logits within" in out
    assert "% of the pixels have its class" in out
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    if suffix == ".pt2":
        extra = {export.METADATA: ""}
        run = torch.export.load(file, extra_files=extra).module()
        about = json.loads(extra[export.METADATA])
    else:
        import onnx
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        onnx.checker.check_model(onnx.load(file), full_check=True)

        def run(images: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

        found = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        texts = ("model", "input", "output")
        about = {key: value if key in texts else json.loads(value) for key, value in found.items() if key in _KEYS}
    for batch, height, width in SIZES:
        images = torch.rand(batch, 3, height, width)
        logits = wanted(checkpoint, images)
        assert logits.argmax(1).unique().numel() > 1  # a comparison of classes says something
        torch.testing.assert_close(run(images), logits, rtol=1e-4, atol=1e-4)
    assert about.keys() == _KEYS
    assert about["classes"] == list(CLASSES)
    assert about["size"] == [64, 96]
    assert about["palette"][0] == [128, 64, 128]
    assert about["model"] == open_checkpoint(checkpoint).digest
    assert about["network"]["num_classes"] == len(CLASSES)


_KEYS = {"classes", "palette", "size", "network", "model", "input", "output"}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (6, 6), (9, 17), (16, 25)])
@pytest.mark.parametrize("bins", [(1, 1), (2, 2), (3, 3), (6, 6)])
def test_pooling_by_products_is_adaptive_pooling(height: int, width: int, bins: tuple[int, int]) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(export._pooled(x, [*bins]), F.adaptive_avg_pool2d(x, bins))


def test_pooling_by_hand() -> None:
    x = torch.tensor([[[[1.0, 2.0, 6.0]]]])  # two bins of three cells share the middle one
    assert export._pooled(x, [1, 2]).tolist() == [[[[1.5, 4.0]]]]


@pytest.mark.skipif(OLD, reason="an older torch may refuse before: it ties the graph to some sizes")
@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_file_that_is_off_is_not_written(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = small_checkpoint(tmp_path / "checkpoint")
    off = (export.to_pt2, lambda content: lambda images: factor * export.run_pt2(content)(images))
    monkeypatch.setitem(export.FORMATS, ".pt2", off)
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "a.pt2")]) == 2
    err = capsys.readouterr().err
    assert "a.pt2: wanted the checkpoint's logits, found a difference of" in err
    assert not list(tmp_path.glob("*.pt2"))


def test_other_classes_fail_although_logits_are_near() -> None:
    assert export.Parity(difference=1e-3, largest=2.0, equal=1.0).holds
    assert not export.Parity(difference=2.1e-3, largest=2.0, equal=1.0).holds
    assert not export.Parity(difference=1e-3, largest=2.0, equal=0.998).holds
    assert not export.Parity(difference=float("nan"), largest=2.0, equal=1.0).holds


def test_bad_input_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = small_checkpoint(tmp_path / "checkpoint")
    (tmp_path / "folder.pt2").mkdir()
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    for source, out, sentence in (
        (checkpoint, "a.bin", "a.bin: wanted a file .pt2 or .onnx in a folder that exists"),
        (checkpoint, "nowhere/a.pt2", "nowhere/a.pt2: wanted a file .pt2 or .onnx in a folder that exists"),
        (checkpoint, "folder.pt2", "folder.pt2: wanted a file"),
        (checkpoint, "a.onnx", 'wanted the packages onnxscript; pip install -e ".[export]" brings them'),
        (tmp_path / "none", "a.pt2", "none: wanted a checkpoint folder, found nothing"),
    ):
        assert main(["export", str(source), "-o", str(tmp_path / out)]) == 2
        out_text, err = capsys.readouterr()
        assert sentence in err
        assert len(err.strip().splitlines()) == 1
        assert not out_text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "folder.pt2"]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = small_checkpoint(tmp_path / "checkpoint") / "step-000001"
    assert load_checkpoint(step).step == 1
    weights = step / "network.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["export", str(step), "-o", str(tmp_path / "a.pt2")]) == 2
    assert "network.safetensors: the file is damaged" in capsys.readouterr().err
    assert not (tmp_path / "a.pt2").exists()
