"""The pictures of a run: what each stage predicts, and the pseudo labels before and after their refinement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vda.config import to_dict
from vda.data.clip import FlowField, FlowSource, Image, LabelMap, VideoDataset, spread
from vda.data.tubes import Batch
from vda.flow.providers import both_ways, provider
from vda.methods.flow import FLOW_WEIGHTS
from vda.methods.vst import refine
from vda.models import upsample
from vda.occlusion import visible
from vda.ops import warp_occlusion
from vda.options import Flow, Occlusion
from vda.pictures import error_image, visible_image
from vda.proportion import pseudo_scores
from vda.pseudo import PseudoLabels, read_labels
from vda.report import Panel, colour_label, flow_image, overlay, write_report
from vda.run import Run

ERROR_CAPTION = "warp error of the next frame: black 0, yellow 64 grey levels or more; tinted cyan: not visible"


@torch.inference_mode()
def predict(network: nn.Module, image: Image, device: torch.device) -> LabelMap:
    """Classes [H, W] of one RGB image [H, W, 3]."""
    logits = upsample(network(_tensor(image).to(device)), image.shape[:2])
    return logits.argmax(1)[0].to("cpu", torch.uint8).numpy()


def prediction_panels(
    networks: Mapping[str, nn.Module], dataset: VideoDataset, device: torch.device, count: int = 6
) -> list[Panel]:
    """Frame, truth and each network's prediction, for `count` frames of `dataset`."""
    panels = []
    for clip, i in spread(dataset, count):
        frame, truth = clip.frame(i), clip.label(i)
        images = {"frame": frame}
        if truth is not None:
            images["truth"] = overlay(frame, truth, dataset.palette)
        for name, network in networks.items():
            images[name] = overlay(frame, predict(network, frame, device), dataset.palette)
        panels.append(Panel(f"{clip.name}/{clip.frame_names[i]}", images))
    return panels


@torch.inference_mode()
def pseudo_panels(
    dataset: VideoDataset,
    labels: PseudoLabels,
    flow: FlowSource,
    refinement: str,
    occlusion: Occlusion,
    count: int = 6,
) -> list[Panel]:
    """Frame, pseudo label before and after refinement against the next frame; flow, warp error and visibility."""
    panels = []
    for clip, i in spread(dataset, count):
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
        images = {
            "frame": clip.frame(i),
            "pseudo label": colour_label(before[0], dataset.palette),
            "after refinement": colour_label(after, dataset.palette),
            "flow to the next frame": flow_image(flows[0]),
            ERROR_CAPTION: error_image(clip.frame(i), _brought(clip.frame(i + 1), flows[0]), seen),
            f"visible (white) in the next frame; test: {occlusion.test}": visible_image(seen),
        }
        truth = clip.label(i)
        if truth is not None:
            images["truth"] = colour_label(truth, dataset.palette)
        panels.append(Panel(f"{clip.name}/{clip.frame_names[i]}", images))
    return panels


def flow_panels(flow: FlowSource, dataset: VideoDataset, count: int = 6) -> list[Panel]:
    """Frame, true flow where it is known and estimated flow on one scale, and what warping by the latter leaves."""
    panels = []
    for clip, i in spread(dataset, count):
        frame, following = clip.frame(i), clip.frame(i + 1)
        estimate, truth = flow(clip, i, i + 1), clip.exact_flow(i, i + 1)
        shown = estimate if truth is None else truth
        largest = float(np.nanmax(np.hypot(*shown), initial=1.0))
        images = {"frame": frame, "next frame": following}
        if truth is not None:
            images["true flow"] = flow_image(truth, largest)
        images["estimated flow"] = flow_image(estimate, largest)
        everywhere = np.ones(frame.shape[:2], np.bool_)
        images[ERROR_CAPTION] = error_image(frame, _brought(following, estimate), everywhere)
        panels.append(Panel(f"{clip.name}/{clip.frame_names[i]}", images))
    return panels


def _brought(neighbour: Image, flow: FlowField) -> NDArray[np.float32]:
    """The neighbour [H, W, 3] brought onto the frame, in grey levels; NaN where the flow leads out of the picture."""
    image = torch.from_numpy(neighbour).permute(2, 0, 1)[None].float()
    # alpha = 0: every colour passes, so what is left of the test is whether there is a pixel
    brought, inside = warp_occlusion(image, image, torch.from_numpy(flow)[None], alpha=0.0)
    return np.asarray(torch.where(inside[:, None], brought, torch.nan)[0].permute(1, 2, 0).numpy())


def _tensor(image: Image) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def write_run_report(run: Run, scores: dict[str, Any]) -> Path:
    """The HTML page of the run, with pictures of every method that has been trained."""
    networks: dict[str, nn.Module] = {name: run.network(name) for name in run.finished()}
    panels = prediction_panels(networks, run.validation, run.device)
    coverage = None
    for name in reversed(run.finished()):  # the labels that the last self-training learnt from
        if labels := read_labels(run.result(name) / "pseudo"):
            refinement = getattr(run.config.methods[name], "refine", "none")
            panels += pseudo_panels(run.target, labels, run.flow, refinement, run.config.occlusion)
            coverage = pseudo_scores(run.target, labels)
            break
    for weights in run.folder.glob(f"*/{FLOW_WEIGHTS}"):
        panels += flow_panels(provider(Flow("flownet2", weights=weights), run.device), run.validation)
    logs = [run.folder_of(name).rglob("log.jsonl") for name in run.config.methods]
    lines = [line for found in logs for log in sorted(found) for line in log.read_text().splitlines()]
    path = run.folder / "report.html"
    write_report(
        path,
        title=f"{run.config.recipe}: {run.source.name} to {run.target.name}",
        settings=to_dict(run.config),
        scores=scores,
        classes=run.source.classes,
        palette=run.source.palette,
        panels=panels,
        log=[json.loads(line) for line in lines] or None,
        pseudo=coverage,
    )
    return path
