"""Tables of results against whole expected texts in each format, with means and deviations worked out by hand."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from vda.data.camvid import CLASSES as CAMVID_CLASSES
from vda.metrics import Scorer
from vda.tables import (
    RULES,
    TABLES,
    Row,
    Table,
    headline,
    latex,
    lay_out,
    lay_out_proportions,
    lay_out_rules,
    markdown,
    to_csv,
)
from vda.tables.layout import paper_order

# --- one small table, whole

SMALL = Table(
    "0",
    "50% of a & b",
    "There → here",
    ("road", "traffic sign"),
    (
        Row("Old", "", "-", (10.0, 20.0), 15.0),
        Row("Base_1", "base", "AT", (30.0, 40.0), 35.0, vpq=20.0),
        Row("New*", "new", "A+S", (50.0, 30.5), 40.25, vpq=25.5),
        Row("Oracle", "oracle", "-", (60.0, 70.0), 65.0, vpq=40.0),
    ),
    per_class="iou",
    remarks=("Read with care.",),
)


def scores(iou, miou, vpq, seed=0, classes=("Sign_Symbol", "Road"), **more):
    return {
        "classes": list(classes),
        "iou": iou,
        "vpq_per_class": iou,
        "miou": miou,
        "vpq": vpq,
        "frames": 12,
        "size": [36, 48],
        "dataset": "town_1/val",
        "seed": seed,
        "rule": "last",
        **more,
    }


# Base_1: IoU of Road 50, 60 -> 55 ± 10 / sqrt(2); mIoU 40, 43, -> 41.5 ± 3 / sqrt(2); VPQ^s 20, 20.
# Oracle: one seed; a class without a score.
SMALL_RESULTS = {
    "Base_1": [scores([0.3, 0.5], 0.4, 0.2), scores([0.26, 0.6], 0.43, 0.2, seed=1)],
    "Oracle": [scores([None, 0.9], 0.9, 0.5)],
}
NEW = scores([0.31, 0.5], 0.405, 0.21, seed=7)

SMALL_MARKDOWN = r"""**50% of a \& b (Table 0 of the paper)**

| Method                | Arch. |             Road | Sign\_Symbol |             mIoU | mIoU (paper) |        VPQ^s | VPQ^s (paper) |
| --------------------- | ----- | ---------------: | -----------: | ---------------: | -----------: | -----------: | ------------: |
| Old (literature only) | -     |            10.00 |        20.00 |                  |        15.00 |              |               |
| Base\_1               | AT    | **55.00 ± 7.07** | 28.00 ± 2.83 | **41.50 ± 2.12** |        35.00 | 20.00 ± 0.00 |         20.00 |
| Base\_1 (paper)       | AT    |            30.00 |    **40.00** |                  |              |              |               |
| New\*                 | A+S   |            50.00 |    **31.00** |            40.50 |    **40.25** |    **21.00** |     **25.50** |
| New\* (paper)         | A+S   |        **50.00** |        30.50 |                  |              |              |               |
| Oracle                | -     |            90.00 |            - |            90.00 |        65.00 |        50.00 |         40.00 |
| Oracle (paper)        | -     |            60.00 |        70.00 |                  |              |              |               |

In percent; mean ± sample standard deviation over the seeds, the bare number for one; a dash: not run.

Our runs: town\_1/val, 2 classes (Sign\_Symbol, Road), 36 × 48 pixels (H × W), 12 labelled frames, checkpoint rule: last.

Seeds: 0, 1 (Base\_1); 7 (New\*); 0 (Oracle).

Paper: There → here, 2 classes.

Read with care.
"""  # noqa: E501

SMALL_CSV = """\
Method,Arch.,numbers,Road,Road std,Sign_Symbol,Sign_Symbol std,mIoU,mIoU std,mIoU (paper),VPQ^s,VPQ^s std,VPQ^s (paper),data set,classes,height,width,labelled frames,seeds,checkpoint rule
Old,-,literature only,10.00,,20.00,,,,15.00,,,,,,,,,,
Base_1,AT,ours,55.00,7.07,28.00,2.83,41.50,2.12,35.00,20.00,0.00,20.00,town_1/val,"Sign_Symbol, Road",36,48,12,"0, 1",last
Base_1,AT,paper,30.00,,40.00,,,,,,,,,,,,,,
New*,A+S,ours,50.00,,31.00,,40.50,,40.25,21.00,,25.50,town_1/val,"Sign_Symbol, Road",36,48,12,7,last
New*,A+S,paper,50.00,,30.50,,,,,,,,,,,,,,
Oracle,-,ours,90.00,,,,90.00,,65.00,50.00,,40.00,town_1/val,"Sign_Symbol, Road",36,48,12,0,last
Oracle,-,paper,60.00,,70.00,,,,,,,,,,,,,,
"""  # noqa: E501

SMALL_LATEX = r"""% \usepackage{booktabs,graphicx}
\begin{table}
\centering
\caption{50\% of a \& b (Table 0 of the paper)}
\label{tab:table-0}
\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%
\begin{tabular}{llrrrrrr}
\toprule
Method & Arch. & Road & Sign\_Symbol & mIoU & mIoU (paper) & VPQ$^s$ & VPQ$^s$ (paper) \\
\midrule
Old (literature only) & - & 10.00 & 20.00 &  & 15.00 &  &  \\
Base\_1 & AT & \textbf{55.00 $\pm$ 7.07} & 28.00 $\pm$ 2.83 & \textbf{41.50 $\pm$ 2.12} & 35.00 & 20.00 $\pm$ 0.00 & 20.00 \\
Base\_1 (paper) & AT & 30.00 & \textbf{40.00} &  &  &  &  \\
New* & A+S & 50.00 & \textbf{31.00} & 40.50 & \textbf{40.25} & \textbf{21.00} & \textbf{25.50} \\
New* (paper) & A+S & \textbf{50.00} & 30.50 &  &  &  &  \\
Oracle & - & 90.00 & -- & 90.00 & 65.00 & 50.00 & 40.00 \\
Oracle (paper) & - & 60.00 & 70.00 &  &  &  &  \\
\bottomrule
\end{tabular}}

\smallskip
\raggedright\footnotesize
In percent; mean $\pm$ sample standard deviation over the seeds, the bare number for one; a dash: not run.
Our runs: town\_1/val, 2 classes (Sign\_Symbol, Road), 36 $\times$ 48 pixels (H $\times$ W), 12 labelled frames, checkpoint rule: last.
Seeds: 0, 1 (Base\_1); 7 (New*); 0 (Oracle).
Paper: There $\rightarrow$ here, 2 classes.
Read with care.
\end{table}
"""  # noqa: E501


def test_small_table_whole() -> None:
    grid = lay_out(SMALL, {**SMALL_RESULTS, "New*": [NEW]})
    assert markdown(grid) == SMALL_MARKDOWN
    assert to_csv(grid) == SMALL_CSV
    assert latex(grid) == SMALL_LATEX


def cells(text: str) -> dict[str, list[str]]:
    """Rows of a Markdown table by their first cell."""
    lines = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_rows_that_were_not_run_show_a_dash() -> None:
    for results in ({}, {"Base_1": []}):
        table = cells(markdown(lay_out(SMALL, results)))
        assert table["Method"][1:3] == ["road", "traffic sign"]
        assert table[r"Base\_1"] == ["AT", "-", "-", "-", "35.00", "-", "20.00"]
        assert table[r"Base\_1 (paper)"][1:3] == ["30.00", "**40.00**"]
    assert "Our runs: none yet." in markdown(lay_out(SMALL, {}))
    table = cells(markdown(lay_out(SMALL, SMALL_RESULTS)))
    assert table[r"New\*"] == ["A+S", "-", "-", "-", "**40.25**", "-", "**25.50**"]
    assert table[r"Base\_1"][3] == "41.50 ± 2.12"  # nothing to be better than but the oracle: not bold


def test_mean_and_deviation_of_three_seeds() -> None:
    # 50, 52, 57: mean 53, deviations -3, -1, 4, sum of squares 26, divided by 2 -> sqrt(13) = 3.6056
    runs = [scores([0.5, 0.5], miou, miou / 2, seed) for seed, miou in enumerate((0.50, 0.52, 0.57))]
    record = records(to_csv(lay_out(TABLES["6"], {"Base": runs})))[0]
    assert (record["mIoU"], record["mIoU std"], record["mIoU (paper)"]) == ("53.00", "3.61", "51.52")
    assert float(record["VPQ^s std"]) == pytest.approx(100 * np.std([0.25, 0.26, 0.285], ddof=1), abs=0.005)


def test_equal_printed_numbers_share_the_best() -> None:
    results = {label: [scores([0.5, 0.5], miou, 0.2)] for label, miou in (("Base", 0.50001), ("Base+fill-in", 0.5))}
    results["Base+cut-out (ours)"] = [scores([0.5, 0.5], 0.4, 0.2)]
    table = cells(markdown(lay_out(TABLES["6"], results)))
    assert [row[0] for row in table.values()][2:] == ["**50.00**", "**50.00**", "40.00"]
    assert [row[2] for row in table.values()][2:] == ["20.00"] * 3


def test_other_classes_get_no_rows_of_the_paper() -> None:
    results = {"Ours": [scores([0.25, 0.75], 0.5, 0.5, classes=("road", "sky"))]}
    text = markdown(lay_out(TABLES["12"], results))
    table = cells(text)
    assert table["Method"][1:4] == ["road", "sky", "mIoU"]
    assert table["Ours"] == ["A+S", "25.00", "75.00", "50.00", "**43.82**", "50.00", ""]
    assert table["Source-only (literature only)"] == ["-", "", "", "", "23.49", "", ""]
    assert "Ours (paper)" not in table
    assert "not comparable" in text
    assert "not comparable" not in markdown(lay_out(SMALL, SMALL_RESULTS))


def test_same_classes_in_another_order_stand_in_the_papers() -> None:
    iou = [i / 100 for i in range(11)]  # of CamVid in its own order: Sky 0, Building 1, ...
    table = cells(markdown(lay_out(TABLES["8"], {"Ours": [scores(iou, 0.05, 0.05, classes=CAMVID_CLASSES)]})))
    assert table["Method"][1:12] == [
        *(
            "Bicyclist",
            "Building",
            "Car",
            "Pole",
            "Fence",
            "Pedestrian",
            "Road",
            "Sidewalk",
            "SignSymbol",
            "Sky",
            "Tree",
        )
    ]
    places = (10, 1, 8, 2, 7, 9, 3, 4, 6, 0, 5)
    assert table["Ours"][1:12] == [f"{place}.00" for place in places]
    assert table["Ours (paper)"][1] == "**69.78**"
    assert paper_order(("a", "b"), ("A", "b ")) == [0, 1]
    assert paper_order(("a", "b"), ("a", "b", "c")) is None
    assert paper_order(("pole", "fence"), ("pole", "bicycle")) is None


def test_scores_of_a_scorer_go_in() -> None:
    label = np.array([[0, 1, 2, 255], [0, 1, 2, 2]], np.uint8)
    scorer = Scorer(("road", "sky", "car", "bus"))
    scorer.add_frame(np.array([[0, 1, 1, 0], [0, 1, 2, 2]], np.uint8), label)
    found = records(to_csv(lay_out(TABLES["2"], {"Ours": [scorer.scores()]})))
    ours = next(record for record in found if record["Method"] == "Ours")
    # IoU: 2/2, 2/3, 2/3; bus nowhere. One frame, three matches: VPQ^s is their mean, 77.78.
    assert [ours[key] for key in ("road", "sky", "bus", "mIoU", "VPQ^s")] == ["100.00", "66.67", "", "77.78", "77.78"]
    assert [ours[key] for key in ("data set", "height", "width", "labelled frames", "seeds")] == [
        "?",
        "2",
        "4",
        "1",
        "?",
    ]


# --- checkpoint rules, proportions


def with_rules(last: float, entropy: float, oracle: float, seed: int = 0) -> dict[str, object]:
    rules = {"last": last, "entropy": entropy, "oracle": oracle}
    return scores(
        [last, last], last, last / 2, seed, rules={rule: {"miou": x, "vpq": x / 2} for rule, x in rules.items()}
    )


def test_checkpoint_rules() -> None:
    results = {
        "Base": [with_rules(0.4, 0.5, 0.6), with_rules(0.6, 0.5, 0.7, 1)],
        "Base+fill-in": [with_rules(0.45, 0.3, 0.9)],
    }
    text = markdown(lay_out_rules(TABLES["6"], results))
    table = cells(text)
    label_free = RULES[:3]
    assert table["Method"] == [
        *(f"mIoU, {rule}" for rule in label_free),
        *(f"VPQ^s, {rule}" for rule in label_free),
        *("mIoU, oracle", "VPQ^s, oracle"),
    ]
    assert table["Base"][:3] == ["**50.00 ± 14.14**", "**50.00 ± 0.00**", "-"]
    assert table["Base"][6:] == ["65.00 ± 7.07", "32.50 ± 3.54"]
    assert table["Base+fill-in"] == ["45.00", "30.00", "-", "22.50", "15.00", "-", "**90.00**", "**45.00**"]
    assert table["Base+cut-out (ours)"] == ["-"] * 8
    assert "checkpoint rule: by column" in text
    # The headline does not move with what another rule picks.
    assert cells(markdown(lay_out(TABLES["6"], results)))["Base"][0] == "**50.00 ± 14.14**"
    plain = cells(markdown(lay_out_rules(SMALL, SMALL_RESULTS)))
    assert plain[r"Base\_1"][:2] == ["AT", "41.50 ± 2.12"]
    assert "Old (literature only)" not in plain


def test_headline_is_the_last_checkpoint() -> None:
    last = scores([0.3, 0.5], 0.4, 0.2)
    assert headline({"seed": 3, "rules": {"last": last, "oracle": NEW}})["miou"] == 0.4
    assert headline({"seed": 3, "rules": {"last": {"seed": 3, **last}}})["rule"] == "last"
    with pytest.raises(ValueError, match="rule 'last'"):
        headline({**last, "miou": 0.41, "rules": {"last": last}})
    with pytest.raises(ValueError, match="without target labels"):
        headline({**last, "rule": "oracle"})
    with pytest.raises(ValueError, match="'classes'"):
        headline({"rules": {"oracle": last}})


def test_proportions() -> None:
    results = {
        ("class_balanced", 0.3, 0): 0.6,
        ("class_balanced", 0.3, 1): 0.7,
        ("clip_adaptive", 0.3, 0): 0.655,
        ("clip_adaptive", 0.4, 0): np.float64(0.5),
    }
    about = scores([], None, None, classes=("road", "sky"))
    text = markdown(lay_out_proportions(TABLES["7"], results, about))
    table = cells(text)
    assert table["Policy"] == ["0.3", "0.3 (paper)", "0.4", "0.4 (paper)"]
    assert table["CB"] == ["65.0 ± 7.1", "67.8", "-", "64.8"]
    assert table["IA"] == ["-", "67.9", "-", "66.4"]
    assert table["Ours"] == ["**65.5**", "**68.8**", "50.0", "**67.1**"]
    assert "Seeds: 0, 1 (CB); 0 (Ours)." in text
    with pytest.raises(ValueError, match=r"'random' at 0\.3"):
        lay_out_proportions(TABLES["7"], {("random", 0.3, 0): 0.5}, about)
    with pytest.raises(ValueError, match=r"at 0\.5"):
        lay_out_proportions(TABLES["7"], {("clip_adaptive", 0.5, 0): 0.5}, about)
    with pytest.raises(ValueError, match="fraction"):
        lay_out_proportions(TABLES["7"], {("clip_adaptive", 0.4, 0): 67.1}, about)
    with pytest.raises(ValueError, match="proportions"):
        lay_out_proportions(TABLES["6"], {}, about)
    with pytest.raises(ValueError, match="lay_out_proportions"):
        lay_out(TABLES["7"], {})


# --- hostile input

NASTY = ('a, "b"', "x|y\nz", r"50%_$#&{}~^\end", "<i>*c*</i> `d` [e]", "é → ±")


def nasty() -> dict[str, list[dict[str, object]]]:
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    return {"Base_1": [scores(values, 0.3, 0.3, classes=NASTY, dataset=NASTY[0])]}


def test_csv_comes_back_from_the_csv_module() -> None:
    found = records(to_csv(lay_out(SMALL, nasty())))
    assert all(None not in record and None not in record.values() for record in found)
    ours = found[1]
    assert [ours[name] for name in NASTY] == ["10.00", "20.00", "30.00", "40.00", "50.00"]
    assert ours["data set"] == NASTY[0]
    assert ours["classes"] == ", ".join(NASTY)


def test_markdown_is_escaped() -> None:
    head = markdown(lay_out(SMALL, nasty())).splitlines()[2]
    for name in (r"x\|y z", r"50%\_\$#\&{}\~^\\end", r"\<i\>\*c\*\</i\> \`d\` \[e\]"):
        assert name in head
    assert head.replace(r"\|", "").count("|") == 2 + 5 + 4 + 1  # cells and one: heads, classes, means


def test_latex_is_escaped() -> None:
    text = latex(lay_out(SMALL, nasty()))
    assert r"50\%\_\$\#\&\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}end & " in text
    assert r"x\textbar{}y z & " in text
    assert r"é $\rightarrow$ $\pm$ & " in text
    assert r"\textless{}i\textgreater{}*c*\textless{}/i\textgreater{} `d` [e]" in text
    assert r"a, {\char34}b{\char34}" in text
    assert text.startswith("% \\usepackage{booktabs,graphicx}\n\\begin{table*}")
    starred = Table("0", "t", "s", ("a",), (Row("[1]", "x", miou=1.0), Row("*", "y", miou=2.0)), ("Method",))
    lines = latex(lay_out(starred, {})).splitlines()
    assert r"{}[1] & -- & 1.00 & -- &  \\" in lines  # else [1] is the argument of the line break before it
    assert r"{}* & -- & \textbf{2.00} & -- &  \\" in lines


def bad(**changes: object) -> dict[str, list[dict[str, object]]]:
    return {"Base_1": [{**scores([0.3, 0.5], 0.4, 0.2), **changes}]}


@pytest.mark.parametrize(
    ("results", "error", "words"),
    [
        ({"Base": []}, ValueError, r"Base_1, New\*, Oracle.* got 'Base'"),
        ({"Old": [NEW]}, ValueError, "got 'Old'"),
        ({"New*": NEW}, TypeError, "one mapping"),
        (bad(miou=51.9), ValueError, r"'miou'.*0\.\.1, got 51.9"),
        (bad(vpq=-0.1), ValueError, "'vpq'"),
        (bad(vpq="0.2"), TypeError, "'vpq'"),
        (bad(iou=[0.3]), ValueError, r"'iou'.*2 classes, got 1"),
        (bad(iou=[0.3, True]), TypeError, "'iou'"),
        ({"New*": [NEW, NEW]}, ValueError, "each seed once, got 7, 7"),
        ({"New*": [NEW, {**NEW, "seed": 8, "frames": 13}]}, ValueError, "one data set"),
        ({"New*": [NEW, {**NEW, "seed": 8, "dataset": "b"}]}, ValueError, "one data set"),
        ({"New*": [NEW], "Base_1": [{**NEW, "classes": ["a", "b"]}]}, ValueError, "same classes"),
        ({"New*": [{key: NEW[key] for key in ("classes", "miou", "vpq")}]}, ValueError, "'iou'"),
        ({"New*": [{key: NEW[key] for key in ("classes", "miou", "iou")}]}, ValueError, "'vpq'"),
    ],
)
def test_bad_results_are_refused(results, error, words) -> None:
    with pytest.raises(error, match=words):
        lay_out(SMALL, results)


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ([{**NEW, "rules": {"best": NEW}}], "got 'best'"),
        ([{**NEW, "rules": {"oracle": {"miou": 0.5}}}], "'oracle'.*'vpq'"),  # not filled in from the last one's
        ([{**NEW, "rules": {"oracle": NEW}}, {**NEW, "seed": 8}], "same checkpoint rules"),
        ([{**NEW, "rules": {"oracle": {**NEW, "frames": 13}}}], "one data set and size for all rules"),
    ],
)
def test_bad_rules_are_refused(seeds, words) -> None:
    with pytest.raises(ValueError, match=words):
        lay_out_rules(SMALL, {"New*": seeds})


def test_a_score_that_is_not_there_is_left_out() -> None:
    runs = [scores([0.3, None], 0.3, None), scores([float("nan"), None], 0.5, None, seed=1)]
    record = records(to_csv(lay_out(SMALL, {"Base_1": runs})))[1]
    assert (record["Sign_Symbol"], record["Sign_Symbol std"], record["Road"]) == ("30.00", "", "")
    assert (record["mIoU"], record["mIoU std"], record["VPQ^s"]) == ("40.00", "14.14", "")
