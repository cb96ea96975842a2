"""Flow weights: published and foreign files recognised, checked and stored; damaged ones refused in one sentence."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vda.errors import UsageError
from vda.flow.flownet2 import VARIANTS
from vda.flow.weights import import_weights, load_estimator, recognise, shapes

WIDTH = 8  # the published layer tables at an eighth of their width: the same names, a sixtieth of the bytes


def state(variant: str, width: int = WIDTH) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: 0.1 * torch.randn(shape) for name, shape in shapes(variant, width).items()}


@pytest.mark.parametrize("width", [WIDTH, 12])
@pytest.mark.parametrize("variant", VARIANTS)
def test_recognised_stored_and_loaded(tmp_path: Path, variant: str, width: int) -> None:
    content = state(variant, width)
    assert recognise(shapes(variant, width), "file") == variant
    torch.save({"epoch": 0, "state_dict": content, "best_EPE": 1e10}, tmp_path / "published.pth.tar")
    found, out, sha256 = import_weights(tmp_path / "published.pth.tar")
    assert (found, out) == (variant, tmp_path / f"{variant}.safetensors")
    network, again, digest = load_estimator(out)
    assert (again, digest) == (variant, sha256)
    assert not network.training
    assert all(torch.equal(x, content[name]) for name, x in network.state_dict().items())
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
def test_bare_state_dicts_and_wrapped_ones(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + name: x for name, x in state("flownet2-s").items()}, tmp_path / "a.pth")
    assert import_weights(tmp_path / "a.pth", tmp_path / "out.safetensors")[0] == "flownet2-s"


def python2(data: bytes) -> bytes:
    """A legacy torch file with its text as Python 2 wrote it: byte strings (SHORT_BINSTRING) instead of unicode."""
    out, end = io.BytesIO(), 0
    stream = io.BytesIO(data)
    for _ in range(5):  # magic number, protocol, system information, the object, storage keys
        begin = stream.tell()
        position = begin
        for operation, argument, at in pickletools.genops(stream):
            out.write(data[end:at] if at > end else b"")
            end = max(end, at)
            if operation.name == "BINUNICODE":
                text = argument.encode()
                out.write(b"U" + struct.pack("B", len(text)) + text)
                end = at + 5 + len(text)
        position = stream.tell()
        out.write(data[end:position])
        end = position
    return out.getvalue() + data[end:]


def test_files_of_old_torch_and_python_2(tmp_path: Path) -> None:
    """The published files: not a zip archive, and pickled by Python 2."""
    content = state("flownet2-c")
    torch.save({"epoch": 0, "state_dict": content}, tmp_path / "new.pth", _use_new_zipfile_serialization=False)
    legacy = python2((tmp_path / "new.pth").read_bytes())
    assert b"U\x0astate_dict" in legacy
    assert not zipfile.is_zipfile(io.BytesIO(legacy))
    (tmp_path / "legacy.pth.tar").write_bytes(legacy)
    variant, out, _ = import_weights(tmp_path / "legacy.pth.tar")
    assert variant == "flownet2-c"
    assert all(torch.equal(x, content[name]) for name, x in load_estimator(out)[0].state_dict().items())


def test_nearest_variant_is_named(tmp_path: Path) -> None:
    content = state("flownet2-cs")
    del content["flownets_1.conv3_1.0.bias"]
    with pytest.raises(
        UsageError, match=r"nearest is flownet2-cs, but 1 tensors are missing, such as flownets_1\.conv3_1"
    ):
        recognise({name: tuple(x.shape) for name, x in content.items()}, "file")
    content = state("flownet2-s") | {"conv1.0.weight": torch.zeros(8, 7, 7, 7), "extra": torch.zeros(1)}
    message = r"conv1\.0\.weight is \[8, 7, 7, 7\] instead of \[8, 6, 7, 7\]; 1 are too many, such as extra"
    with pytest.raises(UsageError, match=message):
        recognise({name: tuple(x.shape) for name, x in content.items()}, "file")
    with pytest.raises(UsageError, match="found none of their tensors: this is another network"):
        recognise({"fnet.conv1.weight": (64, 3, 7, 7)}, "file")


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("executed",)


def write_bad(path: Path, kind: str) -> None:
    good = io.BytesIO()
    torch.save(state("flownet2-s"), good)
    if kind == "cut":
        path.write_bytes(good.getvalue()[: len(good.getvalue()) // 2])
    elif kind == "legacy cut":
        torch.save(state("flownet2-s"), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "page":
        path.write_text("<html>Google Drive: quota exceeded</html>")
    elif kind == "code":
        torch.save({"state_dict": Evil()}, path)
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "nan":
        content = state("flownet2-s")
        content["conv2.0.bias"][3] = float("nan")
        torch.save(content, path)
    elif kind == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "a download that was cut short looks like this"),
        ("legacy cut", "a download that was cut short looks like this"),
        ("page", "a download that was cut short looks like this"),
        ("code", "wanted a torch checkpoint of tensors"),
        ("empty", "a download that was cut short looks like this"),
        ("list", "wanted a state dict, or a dict with one under 'state_dict', found something else"),
        ("nan", r"wanted finite weights, conv2\.0\.bias has 1 values that are NaN or infinite"),
        ("missing", "wanted a checkpoint, cannot read it"),
    ],
)
def test_bad_files(tmp_path: Path, kind: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.pth"
    write_bad(path, kind)
    with pytest.raises(UsageError, match=message) as error:
        import_weights(path, tmp_path / "out.safetensors")
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()
    assert "executed" not in capsys.readouterr().out


def test_stored_files_are_verified(tmp_path: Path) -> None:
    torch.save(state("flownet2-s"), tmp_path / "a.pth")
    _, out, _ = import_weights(tmp_path / "a.pth")
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(data)
    (tmp_path / "cut.safetensors").write_bytes(data[:-100])
    for name, message in {
        "flipped.safetensors": "its weights do not have the recorded hash",
        "cut.safetensors": "the file is damaged",
        "a.pth": "wanted imported flow weights, found another file; run `python -m vda weights import",
        "missing": "wanted a file of flow weights, cannot read it",
    }.items():
        with pytest.raises(UsageError, match=message) as error:
            load_estimator(tmp_path / name)
        assert "\n" not in str(error.value)
