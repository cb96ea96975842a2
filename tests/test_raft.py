"""RAFT: a fake torchvision for what is ours (padding, range, directions, names); the real one where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Lock, Thread
from time import sleep
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from shared import shared_data
from test_flow import FakeClip, camvid_pair, chairs_pair, end_point_error, photometric, shifted_pair, textured
from torch import Tensor, nn

from vda.data.flow_files import read_flow
from vda.errors import UsageError
from vda.flow import raft
from vda.flow.command import flow_main, weights_main
from vda.flow.flownet2 import VARIANTS as FLOWNET2
from vda.flow.providers import DISFlow, provider
from vda.flow.weights import KNOWN, import_weights, load_estimator, recognise, shapes
from vda.options import Flow

REAL = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")


def tree(table: dict[str, tuple[int, ...]], root: nn.Module) -> None:
    """Give the module tensors of these names and shapes."""
    for name, shape in table.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]
        counter = last == "num_batches_tracked"
        module.register_buffer(last, torch.zeros(shape, dtype=torch.int64 if counter else torch.float32))


class FakeRaft(nn.Module):
    """Called like torchvision's RAFT; its "flow" is the difference of red and green, its last "update" the result."""

    def __init__(self, variant: str = "raft-small") -> None:
        super().__init__()
        tree(raft.VARIANTS[variant], self)
        self.corr_block = SimpleNamespace(corr_pyramid=[])
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, first: Tensor, second: Tensor, num_flow_updates: int) -> list[Tensor]:
        self.calls.append((first, second))
        self.corr_block.corr_pyramid = [torch.zeros(1)]
        flow = (first - second)[:, :2]
        return [flow * (i + 1) / num_flow_updates for i in range(num_flow_updates)]


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision that has nothing but RAFT, and no arithmetic in it."""

    def make(variant: str) -> Any:
        return lambda *, weights, progress: FakeRaft(variant)

    package, models, flow = (ModuleType(n) for n in ("torchvision", "torchvision.models", "optical_flow"))
    flow.raft_small, flow.raft_large = make("raft-small"), make("raft-large")  # type: ignore[attr-defined]
    package.models, models.optical_flow = models, flow  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", flow)


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)


def state(variant: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        name: torch.tensor(7) if name.endswith("tracked") else torch.rand(shape)
        for name, shape in raft.VARIANTS[variant].items()
    }


# ---- princeton-vl's names, written down independently: rules per layer instead of patterns ----


def princeton_encoder(ours: str, theirs: str, convolutions: int, norm: bool) -> Iterator[tuple[str, str]]:
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = [(f"{ours}.convnormrelu.", f"{theirs}.", "1")]
    for stage in (1, 2, 3):
        for block in (0, 1):
            here = f".layer{stage}.{block}."
            layers += [(f"{ours}{here}convnormrelu{i}.", f"{theirs}{here}", str(i)) for i in range(1, convolutions + 1)]
        if stage > 1:
            both = f".layer{stage}.0.downsample."
            yield from ((f"{ours}{both}0.{x}", f"{theirs}{both}0.{x}") for x in parts[:2])
            if norm:
                for x in parts:
                    yield f"{ours}{both}1.{x}", f"{theirs}{both}1.{x}"
                    yield f"{ours}{both}1.{x}", f"{theirs}.layer{stage}.0.norm3.{x}"
    for mine, other, i in layers:
        yield from ((f"{mine}0.{x}", f"{other}conv{i}.{x}") for x in parts[:2])
        yield from ((f"{mine}1.{x}", f"{other}norm{i}.{x}") for x in parts if norm)
    yield from ((f"{ours}.conv.{x}", f"{theirs}.conv2.{x}") for x in parts[:2])


def princeton_names(variant: str) -> Iterator[tuple[str, str]]:
    """(torchvision's name, princeton-vl's); the batch norms of shortcuts come twice."""
    large = variant == "raft-large"
    yield from princeton_encoder("feature_encoder", "fnet", 2 if large else 3, False)
    yield from princeton_encoder("context_encoder", "cnet", 2 if large else 3, large)
    motion, their = "update_block.motion_encoder", "update_block.encoder"
    layers = {f"{motion}.convcorr1.0": f"{their}.convc1", f"{motion}.conv.0": f"{their}.conv"}
    layers |= {f"{motion}.convflow{i}.0": f"{their}.convf{i}" for i in (1, 2)}
    layers |= {f"update_block.flow_head.conv{i}": f"update_block.flow_head.conv{i}" for i in (1, 2)}
    gru = "update_block.recurrent_block.convgru"
    if large:
        layers |= {f"{gru}{i}.conv{g}": f"update_block.gru.conv{g}{i}" for g in "zrq" for i in (1, 2)}
        layers |= {f"{motion}.convcorr2.0": f"{their}.convc2"}
        layers |= {"mask_predictor.convrelu.0": "update_block.mask.0", "mask_predictor.conv": "update_block.mask.2"}
    else:
        layers |= {f"{gru}1.conv{g}": f"update_block.gru.conv{g}" for g in "zrq"}
    for mine, other in layers.items():
        yield from ((f"{mine}.{x}", f"{other}.{x}") for x in ("weight", "bias"))


def princeton(variant: str) -> dict[str, Tensor]:
    content = state(variant)
    return {"module." + theirs: content[ours] for ours, theirs in princeton_names(variant)}


def test_sizes_of_the_variants() -> None:
    """Parameters as torchvision and the paper state them."""
    for variant, wanted in {"raft-small": 990_162, "raft-large": 5_257_536}.items():
        learnt = {n: x for n, x in state(variant).items() if "running" not in n and "tracked" not in n}
        assert sum(x.numel() for x in learnt.values()) == wanted


@pytest.mark.parametrize("variant", raft.VARIANTS)
@pytest.mark.parametrize("source", ["torchvision", "princeton"])
def test_recognised_and_stored_without_torchvision(
    tmp_path: Path, variant: str, source: str, no_torchvision: None, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state(variant) if source == "torchvision" else princeton(variant), tmp_path / "a.pth")
    weights_main(["import", str(tmp_path / "a.pth")])
    assert f"--flow.provider raft --flow.weights {tmp_path / variant}.safetensors" in capsys.readouterr().out
    with pytest.raises(
        UsageError, match=r'cannot import it \(.*\); install it with `pip install -e "\.\[raft\]"`'
    ) as e:
        provider(Flow(provider="raft", weights=tmp_path / f"{variant}.safetensors"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("variant", raft.VARIANTS)
def test_all_sources_give_the_same_network_and_hash(tmp_path: Path, variant: str, torchvision: None) -> None:
    content = state(variant)
    torch.save(content, tmp_path / "torchvision.pth")
    torch.save(princeton(variant), tmp_path / "princeton.pth")
    imported = [import_weights(tmp_path / f"{x}.pth", tmp_path / x)[1:] for x in ("torchvision", "princeton")]
    assert len({sha256 for _, sha256 in imported}) == 1
    for path in ("torchvision", "princeton", "torchvision.pth", "princeton.pth"):
        network, found, sha256 = load_estimator(tmp_path / path)
        assert (found, sha256) == (variant, imported[0][1])
        assert not network.training
        loaded = network.network.state_dict()
        assert {n: x.dtype for n, x in loaded.items()} == {n: x.dtype for n, x in content.items()}
        assert all(torch.equal(x, content[name]) for name, x in loaded.items())


def test_half_precision_is_widened_and_counters_stay(tmp_path: Path, torchvision: None) -> None:
    torch.save({n: x.half() if x.is_floating_point() else x for n, x in state("raft-large").items()}, tmp_path / "a")
    loaded = load_estimator(tmp_path / "a")[0].network.state_dict()
    assert {x.dtype for x in loaded.values()} == {torch.float32, torch.int64}


def damaged(kind: str) -> dict[str, Tensor]:
    content = princeton("raft-large")
    if kind == "missing":
        del content["module.update_block.mask.0.bias"]
    elif kind == "extra":
        content["module.update_block.aggregator.gamma"] = torch.zeros(1)
    elif kind == "shape":
        content["module.fnet.conv2.weight"] = torch.zeros(128, 128, 1, 1)
    elif kind == "nan":
        content["module.fnet.conv1.bias"] = torch.full((64,), torch.nan)
    elif kind == "alias":
        content["module.cnet.layer2.0.norm3.bias"] = torch.full((96,), 3.0)
    return content


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"nearest is raft-large, but 1 tensors are missing, such as mask_predictor\.convrelu\.0\.bias"),
        ("extra", r"nearest is raft-large, but 1 are too many, such as update_block\.aggregator\.gamma"),
        ("shape", r"feature_encoder\.conv\.weight is \[128, 128, 1, 1\] instead of \[256, 128, 1, 1\]"),
        ("nan", r"feature_encoder\.convnormrelu\.0\.bias has 64 values that are NaN"),
        ("alias", r"downsample\.1\.bias.*the same layer"),
    ],
)
def test_wrong_weights_are_refused(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "bad.pth"
    torch.save(damaged(kind), path)
    for use in (
        lambda: import_weights(path, tmp_path / "out"),
        lambda: provider(Flow(provider="raft", weights=path)),
    ):
        with pytest.raises(UsageError, match=message) as error:
            use()
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_cut_files_are_refused(tmp_path: Path) -> None:
    torch.save(princeton("raft-small"), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-5000])
    for use in (import_weights, load_estimator):
        with pytest.raises(UsageError, match=r"cut\.pth: wanted a torch checkpoint.* cut short"):
            use(tmp_path / "cut.pth")


def test_weights_of_the_other_provider_are_refused(tmp_path: Path, no_torchvision: None) -> None:
    torch.save(state("raft-small"), tmp_path / "raft.pth")
    with pytest.raises(UsageError, match=r"has those of raft-small; use --flow\.provider raft"):
        provider(Flow(provider="flownet2", weights=tmp_path / "raft.pth"))
    with pytest.raises(UsageError, match=r"--flow\.provider raft: wanted --flow\.weights"):
        provider(Flow(provider="raft"))
    table = shapes("flownet2-s")
    torch.save({name: torch.zeros(shape) for name, shape in table.items()}, tmp_path / "flownet2.pth")
    _, path, _ = import_weights(tmp_path / "flownet2.pth")
    with pytest.raises(UsageError, match=r"has those of flownet2-s; use --flow\.provider flownet2"):
        provider(Flow(provider="raft", weights=path))


def test_names_are_known_once() -> None:
    assert len(set(KNOWN)) == len(KNOWN) == len(FLOWNET2) + len(raft.VARIANTS)
    assert [recognise(raft.VARIANTS[variant], "file") for variant in raft.VARIANTS] == [*raft.VARIANTS]
    flownet2 = {name: torch.zeros(1) for name in shapes("flownet2")}
    assert raft.torchvision_names(flownet2, "file") == flownet2


# ---- images in, pixels out ----


@pytest.mark.parametrize(
    ("size", "padded"),
    [((1, 1), (128, 128)), ((128, 136), (128, 136)), ((130, 60), (136, 128)), ((255, 257), (256, 264))],
)
def test_padding_and_range(size: tuple[int, int], padded: tuple[int, int]) -> None:
    network = FakeRaft()
    first, second = torch.rand(2, 3, *size), torch.rand(2, 3, *size)
    flow = raft.Raft(network)(first, second)
    below, right = padded[0] - size[0], padded[1] - size[1]
    for seen, image in zip(network.calls[0], (first, second), strict=True):
        assert seen.dtype == torch.float32
        wanted = np.pad(2 * image.numpy() - 1, ((0, 0), (0, 0), (0, below), (0, right)), mode="edge")
        np.testing.assert_allclose(seen.numpy(), wanted, atol=1e-6)
    torch.testing.assert_close(flow, 2 * (first - second)[:, :2])


def test_both_directions_in_one_call() -> None:
    network = FakeRaft()
    first, second = torch.rand(2, 3, 40, 50), torch.rand(2, 3, 40, 50)
    there, back = raft.Raft(network).both(first, second)
    assert len(network.calls) == 1
    assert network.calls[0][0].shape[0] == 4
    torch.testing.assert_close(there, 2 * (first - second)[:, :2])
    torch.testing.assert_close(back, -there)


def test_volume_is_freed_and_autocast_is_off() -> None:
    class Watched(FakeRaft):
        def forward(self, first: Tensor, second: Tensor, num_flow_updates: int) -> list[Tensor]:
            assert num_flow_updates == 12
            assert first.dtype == second.dtype == torch.float32
            assert not torch.is_autocast_enabled("cpu")
            return super().forward(first, second, num_flow_updates)

    network = Watched()
    with torch.autocast("cpu", torch.bfloat16):
        flow = raft.Raft(network)(torch.rand(1, 3, 8, 8).bfloat16(), torch.rand(1, 3, 8, 8).bfloat16())
    assert flow.dtype == torch.float32
    assert network.corr_block.corr_pyramid == []


def test_threads_take_turns() -> None:
    """torchvision keeps the volume of a pair in the module: two threads inside would mix their pairs."""

    class Slow(FakeRaft):
        busy = Lock()

        def forward(self, first: Tensor, second: Tensor, num_flow_updates: int) -> list[Tensor]:
            assert self.busy.acquire(blocking=False)
            sleep(0.01)
            self.busy.release()
            return super().forward(first, second, num_flow_updates)

    estimator, results = raft.Raft(Slow()), []
    image = torch.rand(1, 3, 8, 8)
    threads = [Thread(target=lambda: results.append(estimator(image, image))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4


def test_bad_images_are_refused() -> None:
    network, good = raft.Raft(FakeRaft()), torch.rand(1, 3, 8, 8)
    with pytest.raises(TypeError, match="second: wanted RGB in"):
        network(good, good.byte())
    with pytest.raises(ValueError, match="first: wanted shape"):
        network(good[0], good)
    with pytest.raises(ValueError, match="second: wanted the shape"):
        network.both(good, good[..., :4])


def test_provider(tmp_path: Path, torchvision: None) -> None:
    torch.save(princeton("raft-small"), tmp_path / "a.pth")
    _, path, sha256 = import_weights(tmp_path / "a.pth")
    source = provider(Flow(provider="raft", weights=path))
    assert source.name == f"raft-small-{sha256[:12]}"
    a, b = textured(37, 45), textured(37, 45, seed=1)
    wanted = 2 / 255 * (a.astype(np.float32) - b)[..., :2].transpose(2, 0, 1)
    there, back = source.both(FakeClip([a, b]), 0, 1)
    for flow, answer in ((source(FakeClip([a, b]), 0, 1), wanted), (there, wanted), (back, -wanted)):
        assert flow.dtype == np.float32
        np.testing.assert_allclose(flow, answer, atol=1e-5)


# ---- the real network ----


@REAL
@pytest.mark.parametrize("variant", raft.VARIANTS)
def test_table_is_torchvisions(variant: str) -> None:
    from torchvision.models import optical_flow

    with torch.device("meta"):
        network = getattr(optical_flow, variant.replace("-", "_"))(weights=None)
    assert {name: tuple(x.shape) for name, x in network.state_dict().items()} == raft.VARIANTS[variant]


def small() -> Any:
    return provider(Flow(provider="raft", weights=shared_data("weights", "raft-small.pth")))


@REAL
@pytest.mark.parametrize("n", [0, 1])
def test_better_than_dis_on_flying_chairs(n: int) -> None:
    a, b, truth = chairs_pair(n)
    error = end_point_error(small().between(a, b), truth)
    # What princeton-vl's own code gives for this file and these pairs.
    assert error == pytest.approx([1.31486, 0.76135][n], abs=0.01)
    assert error < end_point_error(DISFlow().between(a, b), truth)


@REAL
def test_large_runs() -> None:
    content = {name: 0.05 * x if x.dim() == 4 else x for name, x in state("raft-large").items()}
    network = raft.build("raft-large", content).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 9, 70), torch.rand(1, 3, 9, 70)).shape == (1, 2, 9, 70)


@REAL
def test_both_is_two_single_calls() -> None:
    a, b = shifted_pair(97, 131, 4, -3)
    source = small()
    there, back = source.both(FakeClip([a, b]), 0, 1)
    np.testing.assert_allclose(there, source.between(a, b), atol=1e-3)
    np.testing.assert_allclose(back, source.between(b, a), atol=1e-3)


@REAL
@pytest.mark.parametrize("size", [(97, 131), (128, 128), (131, 150)])
def test_known_shift(size: tuple[int, int]) -> None:
    a, b = shifted_pair(*size, 4, -3)
    flow = small().between(a, b)
    assert flow.shape == (2, *size)
    np.testing.assert_allclose(np.median(flow, axis=(1, 2)), [4, -3], atol=0.3)


@REAL
def test_real_driving_video() -> None:
    a, b = (image[60:-60, 80:-80] for image in camvid_pair())
    flow = small().between(np.ascontiguousarray(a), np.ascontiguousarray(b))
    still = photometric(a, b, np.zeros_like(flow))
    assert photometric(a, b, flow) < 0.7 * still
    assert photometric(a, b, -flow) > still


@REAL
def test_from_the_command_line(tmp_path: Path) -> None:
    """Two images in, one file out, as a user calls it."""
    pair = [str(shared_data("flow", f"chairs1_img{i}.png")) for i in (0, 1)]
    weights, out = shared_data("weights", "raft-small.pth"), tmp_path / "flow.flo"
    flow_main([*pair, "--flow.provider", "raft", "--flow.weights", str(weights), "--device", "cpu", "-o", str(out)])
    assert end_point_error(read_flow(out), chairs_pair(1)[2]) < 1
