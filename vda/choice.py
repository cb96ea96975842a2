"""Which checkpoint counts: the last one (the headline), one chosen without labels, and for comparison the best one.

Adversarial training swings, and without labels of the target nobody knows which checkpoint is best (the paper's
Appendix G leaves it open). So every training keeps a few snapshots, and beside the last are reported, always apart:

    entropy     the snapshot that is surest on the target: least mean normalised entropy of its predictions
    agreement   the snapshot that is steadiest on the target: where a neighbouring frame shows the same point, its
                prediction there most often agrees
    oracle      the snapshot with the best mIoU on the validation set. It looks at labels and is no result, but shows
                what a choice could gain
"""

from __future__ import annotations

import torch
from torch import nn

from vda.checkpoint import Checkpoint, load_checkpoint
from vda.data.clip import Clip, spread
from vda.distributed import by_first, gather, share
from vda.files import kept_json
from vda.losses import min_entropy
from vda.models import upsample
from vda.occlusion import needs_back, visible
from vda.ops import warp
from vda.progress import progress
from vda.pseudo import image_tensor
from vda.run import Run, checkpoints, network_of
from vda.scoring import Scores, score, write_scores

PAIRS = 40  # of neighbouring target frames, evenly spread, on which snapshots are compared


def scored(run: Run, name: str) -> Scores:
    """Validation scores of a finished method's last checkpoint, under "rules" those of each choice among its snapshots.

    Kept beside the checkpoints, so that a resumed run reads them back.
    """
    last = run.checkpoint(run.result(name))
    folder = last.path.parent
    path = folder / "scores.json"
    of = {"model": last.digest, "snapshots": run.config.snapshots}
    known = by_first(kept_json, path)
    if isinstance(known, dict) and known.items() >= of.items():
        return known
    stays = snapshots(last.step, run.config.snapshots)  # and no checkpoint that is there because a run was stopped
    there = by_first(lambda: [str(step) for step in checkpoints(folder, stays)])
    found = [_snapshot(run, name, load_checkpoint(step)) for step in there]
    rules = {"last": found[-1]}
    if "agreement" in found[-1]:  # there are neighbouring frames
        rules["entropy"] = min(found, key=lambda s: s["entropy"])
        rules["agreement"] = max(found, key=lambda s: s["agreement"])
    rules["oracle"] = max(found, key=lambda s: s["miou"] or 0.0)
    scores = found[-1] | of | {"rules": {rule: s | {"rule": rule} for rule, s in rules.items()}}
    by_first(write_scores, path, scores)
    return scores


def snapshots(iterations: int, count: int) -> set[int]:
    """Steps after which a checkpoint is kept: `count` evenly spaced ones, or fewer, and always the last."""
    return {-(-iterations * k // count) for k in range(1, count + 1)}


def _snapshot(run: Run, name: str, checkpoint: Checkpoint) -> Scores:
    network = network_of(checkpoint, run.device)
    label = f"score {name} at step {checkpoint.step}"
    scores = score(network, run.validation, run.device, name=label)
    return scores | {
        **without_labels(run, network),
        "model": checkpoint.digest,
        "checkpoint": checkpoint.path.name,
        "rule": "last",
        "seed": run.config.seed,
    }


@torch.inference_mode()
def without_labels(run: Run, network: nn.Module, pairs: int = PAIRS) -> dict[str, float]:
    """What can be said of a network on the target without labels: "entropy" and "agreement", both 0..1.

    pairs: of neighbouring frames that are looked at; several processes share them. Nothing where no frame has a
    neighbour.
    """
    network.eval()
    of_pairs = []  # (entropy, pixels that agree, pixels that are seen)
    for clip, i in progress(share(spread(run.target, pairs)), desc="target", unit="pair"):
        logits = [network(image_tensor(clip, j, run.device)) for j in (i, i + 1)]
        entropy = float(torch.stack([min_entropy(x) for x in logits]).mean())
        of_pairs.append((entropy, *_agreement(run, clip, i, logits)))
    found = [of_pair for part in gather(of_pairs) for of_pair in part]  # in order: a sum of floats depends on it
    if not found:
        return {}
    entropies, same, seen = zip(*found, strict=True)
    return {"entropy": sum(entropies) / len(entropies), "agreement": sum(same) / max(1, sum(seen))}


def _agreement(run: Run, clip: Clip, i: int, logits: list[torch.Tensor]) -> tuple[int, int]:
    """Pixels of frame i whose class the next frame confirms, and pixels that the next frame shows."""
    frames = [image_tensor(clip, j, run.device) for j in (i, i + 1)]
    size = (frames[0].shape[-2], frames[0].shape[-1])
    here, there = (upsample(x, size).argmax(1).to(torch.uint8) for x in logits)
    flow = torch.from_numpy(run.flow(clip, i, i + 1))[None].to(run.device)
    back = torch.from_numpy(run.flow(clip, i + 1, i))[None].to(run.device) if needs_back(run.config.occlusion) else None
    shown = visible(frames[0], frames[1], flow, back, run.config.occlusion)
    confirmed = shown & (warp(there, flow, mode="nearest") == here)
    return int(confirmed.sum()), int(shown.sum())
