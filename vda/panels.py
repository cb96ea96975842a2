"""The pictures of a run: what each stage predicts, and the pseudo labels before and after their refinement."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from vda.config import Occlusion
from vda.data.clip import Clip, Image, LabelMap, VideoDataset
from vda.data.tubes import Batch, FlowSource, LabelSource
from vda.methods.vst import refine
from vda.models import upsample
from vda.ops import warp_occlusion
from vda.report import Panel, colour_label, flow_image, overlay


def spread(dataset: VideoDataset, count: int) -> list[tuple[Clip, int]]:
    """`count` frames with a successor, evenly over the clips and their lengths."""
    clips = [clip for clip in dataset.clips if len(clip) > 1]
    chosen = [clips[k] for k in np.linspace(0, len(clips) - 1, count).round().astype(int)] if clips else []
    return [(clip, round((k + 0.5) / count * (len(clip) - 2))) for k, clip in enumerate(chosen)]


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
    labels: LabelSource,
    flow: FlowSource,
    refinement: str,
    occlusion: Occlusion,
    count: int = 6,
) -> list[Panel]:
    """Frame, pseudo label before and after refinement against the next frame, flow and visibility."""
    panels = []
    for clip, i in spread(dataset, count):
        before = [labels(clip, i), labels(clip, i + 1)]
        flows = np.stack([flow(clip, i, i + 1), flow(clip, i + 1, i)])
        batch = Batch(
            frames=torch.stack([_tensor(clip.frame(j))[0] for j in (i, i + 1)])[None],
            labels=torch.from_numpy(np.stack(before))[None],
            flows=torch.from_numpy(flows)[None, None],
            names=[],
        )
        after = refine(batch, refinement, occlusion)[0, 0].numpy()
        _, visible = warp_occlusion(
            batch.frames[:, 0],
            batch.frames[:, 1],
            torch.from_numpy(flows[:1]),
            alpha=occlusion.alpha,
            threshold=occlusion.threshold,
            squared=occlusion.squared,
        )
        images = {
            "frame": clip.frame(i),
            "pseudo label": colour_label(before[0], dataset.palette),
            "after refinement": colour_label(after, dataset.palette),
            "flow to the next frame": flow_image(flows[0]),
            "visible in the next frame": np.repeat(visible[0].numpy()[..., None] * np.uint8(255), 3, axis=2),
        }
        truth = clip.label(i)
        if truth is not None:
            images["truth"] = colour_label(truth, dataset.palette)
        panels.append(Panel(f"{clip.name}/{clip.frame_names[i]}", images))
    return panels


def _tensor(image: Image) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
