"""The pictures of a run: what each stage predicts, and the pseudo labels before and after their refinement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vda.config import to_dict
from vda.data.clip import IGNORE, Clip, FlowField, FlowSource, Image, LabelMap, VideoDataset
from vda.data.tubes import Batch
from vda.flow.providers import both_ways, provider
from vda.live import read_log
from vda.methods.flow import FLOW_WEIGHTS
from vda.methods.vst import refine
from vda.occlusion import visible
from vda.ops import warp_occlusion
from vda.options import Flow, Occlusion, Report
from vda.pictures import error_image, flow_image, shrink
from vda.predictions import NetworkPredictor
from vda.progress import progress
from vda.proportion import pseudo_scores
from vda.pseudo import PseudoLabels, read_labels
from vda.report import Group, Row, Strip, write_report
from vda.report.strips import MAX_WIDTH
from vda.report.tables import Scores, is_ceiling, known, percent, stage_title
from vda.run import Run, network_of, open_checkpoint

MaybePredictor = Callable[[Clip, int], LabelMap | None]  # as Predictor, or None where there is no prediction

WARP_ERROR = "warp error of the next frame"
NOT_VISIBLE = "not visible in the next frame"
_UNSEEN = np.array([[0, 255, 255]], np.uint8)
_JUDGED = np.array([[0, 0, 0], [255, 45, 85], [128, 128, 128]], np.uint8)  # right, wrong, not scored
_CLIPS_NOTE = "Errors of a stage: red where it is wrong, dark where it is right, grey where there is no label."
_PSEUDO_NOTE = (
    "Target frames, those of the clips with the fewest labels first. Dark: no pseudo label. The refinement compares a "
    "frame with the next one."
)
_FLOW_NOTE = (
    "Flow: hue is the direction (red right, yellow down, cyan left, violet up), depth the length, on one scale for a "
    "clip. Warp error: black 0, yellow 64 grey levels or more, cyan where the next frame does not show the pixel."
)


# --- which clips, and which frames of them


def worst_first(dataset: VideoDataset, scores: Mapping[str, Scores], count: int) -> list[tuple[Clip, str]]:
    """`count` clips with their scores as text, from the lowest mIoU of the last stage that is no ceiling.

    Where no stage was scored clip by clip: clips evenly over the set, and no text.
    """
    named = {clip.name: clip for clip in dataset.clips}
    scored = {name: stage["per_clip"] for name, stage in scores.items() if stage.get("per_clip")}
    if not scored:
        return [(clip, "") for clip in _evenly(dataset.clips, count)]
    last = [name for name in scored if not is_ceiling(name)] or list(scored)
    order = sorted(
        (entry for entry in scored[last[-1]] if entry["clip"] in named),
        key=lambda entry: (known(entry["miou"]) is None, entry["miou"]),
    )
    return [
        (named[e["clip"]], f"{stage_title(last[-1])}: mIoU {percent(e['miou'])}, VPQˢ {percent(e['vpq'])}")
        for e in order[:count]
    ]


def _evenly(clips: Sequence[Clip], count: int) -> list[Clip]:
    places = np.linspace(0, len(clips) - 1, min(count, len(clips))).round().astype(int)
    return [clips[k] for k in places]


def shown_frames(clip: Clip, count: int, stop: int | None = None) -> range:
    """`count` successive frames, from the first labelled one where there are so many; all where there are fewer."""
    stop = len(clip) if stop is None else stop
    labelled = next((i for i in range(stop) if clip.label(i) is not None), 0)
    first = min(labelled, max(0, stop - count))
    return range(first, min(first + count, stop))


# --- strips


def prediction_strips(
    predictors: Mapping[str, MaybePredictor], dataset: VideoDataset, scores: Mapping[str, Scores], report: Report
) -> Group:
    """Frame, truth, and what each stage predicts and where it is wrong, for the worst clips of `dataset`."""
    strips = []
    chosen = worst_first(dataset, scores, report.clips)
    for clip, note in progress(chosen, desc="report: predictions", unit="clip"):
        shown = shown_frames(clip, report.frames)
        truth = [_small(clip.label(i)) for i in shown]
        rows = [Row("truth", truth)] if any(label is not None for label in truth) else []
        for name, predict in predictors.items():
            found = [_small(predict(clip, i)) for i in shown]
            rows.append(Row(name, found))
            judged = [_judged(a, b) for a, b in zip(found, truth, strict=True)]
            if any(errors is not None for errors in judged):
                rows.append(Row(f"errors of {stage_title(name)}", judged, _JUDGED))
        strips.append(_strip(clip, shown, rows, note))
    title = "Worst clips" if any(note for _, note in chosen) else "Clips, evenly over the set"
    return Group(f"{title}: {dataset.name}", strips, _CLIPS_NOTE)


def pseudo_strips(
    dataset: VideoDataset,
    labels: PseudoLabels,
    flow: FlowSource,
    refinement: str,
    occlusion: Occlusion,
    report: Report,
) -> Group:
    """Pseudo labels before and after refinement against the next frame, flow, warp error and visibility."""
    none = np.concatenate([dataset.palette, np.zeros((1, 3), np.uint8)])  # of pixels without a pseudo label
    strips = []
    for clip in progress(_least_covered(dataset, labels, report.clips), desc="report: pseudo labels", unit="clip"):
        shown = shown_frames(clip, report.frames, stop=len(clip) - 1)  # those with a next frame
        pairs = [_refined(clip, i, labels, flow, refinement, occlusion) for i in shown]
        largest = _longest([pair.flow for pair in pairs])
        rows = [
            Row("pseudo label", [_uncovered(pair.before, dataset) for pair in pairs], none),
            Row("after refinement", [_uncovered(pair.after, dataset) for pair in pairs], none),
            Row("truth", [_small(clip.label(i)) for i in shown]),
            Row("flow to the next frame", [_small(flow_image(pair.flow, largest)) for pair in pairs]),
            Row(WARP_ERROR, [_small(pair.error) for pair in pairs]),
            Row(
                NOT_VISIBLE,
                [_small(np.where(pair.seen, IGNORE, 0).astype(np.uint8)) for pair in pairs],
                _UNSEEN,
            ),
        ]
        strips.append(_strip(clip, shown, [row for row in rows if any(p is not None for p in row.pictures)]))
    note = f"{_PSEUDO_NOTE} {_FLOW_NOTE} Occlusion test: {occlusion.test}."
    return Group(f"Pseudo labels: {dataset.name}", strips, note)


def flow_strips(flow: FlowSource, dataset: VideoDataset, report: Report) -> Group:
    """True flow where it is known and estimated flow on one scale, and what warping by the latter leaves."""
    strips = []
    for clip in _evenly([clip for clip in dataset.clips if len(clip) > 1], report.clips):
        shown = shown_frames(clip, report.frames, stop=len(clip) - 1)
        estimated = [flow(clip, i, i + 1) for i in shown]
        true = [clip.exact_flow(i, i + 1) for i in shown]
        scale = [known if known is not None else found for known, found in zip(true, estimated, strict=True)]
        largest = _longest(scale)
        errors = []
        for i, found in zip(shown, estimated, strict=True):
            everywhere = np.ones(found.shape[1:], np.bool_)
            errors.append(_small(error_image(clip.frame(i), _brought(clip.frame(i + 1), found), everywhere)))
        rows = [
            Row("true flow", [None if field is None else _small(flow_image(field, largest)) for field in true]),
            Row("estimated flow", [_small(flow_image(field, largest)) for field in estimated]),
            Row(WARP_ERROR, errors),
        ]
        strips.append(_strip(clip, shown, [row for row in rows if any(p is not None for p in row.pictures)]))
    return Group(f"Optical flow: {dataset.name}", strips, _FLOW_NOTE)


def _longest(fields: Sequence[FlowField]) -> float:
    """Length in pixels of the longest vector that is known; at least one, so that noise stays pale."""
    lengths = np.hypot(*np.stack(fields, axis=1))
    return float(lengths[np.isfinite(lengths)].max(initial=1.0))


def _strip(clip: Clip, shown: Sequence[int], rows: Sequence[Row], note: str = "") -> Strip:
    frames = [_small(clip.frame(i)) for i in shown]
    return Strip(clip.name, [clip.frame_names[i] for i in shown], frames, rows, note)


def _small(picture: Any) -> Any:
    """At the size of the page at once: a clip of large frames would fill the memory."""
    return None if picture is None else shrink(picture, MAX_WIDTH)


def _judged(found: LabelMap | None, truth: LabelMap | None) -> LabelMap | None:
    """Right 0, wrong 1, not scored 2; None where there is nothing to compare, or predictions of another size."""
    if found is None or truth is None or found.shape != truth.shape:
        return None
    return np.where(truth == IGNORE, 2, found != truth).astype(np.uint8)


def _least_covered(dataset: VideoDataset, labels: PseudoLabels, count: int) -> list[Clip]:
    """Clips with a pair of frames, those of the fewest pseudo labels first."""
    covered = {entry["clip"]: sum(entry["coverage"]) for entry in labels.manifest[1:]}
    clips = [clip for clip in dataset.clips if len(clip) > 1]
    return sorted(clips, key=lambda clip: covered.get(clip.name, 1.0))[:count]


def _uncovered(label: LabelMap, dataset: VideoDataset) -> LabelMap:
    return np.asarray(_small(np.where(label == IGNORE, dataset.num_classes, label).astype(np.uint8)))


@dataclass(frozen=True)
class _Refined:
    """A frame's pseudo label before and after refinement [H, W], and its flow, warp error and visibility."""

    before: LabelMap
    after: LabelMap
    flow: FlowField
    error: Image
    seen: NDArray[np.bool_]


@torch.inference_mode()
def _refined(
    clip: Clip, i: int, labels: PseudoLabels, flow: FlowSource, refinement: str, occlusion: Occlusion
) -> _Refined:
    before = [labels(clip, i), labels(clip, i + 1)]
    flows = np.stack(both_ways(flow, clip, i, i + 1))
    batch = Batch(
        frames=torch.stack([_tensor(clip.frame(j))[0] for j in (i, i + 1)])[None],
        labels=torch.from_numpy(np.stack(before))[None],
        flows=torch.from_numpy(flows)[None, None],
        names=[],
        part=torch.zeros(1, dtype=torch.int64),
    )
    after = refine(batch, refinement, occlusion)[0, 0].numpy()
    there, back = torch.from_numpy(flows)[:, None]
    seen = visible(batch.frames[:, 0], batch.frames[:, 1], there, back, occlusion)[0].numpy()
    error = error_image(clip.frame(i), _brought(clip.frame(i + 1), flows[0]), seen)
    return _Refined(before[0], after, flows[0], error, seen)


def _brought(neighbour: Image, flow: FlowField) -> NDArray[np.float32]:
    """The neighbour [H, W, 3] brought onto the frame, in grey levels; NaN where the flow leads out of the picture."""
    image = torch.from_numpy(neighbour).permute(2, 0, 1)[None].float()
    # alpha = 0: every colour passes, so what is left of the test is whether there is a pixel
    brought, inside = warp_occlusion(image, image, torch.from_numpy(flow)[None], alpha=0.0)
    return np.asarray(torch.where(inside[:, None], brought, torch.nan)[0].permute(1, 2, 0).numpy())


def _tensor(image: Image) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


# --- the page of a run


def write_run_report(run: Run, scores: dict[str, Any]) -> Path:
    """The HTML page of the run, with pictures of every method that has been trained."""
    report = run.config.report
    networks = {name: network_of(open_checkpoint(run.result(name)), run.device) for name in run.finished()}
    predictors = {name: NetworkPredictor(network, run.device) for name, network in networks.items()}
    clips = [prediction_strips(predictors, run.validation, scores, report)]
    coverage = None
    for name in reversed(run.finished()):  # the labels that the last self-training learnt from
        if labels := read_labels(run.result(name) / "pseudo"):
            refinement = getattr(run.config.methods[name], "refine", "none")
            clips.append(pseudo_strips(run.target, labels, run.flow, refinement, run.config.occlusion, report))
            coverage = pseudo_scores(run.target, labels)
            break
    for weights in run.folder.glob(f"*/{FLOW_WEIGHTS}"):
        clips.append(flow_strips(provider(Flow("flownet2", weights=weights), run.device), run.validation, report))
    logs = [run.folder_of(name).rglob("log.jsonl") for name in run.config.methods]
    entries = [entry for found in logs for log in sorted(found) for entry in read_log(log)]
    path = run.folder / "report.html"
    write_report(
        path,
        title=f"{run.config.recipe}: {run.source.name} to {run.target.name}",
        settings=to_dict(run.config),
        scores=scores,
        classes=run.source.classes,
        palette=run.source.palette,
        clips=clips,
        log=entries or None,
        pseudo=coverage,
    )
    return path
