"""From words to settings: scenarios, recipes, tables, and what is said to a wrong name. Nothing is trained."""

from pathlib import Path

import pytest

from vda.cli import parse
from vda.config import Config, load_yaml
from vda.data.class_maps import CLASS_MAPS, maps_of
from vda.data.frame_files import split_words
from vda.errors import UsageError
from vda.recipes import COMPARED, RECIPES, SCENARIOS
from vda.tables.command import parse as parse_table


def test_without_a_name_it_is_the_whole_path_on_the_embedded_world() -> None:
    for argv in ([], ["--seed", "3"], ["embedded", "--seed", "3"]):
        config = parse(argv, "")
        assert config.recipe == "embedded"
        assert config.training == ("source_only", "vat", "vst", "oracle")
        assert config.seed == (3 if argv else 0)


@pytest.mark.parametrize("argv", [["recipe", "iast", "--data", "camvid"], ["recipe", "--data=camvid", "iast"]])
def test_recipe_on_a_scenario(argv: list[str]) -> None:
    config = parse([*argv, "--iast.rounds", "2", "--data.size", "64", "96"], "")
    assert config.recipe == "camvid-iast"
    assert config.training == ("source_only", "iat", "iast")
    assert config.methods["iast"].rounds == 2
    assert (config.data.source, config.data.size) == ("camvid/sunny", (64, 96))


def test_table_on_a_scenario() -> None:
    command, scenario = parse_table(["3", "--data", "camvid", "--seeds", "0", "1", "--rows", "vat"])
    assert (command.table, command.seeds, command.rows, scenario) == ("3", (0, 1), ("vat",), "camvid")
    assert command.data == SCENARIOS["camvid"].base.data


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["embeded"], "scenario: wanted one of .* found 'embeded', perhaps you meant embedded"),
        (["cbst"], "cbst is a recipe: python train.py recipe cbst"),
        (["recipe", "cbts"], "recipe: wanted one of .* perhaps you meant cbst"),
        (["recipe", "cbst", "--data"], "--data: wanted one of .* found ''"),
        (["recipe", "cbst", "--data", "camvit"], "--data: wanted one of .* perhaps you meant camvid"),
        (["recipe", "cbst", "--data", "flow"], "--data: wanted one of embedded, .* found 'flow'"),
    ],
)
def test_wrong_name_is_named(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(argv, "")


def test_wrong_table_is_named() -> None:
    with pytest.raises(UsageError, match=r"setting table: wanted one of 1, .*, 12, found 13"):
        parse_table(["13"])
    with pytest.raises(UsageError, match=r"setting rows: wanted some of .* found cbst"):
        parse_table(["3", "--rows", "cbst"])
    with pytest.raises(SystemExit):  # which table it is has to be said
        parse_table([])


def test_help_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(argv: list[str]) -> str:
        with pytest.raises(SystemExit) as end:
            parse_table(argv[1:]) if argv[0] == "table" else parse(argv, "about")
        assert end.value.code == 0
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    assert all(name in shown(["--help"]) for name in SCENARIOS)
    assert all(name in shown(["recipe", "--help"]) for name in RECIPES)
    cbst = shown(["recipe", "cbst", "--data", "camvid", "--help"])
    for words in ("Trains source_only, cbst on camvid", *COMPARED, "--cbst.source-share", "(default: camvid-cbst)"):
        assert words in cbst
    for words in ("Refinement of pseudo labels", *COMPARED, "--seeds"):
        assert words in shown(["table", "--help"])


@pytest.mark.parametrize("scenario", ["viper-cityscapes-vps", "synthia-cityscapes-vps"])
def test_scenarios_have_one_class_list(scenario: str) -> None:
    data = SCENARIOS[scenario].base.data
    lists = []
    for name in (data.source, data.target, data.validation):
        dataset, _, split = name.partition("/")
        known = maps_of({"cityscapes-vps": "cityscapes", "synthia-seq": "synthia"}.get(dataset, dataset))
        lists.append(tuple(CLASS_MAPS[split_words(dataset, split, known)[1]]))
    assert len(set(lists)) == 1


def test_yaml_wins_over_nothing_and_loses_to_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("recipe: mine\nmethods: {source_only: {}, cbst: {rounds: 2}}\nseed: 4\n")
    config = parse([str(tmp_path / "mine.yaml"), "--cbst.rounds", "5"], "")
    assert (config.recipe, config.seed, config.methods["cbst"].rounds) == ("mine", 4, 5)


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("-2E+1", -20.0), ("0.5", 0.5), ("3", 3.0)])
def test_yaml_numbers_with_an_exponent_are_numbers(text: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"methods: {{vat: {{tube_weight: {text}}}}}\n")
    assert load_yaml(path, Config()).methods["vat"].tube_weight == value
    path.write_text("methods: {vat: {tube_weight: 1e-x}}\n")
    with pytest.raises(UsageError, match="tube_weight wants float, found '1e-x'"):
        load_yaml(path, Config())
