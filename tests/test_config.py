"""Settings: from YAML, from the command line, and what makes two runs the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from vda.config import Config, digest, from_dict, load_yaml, method_digest, to_dict
from vda.errors import UsageError
from vda.options import Data, Optimiser
from vda.recipes import RECIPES, SCENARIOS, recipe


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_recipes_survive_yaml(scenario: str, tmp_path: Path) -> None:
    import yaml

    path = tmp_path / "config.yaml"
    for name in RECIPES:
        config = recipe(name, scenario)
        path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
        again = load_yaml(path, Config())
        assert again == config
        assert list(again.methods) == list(config.methods)  # their order is that of the training
        assert config.recipe.startswith(scenario)
        assert digest(again) == digest(config)


def test_recipes_start_from_what_comes_before() -> None:
    for name in RECIPES:
        seen = {""}
        for method, settings in recipe(name, "embedded").methods.items():
            assert settings.start in seen, (name, method)
            seen.add(method)


def test_rows_share_what_decides_the_same_numbers() -> None:
    def hashes(name: str, **changes: object) -> dict[str, str]:
        config = replace(recipe(name, "embedded"), **changes)  # type: ignore[arg-type]
        return {method: method_digest(config, method) for method in config.methods}

    assert hashes("cbst-star")["iat"] == hashes("iast")["iat"]
    assert hashes("ours")["vat"] == hashes("vst-fill-in")["vat"]
    assert hashes("ours")["vst"] != hashes("vst-fill-in")["vst"]
    assert hashes("cbst")["cbst"] != hashes("cbst-star")["cbst"]  # they start from different networks
    assert hashes("vst-from-image")["vat"] != hashes("ours")["vat"]
    assert hashes("ours", seed=1)["source_only"] != hashes("ours")["source_only"]
    assert hashes("pspnet-source-only")["source_only"] != hashes("ours")["source_only"]
    assert hashes("ours", recipe="other", device="cpu", snapshots=2) == hashes("ours")


def test_every_row_of_a_table_has_a_recipe() -> None:
    from vda.tables import TABLES

    for table in TABLES.values():
        assert all(row.recipe in {*RECIPES, ""} for row in table.rows if not table.proportions), table.number


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
        ({"methods": {"vat": {"lambda_avd": 1.0}}}, r"vat: unknown setting 'lambda_avd', perhaps you meant lambda_adv"),
        ({"methods": {"vatt": {}}}, r"methods: unknown method 'vatt', perhaps you meant vat"),
        ({"methods": ["vat"]}, r"methods wants a mapping of methods, found \['vat'\]"),
        ({"seed": "one"}, r"setting seed wants int, found 'one'"),
        ({"seed": True}, r"setting seed wants int, found True"),
        ({"methods": {"vat": 3}}, r"vat wants a mapping, found 3"),
        ({"vat": {}}, r"unknown setting 'vat'"),
        ({"device": "gpu"}, r"device wants one of auto, cpu, cuda, found 'gpu'"),
        ({"data": {"size": [1, 2, 3]}}, r"size wants"),
        (
            {"methods": {"vst": {"refine": "strikt"}}},
            r"refine wants one of .*'strikt'; perhaps you meant strict",
        ),
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
    "tree",
    [
        {"data": {"tube_length": 0}},
        {"data": {"frame_step": 0}},
        {"data": {"size": [16, 64]}},
        {"network": {"width": 4}},
        {"occlusion": {"alpha": -1.0}},
        {"occlusion": {"threshold": 1.0}},
        {"snapshots": 0},
        {"methods": {"vst": {"pseudo": {"alpha": 2.0}}}},
        {"methods": {"vst": {"pseudo": {"theta_init": 1.0}}}},
        {"methods": {"vst": {"pseudo": {"cap": 0.0}}}},
        {"methods": {"vat": {"optimiser": {"iterations": 0}}}},
        {"methods": {"vat": {"optimiser": {"batch": 0}}}},
        {"methods": {"vst": {"optimiser": {"iterations": 10, "schedule_length": 5}}}},
        {"methods": {"cbst": {"rounds": 0}}},
        {"methods": {"cbst": {"source_share": 0.0}}},
        {"methods": {"fda": {"betas": [0.6]}}},
        {"methods": {"ccm": {"pool": 1.5}}},
        {"methods": {"intrada": {"easy": 1.0}}},
    ],
)
def test_impossible_value_is_refused(tree: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"setting [\w.]+.*: wanted .*, found"):
        from_dict(tree, Config(), "run.yaml")


def test_impossible_seed_is_refused() -> None:
    with pytest.raises(UsageError, match=r"setting seed: wanted 0 or more, found -1"):
        Config(seed=-1)


def test_values_get_their_types() -> None:
    tree = {"data": {"size": [48, 96], "source_root": "/data"}, "methods": {"vat": {"lambda_adv": 1}, "iat": None}}
    config = from_dict(tree, Config(), "x")
    assert config.data.size == (48, 96)
    assert config.data.source_root == Path("/data")
    assert isinstance(config.methods["vat"].lambda_adv, float)
    assert list(config.methods) == ["vat", "iat"]
    assert from_dict({"data": {"source_root": None}}, config, "x").data.source_root is None
