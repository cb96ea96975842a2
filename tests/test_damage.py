"""State that is damaged, lost, edited or somebody else's: named and passed over, made again, or refused; never used."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import small_checkpoint
from clips import dataset, scrolling_clip
from PIL import Image
from test_faults import settings, small, trained  # noqa: F401
from test_pseudo import clips as noisy_clips
from test_pseudo import files, run
from torch import nn

import train
from vda import proportion, pseudo
from vda.checkpoint import latest, load_checkpoint, prune, save_checkpoint
from vda.choice import scored
from vda.data.transforms import Augment
from vda.data.tubes import Tubes
from vda.errors import UsageError
from vda.flow.cache import CachedFlow, pair_path, precompute
from vda.flow.providers import ExactFlow
from vda.live import read_log, trim_log
from vda.methods.supervised import SupervisedSettings
from vda.options import Pseudo
from vda.run import Run, network_of, open_checkpoint
from vda.source_selection import SELECTION, matched_source

TORN = (b"", b"{", b"\x00\x00\x00", b"\xff\xfe{}", b"[" * 100_000)  # of JSON files


def save(folder: Path, step: int, value: float = 0.0) -> Path:
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, value)
    return save_checkpoint(folder, step=step, modules={"network": network}, state={}, meta={"iteration": step})


# --- checkpoints


def test_every_n_th_the_last_ones_and_nothing_else_stay(tmp_path: Path) -> None:
    for step in range(1, 11):
        save(tmp_path, step)
        prune(tmp_path, 2, spare={4, 8, 12})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{k:06d}" for k in (4, 8, 9, 10)]


def test_snapshots_stay_after_a_resume(tmp_path: Path) -> None:
    """Six steps, a checkpoint after each, stopped after the second: the third and the last are there at the end."""
    steps = dataclasses.replace(small().methods["source_only"].optimiser, iterations=6)
    config = dataclasses.replace(small(), snapshots=2, methods={"source_only": SupervisedSettings(optimiser=steps)})
    stopped = Run(config, tmp_path)
    real, left = train.step, 3

    def step(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "step", step)
        with pytest.raises(KeyboardInterrupt):
            train.train_method(stopped, "source_only")
    train.train_method(Run(config, tmp_path), "source_only")
    found = sorted(path.name for path in (tmp_path / "source_only").glob("step-*"))
    assert found == [f"step-{k:06d}" for k in (3, 4, 5, 6)]  # and the last two that are no snapshots


def test_a_replacement_that_was_cut_short(tmp_path: Path) -> None:
    """Between its two renames the old one counts; afterwards the new one does, and the old one goes."""
    old = save(tmp_path, 4, 1.0).rename(tmp_path / "step-000004.old")
    assert latest(tmp_path) == old
    assert (load_checkpoint(old).modules["network"]["weight"] == 1).all()
    prune(tmp_path, 1)
    assert latest(tmp_path) == old
    new = save(tmp_path, 4, 2.0)
    assert latest(tmp_path) == new
    prune(tmp_path, 1)
    assert list(tmp_path.iterdir()) == [new]


def test_a_renamed_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """It would be the newest for ever, and training would always go back to it."""
    save(tmp_path, 3).rename(tmp_path / "step-000009")
    good = save(tmp_path, 2)
    with pytest.warns(RuntimeWarning, match="step-000009: wanted the checkpoint of step 9, found that of 3"):
        assert latest(tmp_path) == good


@pytest.mark.parametrize("content", ["nothing", "another file", "a link to nowhere"])
def test_folders_that_are_no_checkpoints_are_passed_over(tmp_path: Path, content: str) -> None:
    good, folder = save(tmp_path, 1), tmp_path / "step-000002"
    folder.mkdir()
    if content == "another file":
        (folder / "weights.pth").write_bytes(b"PK")
    elif content == "a link to nowhere":
        (folder / "manifest.json").symlink_to(tmp_path / "nowhere")
    with pytest.warns(RuntimeWarning, match="step-000002: wanted a checkpoint folder with manifest.json, found none"):
        assert latest(tmp_path) == good


def test_a_round_whose_only_checkpoint_is_damaged_begins_anew(
    settings: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """And ends with the weights of the run that nothing happened to."""
    out, whole = tmp_path / "out", settings.parent / "whole"
    shutil.copytree(whole, out)
    for path in (out / "source_only" / "finished.json", *(out / "source_only").glob("step-00000[123]")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (weights,) = out.glob("source_only/step-*/network.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"passed over: .*network\.safetensors: the file is damaged"):
        assert trained(settings, "--out", out, "--resume") == 0
    wanted = next((whole / "source_only").glob("step-000004/network.safetensors"))
    assert weights.read_bytes() == wanted.read_bytes()


def test_a_checkpoint_of_another_training(settings: Path, tmp_path: Path) -> None:  # noqa: F811
    """Of the same network, with another optimiser."""
    made = Run(small(), tmp_path)
    (training,) = train.METHODS["source_only"].rounds(made, made.config.methods["source_only"], tmp_path / "x")
    modules = {key: getattr(training.method, key) for key in train.MODULES}
    optimisers = train.build_optimisers(training.method, training.optimiser)
    for state in ({}, {"network": torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1).state_dict()}):
        save_checkpoint(tmp_path / "x", step=1, modules=modules, state={"optimisers": state}, meta={"iteration": 1})
        with pytest.raises(UsageError, match="step-000001: wanted the state of this training's optimisers, found"):
            train.restore(tmp_path / "x", training.method, optimisers, train.Precision())


def test_a_checkpoint_of_other_classes_or_of_no_network(tmp_path: Path) -> None:
    made = Run(small(), tmp_path)
    with pytest.raises(UsageError, match=r"step-000001: wanted the classes .*, found road, sky, car, quay"):
        made.network_at(small_checkpoint(tmp_path / "other"))
    for method in ("flow", "of_a_later_version"):
        checkpoint = open_checkpoint(small_checkpoint(tmp_path / method, method=method))
        with pytest.raises(UsageError, match=f"step-000001: wanted a segmentation network, found that of {method}"):
            network_of(checkpoint, torch.device("cpu"))
    with pytest.raises(UsageError, match="step-000007: wanted a segmentation network, found that of None"):
        network_of(load_checkpoint(save(tmp_path, 7)), torch.device("cpu"))


# --- pseudo labels


def test_a_lost_pseudo_label_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With those of the clips after it, whose thresholds come from it."""
    labels = run(tmp_path / "whole")
    whole = files(tmp_path / "whole")
    second = next(clip for clip in noisy_clips().clips if clip.name == labels.manifest[2]["clip"])
    (tmp_path / "whole" / second.name / "0001.png").unlink()
    run(tmp_path / "whole")
    assert files(tmp_path / "whole") == whole
    assert f"{second.name}/0001.png: is missing; labelling {second.name} and the" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "flipped", "another size", "another class"])
def test_a_damaged_pseudo_label_is_named(tmp_path: Path, damage: str) -> None:
    labels, clip = run(tmp_path), noisy_clips().clips[0]
    path = labels.path(clip, 1)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-20])
    elif damage == "flipped":
        path.write_bytes(content[:60] + bytes([content[60] ^ 8]) + content[61:])
    else:
        Image.fromarray(np.full((24, 40 - (damage == "another size")), 3, np.uint8)).save(path)
    tubes = Tubes(noisy_clips(), length=3, step=1, augment=Augment(), seed=0, labels=labels)
    with pytest.raises(UsageError, match=r"clip0/0001\.png: wanted (a whole image|pseudo labels of 3 classes)"):
        tubes._sample(SimpleNamespace(epoch=0, index=0))  # type: ignore[arg-type]


def test_an_edited_manifest_of_pseudo_labels_is_refused(tmp_path: Path) -> None:
    """Thresholds go on to every later clip."""
    run(tmp_path)
    path = tmp_path / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    entry = json.loads(lines[1])
    theta = [entry["theta"][0] - 0.01, *entry["theta"][1:]]
    for edited in (
        [lines[0], json.dumps(entry | {"theta": theta}) + "\n", *lines[2:]],
        [lines[0], lines[1][: len(lines[1]) // 2]],
        [*lines[:2], "3\n"],
    ):
        path.write_text("".join(edited))
        with pytest.raises(UsageError, match=r"manifest\.jsonl: wanted a manifest of pseudo labels, found: "):
            run(tmp_path)
        with pytest.raises(UsageError, match=r"manifest\.jsonl: wanted a manifest"):
            pseudo.read_labels(tmp_path)
    for edited in ([lines[0], *lines[:0:-1]], [*lines, lines[-1]]):
        path.write_text("".join(edited))
        with pytest.raises(UsageError, match=r"manifest\.jsonl: wanted the clips of the data set in their order"):
            run(tmp_path)


# --- flow


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_cut_off_flow_is_noticed_at_the_start_and_made_again(tmp_path: Path, size: int) -> None:
    data = noisy_clips()
    precompute(ExactFlow(), data, tmp_path)
    cached, path = CachedFlow(tmp_path, data, "exact"), pair_path(tmp_path, data.clips[1], 1, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    with pytest.raises(UsageError, match=rf"{path}: not all there yet; run `python -m vda flow`"):
        cached.check(data, {1})
    assert precompute(ExactFlow(), data, tmp_path) == 1
    assert path.read_bytes() == whole


# --- logs, settings and results


def test_torn_and_foreign_lines_of_a_log(tmp_path: Path) -> None:
    path, good = tmp_path / "log.jsonl", [{"iteration": k, "seg": 0.1 * k} for k in range(4)]
    assert read_log(path) == []
    torn = [b"\x00" * 40, b"\xff\xfe", b"3", b"{}", b'{"iteration": "x"}', b'{"iteration": 9, "se', b"null"]
    lines = [line for pair in zip(map(json.dumps, good), torn, strict=False) for line in (pair[0].encode(), pair[1])]
    path.write_bytes(b"\n".join([*lines, *torn[4:]]))
    assert read_log(path) == good
    trim_log(path, 2)
    assert path.read_text() == "".join(json.dumps(entry) + "\n" for entry in good[:2])


@pytest.mark.parametrize("content", [b"", b"a: [", b"\xff\xfe", b"seed: 5\n", b"sed: 5\n"])
def test_a_damaged_or_edited_config(
    settings: Path,  # noqa: F811
    tmp_path: Path,
    content: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    assert trained(settings, "--out", tmp_path, "--resume") == 2
    sentence = capsys.readouterr().err
    assert sentence.startswith(f"error: {tmp_path}")
    assert len(sentence.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


@pytest.mark.parametrize("content", [*TORN, b"[]", b"3", b"{}"])
def test_a_damaged_note_of_the_result(tmp_path: Path, content: bytes) -> None:
    small_checkpoint(tmp_path)
    (tmp_path / "finished.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"finished\.json: wanted the name of the result's folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [*TORN, b"[]", b"3", b'{"model": "another"}'])
@pytest.mark.filterwarnings("ignore:.*wanted kept results, the file is damaged")
def test_damaged_scores_are_computed_again(
    settings: Path,  # noqa: F811
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = settings.parent / "whole" / "source_only" / "scores.json"
    whole = path.read_bytes()
    made = Run(small(), settings.parent / "whole")
    wanted = scored(made, "source_only")
    monkeypatch.setattr("vda.choice._snapshot", lambda *_: {k: v for k, v in wanted.items() if k != "rules"})
    path.write_bytes(content)
    assert scored(made, "source_only")["miou"] == wanted["miou"]
    path.write_bytes(whole)
    monkeypatch.setattr("vda.choice._snapshot", None)
    assert scored(made, "source_only") == wanted


@pytest.mark.parametrize("content", [*TORN, b"[]", b"3", b"null"])
@pytest.mark.filterwarnings("ignore:.*wanted kept results, the file is damaged")
def test_a_damaged_p_miou_is_computed_again(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = SimpleNamespace(coverage=0.25)
    data = dataset(scrolling_clip("a", 3))
    made: Any = SimpleNamespace(pseudo_labels=lambda *_: labels, target=data)
    monkeypatch.setattr(proportion, "pseudo_scores", lambda *_: {"miou": 0.5, "frames": 3})
    (tmp_path / "p-miou.json").write_bytes(content)
    found = proportion.at_proportion(made, tmp_path, Pseudo(), 0.25, tmp_path)
    assert (found["p_miou"], found["proportion"]) == (0.5, 0.25)
    assert proportion.at_proportion(SimpleNamespace(), tmp_path, Pseudo(), 0.25, tmp_path) == found  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["{}", "3", '["x"]', "[-1]", "[1000000]"])
def test_a_foreign_selection_of_tubes_is_refused(tmp_path: Path, content: str) -> None:
    """A torn one is chosen again, as kept results are; what can be read but is no choice is refused."""
    made = Run(small(), tmp_path)
    choice: Any = SimpleNamespace(augment=Augment(), pool=0.5)
    (tmp_path / SELECTION).write_text(content)
    with pytest.raises(UsageError, match=r"selection\.json: wanted numbers of the \d+ tubes, found something else"):
        matched_source(made, choice, nn.Identity(), SimpleNamespace(), tmp_path, 0)  # type: ignore[arg-type]
