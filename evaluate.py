"""Score trained networks, or label images that somebody else predicted, on labelled video: mIoU, VPQ^s, TC, mVC.

python evaluate.py runs/embedded-1/vst --data embedded/camera-val
python evaluate.py runs/camvid-1/vat runs/camvid-1/vst --data camvid/dusk-val --root /data/camvid --out runs/compared
python evaluate.py runs/camvid-1/vst /data/theirs --data camvid/dusk-val --root /data/camvid --flow dis
python evaluate.py runs/embedded-fda-1/fda/round-2/beta-* --data embedded/camera-val --ensemble
torchrun --nproc-per-node N evaluate.py ...    the same in N processes, which share the clips (docs/processes.md)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from vda import distributed
from vda.checkpoint import atomic_write
from vda.cli import run_command
from vda.data import Clip, VideoDataset, open_dataset
from vda.data.clip import LabelMap
from vda.device import choose_device
from vda.errors import UsageError
from vda.flow.providers import provider
from vda.models import Ensemble
from vda.options import Flow, Occlusion, Report
from vda.panels import prediction_strips
from vda.predictions import FolderPredictor, NetworkPredictor, Predictor, holds_predictions, size_of_predictions
from vda.report import write_report
from vda.run import network_of, open_checkpoint
from vda.score_page import markdown
from vda.scoring import Motion, Scores, score_predictions, write_scores


@dataclass(frozen=True)
class Evaluate:
    """Score checkpoints and folders of predicted label images on labelled video, side by side."""

    predictions: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of methods or rounds of a run, of which the last checkpoint is taken, of checkpoints, or of predicted
    label images CLIP/FRAME.png (class numbers, 255 for none; docs/scores.md)."""
    data: str
    """Labelled video, as DATASET/SPLIT."""
    root: Path | None = None
    """Folder of the data set; not needed for the embedded world."""
    size: tuple[int, int] | None = None
    """Height and width of the frames; that of the training, or of the label images, where not given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    ensemble: bool = False
    """Also score the mean of all checkpoints' predictions (FDA's multi-band transfer)."""
    flow: Literal["exact", "dis", "flownet2", "raft", "precomputed"] | None = None
    """Optical flow with which TC is measured; no TC where not given (docs/flow.md)."""
    flow_weights: Path | None = None
    """flownet2, raft: imported weights."""
    flow_root: Path | None = None
    """precomputed: folder of the flow files."""
    occlusion: Occlusion = field(default_factory=Occlusion)
    report: Report = field(default_factory=Report)
    out: Path | None = None
    """File for the scores (.json, .md or .html), or a folder for scores.json, scores.md and scores.html."""


@dataclass(frozen=True)
class Entry:
    """What is scored. beside: what stands beside its scores."""

    dataset: VideoDataset
    predict: Predictor
    beside: dict[str, Any]


def evaluate(options: Evaluate) -> None:
    distributed.start(options.device)
    device = choose_device(options.device)
    files = _files(options.out)
    if not options.predictions:
        raise UsageError("predictions: wanted at least one folder of a checkpoint or of label images, got none")
    motion = _motion(options, device)
    # All are opened and checked before the first one is scored.
    entries = {str(path): _open(path, options, device) for path in options.predictions}
    if options.ensemble:
        entries |= _ensemble(entries, device)
    scores = {
        name: score_predictions(entry.predict, entry.dataset, name=name, motion=motion) | entry.beside
        for name, entry in entries.items()
    }
    print(markdown(scores), end="")
    if distributed.is_first():
        for path in files:
            _write(path, scores, entries, options)


def _motion(options: Evaluate, device: torch.device) -> Motion | None:
    if options.flow is None:
        for name, value in (("--flow-weights", options.flow_weights), ("--flow-root", options.flow_root)):
            if value is not None:
                raise UsageError(f"{name}: wanted --flow beside it, which names the provider, found none")
        return None
    settings = Flow(options.flow, weights=options.flow_weights, root=options.flow_root)
    return Motion(provider(settings, device), options.occlusion)


def _open(path: Path, options: Evaluate, device: torch.device) -> Entry:
    """Label images, or a checkpoint; with the data set at their size or that of the training, unless one is given."""
    if holds_predictions(path):
        dataset = open_dataset(options.data, options.root, options.size or size_of_predictions(path))
        images = FolderPredictor(path, dataset, every_frame=options.flow is not None)
        return Entry(dataset, images, {"rule": "none, label images"})
    checkpoint = open_checkpoint(path)
    dataset = open_dataset(options.data, options.root, options.size or tuple(checkpoint.meta["config"]["data"]["size"]))
    if list(dataset.classes) != checkpoint.meta["classes"]:
        raise UsageError(
            f"{path}: the checkpoint has the classes {', '.join(checkpoint.meta['classes'])}; "
            f"data set {dataset.name} has {', '.join(dataset.classes)}"
        )
    beside = {
        "checkpoint": str(checkpoint.path),
        "rule": "given" if path == checkpoint.path else "last",
        "seed": checkpoint.meta["config"]["seed"],
    }
    return Entry(dataset, NetworkPredictor(network_of(checkpoint, device), device), beside)


def _ensemble(entries: dict[str, Entry], device: torch.device) -> dict[str, Entry]:
    networks = [entry.predict.network for entry in entries.values() if isinstance(entry.predict, NetworkPredictor)]
    if len(networks) < len(entries):
        raise UsageError("--ensemble: wanted checkpoints alone, found a folder of label images")
    dataset = next(reversed(entries.values())).dataset
    return {f"mean of {len(networks)}": Entry(dataset, NetworkPredictor(Ensemble(networks), device), {"rule": "mean"})}


# --- files

_SUFFIXES = (".json", ".md", ".html")


def _files(out: Path | None) -> list[Path]:
    """The file that `out` names by its suffix, else all three in the folder `out`. UsageError where one cannot be."""
    if out is None:
        return []
    if out.suffix in _SUFFIXES:
        if out.is_dir():
            raise UsageError(f"{out}: wanted a file for the scores, found a folder")
        return [out]
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: wanted a folder, or a file that ends in {', '.join(_SUFFIXES)}, found another file")
    return [out / f"scores{suffix}" for suffix in _SUFFIXES]


def _write(path: Path, scores: dict[str, Scores], entries: dict[str, Entry], options: Evaluate) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = next(iter(entries.values())).dataset
    title = f"Scores on {dataset.name}"
    if path.suffix == ".json":
        write_scores(path, scores)
    elif path.suffix == ".md":
        atomic_write(path, f"# {title}\n\n{markdown(scores)}".encode())
    else:
        shown = {name: _where_there(entry.predict) for name, entry in entries.items()}
        write_report(
            path,
            title=title,
            settings=asdict(options),
            scores=scores,
            classes=dataset.classes,
            palette=dataset.palette,
            clips=[prediction_strips(shown, dataset, scores, options.report)],
        )


def _where_there(predict: Predictor) -> Callable[[Clip, int], LabelMap | None]:
    """The report also shows frames without labels, for which a folder need not hold a prediction."""
    if not isinstance(predict, FolderPredictor):
        return predict
    return lambda clip, i: predict(clip, i) if predict.path(clip, i).exists() else None


if __name__ == "__main__":
    sys.exit(run_command(lambda argv: evaluate(tyro.cli(Evaluate, args=argv, description=__doc__))))
