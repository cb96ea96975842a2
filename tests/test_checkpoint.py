"""Checkpoints: what goes in comes out, and damage, interruption or a wrong network never passes unnoticed."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from vda import checkpoint as module_under_test
from vda.checkpoint import latest, load_checkpoint, load_weights, prune, save_checkpoint
from vda.errors import UsageError


def network(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, classes, 1))


def save(folder, step=1, classes=3, seed=0, state=None):
    names = [f"class{i}" for i in range(classes)]
    modules = {"network": network(classes, seed), "discriminators": nn.ModuleDict()}
    return save_checkpoint(
        folder, step=step, modules=modules, state=state or {}, meta={"classes": names, "iteration": step}
    )


def flip_bit(file: Path, position: int):
    data = bytearray(file.read_bytes())
    data[position] ^= 16
    file.write_bytes(data)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- round trip


def test_round_trip_of_modules_and_optimiser(tmp_path):
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        net(torch.ones(2, 3, 5, 5)).square().sum().backward()
        optimiser.step()
    generator = np.random.default_rng(5)
    state = {
        "optimiser": optimiser.state_dict(),
        "theta": torch.tensor([0.9, 0.25]),
        "torch": torch.get_rng_state(),
        "numpy": generator.bit_generator.state,
        "python": random.getstate(),
        "best": 0.5,
        3: (None, True, b"x", "y"),
    }
    meta = {"classes": ["a", "b", "c"], "iteration": 7, "config": {"lr": 1e-3, "name": "ü"}}
    path = save_checkpoint(tmp_path / "run" / "vat", step=7, modules={"network": net}, state=state, meta=meta)
    assert path == tmp_path / "run" / "vat" / "step-000007"
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "network.safetensors", "state.pt"]

    loaded = load_checkpoint(path)
    assert (loaded.path, loaded.step, loaded.meta) == (path, 7, meta)
    assert same(loaded.modules["network"], net.state_dict())
    assert loaded.state["best"] == 0.5
    assert loaded.state[3] == (None, True, b"x", "y")
    assert torch.equal(loaded.state["theta"], state["theta"])
    random.setstate(loaded.state["python"])
    restored = np.random.default_rng(0)
    restored.bit_generator.state = loaded.state["numpy"]
    assert restored.random() == generator.random()
    again = torch.optim.Adam(network(seed=9).parameters(), lr=0.7)
    again.load_state_dict(loaded.state["optimiser"])
    for mine, theirs in zip(
        again.state_dict()["state"].values(), optimiser.state_dict()["state"].values(), strict=True
    ):
        assert same(mine, theirs)


def test_digest_is_of_the_weights_alone(tmp_path):
    a = load_checkpoint(save(tmp_path / "a", step=1))
    b = load_checkpoint(save(tmp_path / "b", step=2, state={"x": 1}))
    c = load_checkpoint(save(tmp_path / "c", seed=1))
    assert a.digest == b.digest != c.digest
    assert len(a.digest) == 64


def test_tied_and_strided_weights(tmp_path):
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    net["b"].weight = net["a"].weight
    net["a"].bias = nn.Parameter(torch.arange(8.0)[::2])
    path = save_checkpoint(tmp_path, step=0, modules={"network": net}, state={}, meta={})
    assert same(load_checkpoint(path).modules["network"], net.state_dict())


def test_same_step_is_replaced(tmp_path):
    save(tmp_path, step=4, seed=1)
    path = save(tmp_path, step=4, seed=2)
    assert same(load_checkpoint(path).modules["network"], network(seed=2).state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["step-000004"]


def test_metadata_comes_back_as_json(tmp_path):
    meta = {"size": (64, 128), "per_class": {2: "b", 10: "j", 1: "a"}, "none": float("inf")}
    path = save_checkpoint(tmp_path, step=0, modules={}, state={}, meta=meta)
    wanted = {"size": [64, 128], "per_class": {"2": "b", "10": "j", "1": "a"}, "none": float("inf")}
    assert load_checkpoint(path).meta == wanted
    with pytest.raises(TypeError, match="JSON"):
        save_checkpoint(tmp_path, step=1, modules={}, state={}, meta={"path": tmp_path})
    assert latest(tmp_path) == path


@pytest.mark.parametrize(
    "bad",
    [
        np.float64(0.5),
        np.zeros(2),
        Path("x"),
        defaultdict(int),
        {"deep": [1, {"er": np.int64(3)}]},
        {np.str_("k"): 1},
    ],
    ids=lambda bad: type(bad).__name__,
)
def test_state_that_needs_pickle_is_refused_before_writing(tmp_path, bad):
    with pytest.raises(TypeError, match=r"state\['best'\].*wanted a tensor or a plain Python value, got "):
        save(tmp_path / "run", state={"best": bad})
    assert not (tmp_path / "run").exists()


def test_bad_arguments_are_refused(tmp_path):
    for arguments, message in [
        ({"step": -1}, "step"),
        ({"modules": {"../x": network()}}, "modules: wanted names"),
    ]:
        with pytest.raises(ValueError, match=message):
            save_checkpoint(tmp_path, **{"step": 1, "modules": {}, "state": {}, "meta": {}} | arguments)
    with pytest.raises(ValueError, match="keep: wanted 1 or more"):
        prune(tmp_path, 0)
    assert not list(tmp_path.iterdir())


# --- damage


@pytest.mark.parametrize("file", ["network.safetensors", "state.pt", "manifest.json", "discriminators.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "missing", "flipped first", "flipped last", "longer"])
def test_damage_is_refused_and_the_previous_checkpoint_used(tmp_path, file, damage):
    older, newer = save(tmp_path, step=1), save(tmp_path, step=2, seed=1)
    victim = newer / file
    size = victim.stat().st_size
    if damage == "missing":
        victim.unlink()
    elif damage.startswith("flipped"):
        flip_bit(victim, 0 if damage == "flipped first" else size - 2)
    else:
        content = victim.read_bytes()
        victim.write_bytes({"truncated": content[: size // 2], "empty": b"", "longer": content + b"x"}[damage])
    with pytest.raises(UsageError, match="step-000002") as info:
        load_checkpoint(newer)
    assert "\n" not in str(info.value)
    with pytest.warns(RuntimeWarning, match="passed over.*step-000002"):
        assert latest(tmp_path) == older


def test_every_flipped_bit_of_the_manifest_is_noticed(tmp_path):
    path = save(tmp_path)
    original = (path / "manifest.json").read_bytes()
    content = json.loads(original)
    for position in range(0, len(original) - 1, 3):
        flip_bit(path / "manifest.json", position)
        try:
            loaded = load_checkpoint(path)
        except UsageError:
            pass
        else:  # only a change of white space can pass
            assert (loaded.step, loaded.meta) == (content["step"], content["meta"])
        (path / "manifest.json").write_bytes(original)


def test_metadata_edited_by_hand_is_noticed(tmp_path):
    path = save(tmp_path)
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace("class0", "classX"))
    with pytest.raises(UsageError, match="does not have the recorded hash"):
        load_checkpoint(path)


class Evil:
    """Unpickling this makes a file: the proof that nothing was unpickled is that it is not there."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def forge(path, **changes):
    """Gives the changed files and manifest fields right hashes, as an attacker would."""
    content = json.loads((path / "manifest.json").read_text())
    content.pop("sha256")
    files = {}
    for file in sorted(path.iterdir()):
        if file.name != "manifest.json":
            data = file.read_bytes()
            files[file.name] = {"size": len(data), "sha256": module_under_test._sha256(data)}
    content = content | {"files": files} | changes
    content["sha256"] = module_under_test._content_hash(content)
    (path / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("writer", [lambda x, file: pickle.dump(x, file, protocol=2), torch.save])
def test_pickles_are_never_executed(tmp_path, writer):
    path, trace = save(tmp_path / "run"), tmp_path / "executed"
    with (path / "state.pt").open("wb") as file:
        writer({"x": Evil(trace)}, file)
    forge(path)
    with pytest.raises(UsageError, match=r"state\.pt: wanted a checkpoint file, cannot read it") as info:
        load_checkpoint(path)
    assert not trace.exists()
    assert "\n" not in str(info.value)


def test_foreign_manifests_are_refused(tmp_path):
    path = save(tmp_path)
    entry = {"size": 1, "sha256": "0"}
    original = (path / "manifest.json").read_text()
    for changes, message in [
        ({"format": 2}, "wanted checkpoint format 1, found 2"),
        ({"files": {"../../secret.pt": entry, "state.pt": entry}}, "wanted plain file names"),
        ({"files": {}}, "wanted plain file names and state.pt, found nothing"),
    ]:
        forge(path, **changes)
        with pytest.raises(UsageError, match=message):
            load_checkpoint(path)
        (path / "manifest.json").write_text(original)
    for text in ("[]", "3", "{}", "\xff", "{"):
        (path / "manifest.json").write_text(text, encoding="latin-1")
        with pytest.raises(UsageError, match="wanted a checkpoint manifest"):
            load_checkpoint(path)
    with pytest.raises(UsageError, match="nowhere: wanted a checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")


# --- latest and prune


def test_latest_counts_and_does_not_spell(tmp_path):
    assert latest(tmp_path / "nowhere") is None
    for step in (5, 20, 999_999, 1_000_000):
        save(tmp_path, step=step)
    (tmp_path / "step-2000000").write_text("a file, not a folder")
    (tmp_path / "step-best").mkdir()
    assert latest(tmp_path) == tmp_path / "step-1000000"


def test_prune_keeps_the_newest_complete_ones(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step=step)
    (tmp_path / "step-000005" / "state.pt").write_bytes(b"cut")
    (tmp_path / ".step-000006.0123.tmp").mkdir()
    (tmp_path / "scores.json").write_text("{}")
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "scores.json",
        "step-000003",
        "step-000004",
        "step-000005",
    ]
    with pytest.warns(RuntimeWarning, match="step-000005"):
        assert latest(tmp_path) == tmp_path / "step-000004"


# --- weights into a network


def test_load_weights(tmp_path):
    path = save(tmp_path, seed=3)
    for source in (path, str(path), load_checkpoint(path)):
        net = network(seed=4)
        load_weights(net, source)
        assert same(net.state_dict(), network(seed=3).state_dict())


def test_wrong_number_of_classes_is_told_in_one_sentence(tmp_path):
    path = save(tmp_path, classes=11)
    net = network(classes=15)
    with pytest.raises(UsageError, match=r"step-000001 has 11 classes, the network wants 15$"):
        load_weights(net, path)
    assert same(net.state_dict(), network(classes=15).state_dict())


def test_weights_of_another_network_are_refused(tmp_path):
    path = save(tmp_path)
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    with pytest.raises(UsageError, match=r"0\.weight is \[5, 3, 3, 3\] instead of \[6, 3, 3, 3\]; 2 tensors too many"):
        load_weights(other, path)
    bigger = nn.Sequential(*network(), nn.Linear(2, 2))
    before = {key: value.clone() for key, value in bigger.state_dict().items()}
    with pytest.raises(UsageError, match=r"2 tensors missing, such as 3\.bias"):
        load_weights(bigger, path)
    assert same(bigger.state_dict(), before)
    with pytest.raises(UsageError, match="wanted the module teacher, found discriminators, network"):
        load_weights(network(), path, module="teacher")
    (path / "network.safetensors").write_bytes((path / "network.safetensors").read_bytes()[:-3])
    with pytest.raises(UsageError, match=r"network\.safetensors: the file is damaged, wanted \d+ bytes, found \d+"):
        load_weights(network(), path)


# --- interruption


@pytest.mark.parametrize("call", range(1, 7))
@pytest.mark.parametrize("name", ["replace", "rename", "fsync"])
def test_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch, name, call):
    path, real, calls = save(tmp_path, seed=1), getattr(os, name), []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(module_under_test.os, name, fail_once)
    try:
        save(tmp_path, step=1, seed=2)
    except OSError:
        wanted = network(seed=1)
    else:
        assert len(calls) < call
        wanted = network(seed=2)
    assert latest(tmp_path) == path
    assert same(load_checkpoint(path).modules["network"], wanted.state_dict())
    assert list(tmp_path.iterdir()) == [path]


def test_safetensors_files_are_readable_by_others(tmp_path):
    path = save(tmp_path)
    assert same(safetensors.torch.load_file(path / "network.safetensors"), network().state_dict())
