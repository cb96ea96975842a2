"""What scores were measured on and with: the words that stand beside every number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vda.report.tables import stage_title

Scores = Mapping[str, Any]  # of one stage or run, as `vda.scoring.score_predictions` gives them

# In this order, where the scores carry it.
_BESIDE = {
    "dataset": "data set",
    "rule": "checkpoint rule",
    "seed": "seed",
    "flow": "optical flow of TC",
    "checkpoint": "checkpoint",
}


def provenance(scores: Mapping[str, Scores]) -> list[str]:
    """Lines of text: first what all stages share, then what is a stage's own."""
    parts = {stage_title(name): measured_on(stage) for name, stage in scores.items()}
    first, *others = parts.values()
    shared = [part for part in first if all(part in other for other in others)]
    own = {name: [part for part in found if part not in shared] for name, found in parts.items()}
    lines = [f"{name}: {', '.join(found)}." for name, found in own.items() if found]
    return [f"Percent. {', '.join(shared)}." if shared else "Percent.", *lines]


def measured_on(stage: Scores) -> list[str]:
    """Frames, clips, size, classes, ignored label, checkpoint and its rule; and what TC and the intervals rest on."""
    size = " × ".join(map(str, stage["size"] or ("?", "?")))
    found = [
        f"{_count(stage['frames'], 'labelled frame')} in {_count(stage['clips'], 'clip')} of {size} pixels (H × W)",
        f"mean over {len(stage['classes'])} classes ({', '.join(stage['classes'])})",
        f"label {stage['ignore']} ignored",
        *(f"{label} {stage[key]}" for key, label in _BESIDE.items() if key in stage),
    ]
    if "occlusion" in stage:
        occlusion = ", ".join(f"{key} {value}" for key, value in stage["occlusion"].items())
        found.append(f"TC over {_count(stage['tc_pairs'], 'pair')}, occlusion {occlusion}")
    if interval := stage.get("interval"):
        found.append(
            f"intervals of {100 * interval['level']:g} % from {interval['samples']} bootstrap samples of the clips"
        )
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
