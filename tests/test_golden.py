"""The golden examples, nineteen numbers worked out by hand: those that belong to no other file, and where all are.

A test says which one it holds in a comment, "golden example N".
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest
from torch import nn

import train
from vda.methods.supervised import SourceOnly
from vda.models import build_network
from vda.options import Optimiser

EXAMPLES = {
    1: "poly schedule: 2.5e-4 (1 - 60000 / 250000)^0.9 = 1.95287e-4",
    2: "sizes of the discriminator's scores",
    3: "sequence discriminator of two frames = image discriminator of 2 K channels",
    4: "self-information of uniform and of one-hot maps",
    5: "robust entropy of a normalised entropy of 0.5 and of 1",
    6: "Dice of (0.8, 0.6) against (1, 0), of an absent class, of a perfect prediction",
    7: "CBST's thresholds of five confidences",
    8: "CBST's labels by the largest P / theta",
    9: "LRENT's soft labels, and which are kept",
    10: "instance-adaptive thresholds of ten confidences, both rules, and of an absent class",
    11: "cap of the thresholds at 0.999",
    12: "portion alpha theta^8 for six theta",
    13: "FDA's windows, the exchange of means, identity, phases",
    14: "IAST's regulariser of uniform logits",
    15: "operating points of the occlusion test",
    16: "aggregation of identical and of occluded frames",
    17: "consensus of a constant map, and where the reference has no label",
    18: "warp of a ramp by (3, 0)",
    19: "Dice of a tube against the mean of its frames' Dices",
}


# golden example 1
def test_poly_schedule_of_the_training_loop() -> None:
    """The backbone at the rate of the schedule, the head at ten times it, the discriminators by the same factor."""
    method = SourceOnly(build_network("deeplab-resnet18", 2, width=8))
    method.discriminators["main"] = nn.Linear(1, 1)
    optimiser = Optimiser(iterations=120_000, schedule_length=250_000, lr=2.5e-4, schedule="poly")
    optimisers = train.build_optimisers(method, optimiser)
    train.set_learning_rates(optimisers, optimiser, 60_000)
    rates = {group["name"]: group["lr"] for group in optimisers["network"].param_groups}
    assert rates == {"body": pytest.approx(1.95287e-4, rel=1e-5), "head": pytest.approx(1.95287e-3, rel=1e-5)}
    (critics,) = optimisers["discriminators"].param_groups
    assert critics["lr"] == pytest.approx(1e-4 * 1.95287 / 2.5, rel=1e-5)
    train.set_learning_rates(optimisers, optimiser, 0)
    assert optimisers["network"].param_groups[0]["lr"] == 2.5e-4


def found() -> dict[int, list[str]]:
    """FILE::TEST of every test that names an example, above itself or inside."""
    where = defaultdict(list)
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
                while first and lines[first - 1].startswith("#"):
                    first -= 1
                for number in re.findall(r"# golden example (\d+)\b", "\n".join(lines[first : node.end_lineno])):
                    where[int(number)].append(f"{path.name}::{node.name}")
    return where


def test_every_golden_example_has_a_test() -> None:
    where = found()
    assert sorted(EXAMPLES) == list(range(1, 20))
    assert {number: EXAMPLES[number] for number in EXAMPLES if number not in where} == {}
    assert set(where) <= set(EXAMPLES)


if __name__ == "__main__":
    for number, tests in sorted(found().items()):
        print(f"{number:2} {EXAMPLES[number]}: {', '.join(tests)}")
