"""Settings: from YAML, from the command line, and what makes two runs the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from vda.config import Config, Data, Optimiser, digest, from_dict, load_yaml, to_dict
from vda.errors import UsageError
from vda.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_survives_yaml(name: str, tmp_path: Path) -> None:
    import yaml

    config = RECIPES[name][1]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert load_yaml(path, Config()) == config
    assert config.recipe == name


def test_digest_ignores_where_and_how_but_not_what() -> None:
    config = Config()
    assert digest(replace(config, out=Path("a"), resume=True, device="cpu", checkpoint_every=7)) == digest(config)
    assert digest(replace(config, seed=1)) != digest(config)
    assert digest(replace(config, data=Data(size=(64, 64)))) != digest(config)
    moved = replace(config, data=replace(config.data, source_root=Path("b"), workers=3))
    assert digest(moved) == digest(config)


def test_schedules() -> None:
    # golden example 1: 2.5e-4 (1 - 60000 / 250000)^0.9 = 1.95287e-4
    poly = Optimiser(iterations=120_000, schedule_length=250_000, lr=2.5e-4)
    assert poly.lr * poly.factor(60_000) == pytest.approx(1.95287e-4, rel=1e-5)
    assert poly.factor(0) == 1.0
    cosine = Optimiser(iterations=100, schedule="cosine")
    assert cosine.factor(0) == 1.0
    assert cosine.factor(50) == pytest.approx(0.5005)
    assert cosine.factor(100) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"sead": 1}, r"unknown setting 'sead', perhaps you meant seed"),
        ({"vat": {"lambda_avd": 1.0}}, r"vat: unknown setting 'lambda_avd', perhaps you meant lambda_adv"),
        ({"seed": "one"}, r"setting seed wants int, found 'one'"),
        ({"seed": True}, r"setting seed wants int, found True"),
        ({"vat": 3}, r"setting vat wants a mapping, found 3"),
        ({"device": "gpu"}, r"device wants one of auto, cpu, cuda, found 'gpu'"),
        ({"data": {"size": [1, 2, 3]}}, r"size wants"),
        ({"phases": ["vatt"]}, r"wants one of .* found 'vatt'; perhaps you meant vat"),
    ],
)
def test_wrong_setting_is_named(tree: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_dict(tree, Config(), "run.yaml")


@pytest.mark.parametrize("text", ["- 1\n", "a: [", "!!python/object/apply:os.system ['true']"])
def test_wrong_yaml_is_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"run\.yaml"):
        load_yaml(path, Config())


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "tube_length", 1),
        ("data", "frame_step", 0),
        ("data", "size", [16, 64]),
        ("network", "width", 4),
        ("pseudo", "alpha", 2.0),
        ("pseudo", "theta_init", 1.0),
        ("occlusion", "alpha", -1.0),
        ("occlusion", "threshold", 1.0),
        ("vat", "optimiser", {"iterations": 0}),
        ("vat", "optimiser", {"batch": 0}),
        ("vst", "optimiser", {"iterations": 10, "schedule_length": 5}),
    ],
)
def test_impossible_value_is_refused(section: str, key: str, value: object) -> None:
    with pytest.raises(UsageError, match=r"setting [\w.]+: wanted .*, found"):
        from_dict({section: {key: value}}, Config(), "run.yaml")
    with pytest.raises(UsageError, match=r"setting seed: wanted 0 or more, found -1"):
        Config(seed=-1)


def test_values_get_their_types() -> None:
    config = from_dict({"data": {"size": [48, 96], "source_root": "/data"}, "vat": {"lambda_adv": 1}}, Config(), "x")
    assert config.data.size == (48, 96)
    assert config.data.source_root == Path("/data")
    assert isinstance(config.vat.lambda_adv, float)
    assert from_dict({"data": {"source_root": None}}, config, "x").data.source_root is None
