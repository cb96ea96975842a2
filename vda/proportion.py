"""Pseudo labels at a given proportion, so that policies can be compared (Table 7): alpha is bisected to reach it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vda import distributed
from vda.checkpoint import atomic_write
from vda.data import VideoDataset
from vda.files import kept_json
from vda.metrics import ConfusionMatrix, plain
from vda.options import Pseudo
from vda.pseudo import PseudoLabels
from vda.run import Run

TOLERANCE = 0.002
STEPS = 12


def pseudo_scores(target: VideoDataset, labels: PseudoLabels) -> dict[str, Any]:
    """Coverage and accuracy of the pseudo labels where the target happens to have labels, and their coverage of all.

    In one pass over the labelled frames. None for a class without labelled or covered pixels. For reports alone.
    """
    matrix, frames = ConfusionMatrix(target.num_classes), 0
    for clip in target.clips:
        for i in range(len(clip)):
            truth = clip.label(i)
            if truth is not None:
                matrix.update(labels(clip, i), truth)
                frames += 1
    return {
        "coverage": [plain(share) for share in matrix.coverage()],
        "iou": [plain(iou) for iou in matrix.iou(covered_only=True)],
        "miou": plain(matrix.miou(covered_only=True)),
        "total_coverage": labels.coverage,
        "frames": frames,
    }


def at_proportion(run: Run, model: Path, settings: Pseudo, proportion: float, folder: Path) -> dict[str, Any]:
    """P-mIoU of the labels that a policy gives to `proportion` of the target's pixels; kept in `folder`.

    Returns "p_miou" and the "proportion" and "alpha" reached, and what stands beside a score. "p_miou" is None where no
    alpha comes near, as where many confidences tie.
    """
    path = folder / "p-miou.json"
    of = {key: value for key, value in asdict(settings).items() if key != "alpha"}
    known = distributed.by_first(kept_json, path)
    if isinstance(known, dict) and known.get("settings") == of:
        return known
    low, high = 0.0, 1.0  # alpha, exclusive and inclusive
    best: dict[str, Any] = {}
    for _ in range(STEPS):
        alpha = (low + high) / 2
        labels = run.pseudo_labels(folder / f"alpha-{alpha:.6f}", [model], replace(settings, alpha=alpha))
        reached = labels.coverage
        if not best or abs(reached - proportion) < abs(best["proportion"] - proportion):
            grade = distributed.by_first(pseudo_scores, run.target, labels)
            best = {"p_miou": grade["miou"], "proportion": reached, "alpha": alpha, "frames": grade["frames"]}
        if abs(reached - proportion) <= TOLERANCE:
            break
        low, high = (alpha, high) if reached < proportion else (low, alpha)
    if abs(best["proportion"] - proportion) > 10 * TOLERANCE:
        best["p_miou"] = None  # labels of another proportion are not to be compared
    best |= {"dataset": run.target.name, "classes": list(run.target.classes), "size": list(run.target.size)}
    best |= {"rule": "last", "settings": of}
    distributed.by_first(_finish, path, best)
    return best


def _finish(path: Path, best: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(best) + "\n").encode())
    for trial in path.parent.glob("alpha-*"):  # last: a stopped run would make again what it has removed
        shutil.rmtree(trial)
