"""`python -m vda flow-score`: one provider on one data set, as one row of a Markdown table."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Literal

import tyro

from vda.checkpoint import atomic_write
from vda.data import open_dataset
from vda.data.clip import Clip, VideoDataset
from vda.device import choose_device
from vda.errors import UsageError
from vda.flow.cache import CachedFlow, frame_pairs
from vda.flow.providers import FlowProvider, provider
from vda.flow.scores import PairScore, score_pair
from vda.options import Flow
from vda.progress import progress

HEAD: tuple[str, ...] = ("provider", "pairs", "EPE", "Fl-all", "photometric error", "without flow", "consistent", "ms")


@dataclass(frozen=True)
class ScoreCommand:
    """How good a provider's flow is: against the true flow where the data set knows it, and by what it makes of the
    images. One row of a Markdown table."""

    dataset: tyro.conf.Positional[str]
    """A data set as DATASET/SPLIT, e.g. motion/val, pairs/all or camvid/sunny-15hz."""
    root: Path | None = None
    """Folder of the data set."""
    size: tuple[int, int] | None = None
    """Height and width at which frames are read; the data set's own where not given."""
    step: int = 1
    """Distance between the frames of a pair."""
    limit: int | None = None
    """At most so many pairs, spread evenly over the data set."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a flow network runs; auto takes the GPU where there is one."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the numbers here too, those of every pair and their means."""
    flow: Flow = field(default_factory=Flow)


def score_main(arguments: list[str]) -> None:
    """Run `python -m vda flow-score`."""
    command = tyro.cli(ScoreCommand, args=arguments, prog="python -m vda flow-score")
    for name, value in (("step", command.step), ("limit", command.limit)):
        if value is not None and value < 1:
            raise UsageError(f"vda flow-score: wanted --{name} of at least 1, got {value}")
    if command.json is not None and not command.json.parent.is_dir():
        raise UsageError(f"{command.json}: wanted a file in a folder that exists")
    dataset = open_dataset(command.dataset, command.root, command.size)
    chosen = choose_pairs(dataset, command.step, command.limit)
    source = provider(command.flow, choose_device(command.device))
    if command.flow.cache is not None:
        source = CachedFlow(command.flow.cache, dataset, source.name)
    scores = score_pairs(source, chosen)
    print(table({source.name: scores}))
    reasons = [score.no_back for score in scores if score.no_back]
    if reasons:
        count = f"{len(reasons)} of {len(scores)} pairs"
        print(f"consistency is not known for {count}, which have no flow back: {reasons[0]}", file=sys.stderr)
    if command.json is not None:
        atomic_write(command.json, report(source.name, command, scores).encode())


def choose_pairs(dataset: VideoDataset, step: int, limit: int | None) -> list[tuple[Clip, int, int]]:
    """Pairs of frames `step` apart, at most `limit`, spread evenly; UsageError where there are none."""
    pairs = list(frame_pairs(dataset, [step]))
    if not pairs:
        longest = max((len(clip) for clip in dataset.clips), default=0)
        raise UsageError(
            f"data set {dataset.name}: pairs {step} apart want clips of at least {step + 1} frames, "
            f"the longest has {longest}"
        )
    count = min(limit or len(pairs), len(pairs))
    return [pairs[k * len(pairs) // count] for k in range(count)]


def score_pairs(source: FlowProvider, pairs: Sequence[tuple[Clip, int, int]]) -> list[PairScore]:
    """The scores of a provider on pairs of frames, with progress."""
    score_pair(source, *pairs[0])  # warm-up: the first call is slower than those after it
    return [score_pair(source, *pair) for pair in progress(pairs, desc=f"score {source.name}", unit="pair")]


def means(scores: Sequence[PairScore]) -> dict[str, float]:
    """Each score's mean over the pairs that have it, NaN where none has; of the milliseconds the median."""
    names = ("end_point_error", "outliers", "photometric_error", "without_flow", "consistent_share", "milliseconds")
    result = {}
    for name in names:
        known = [x for score in scores if not math.isnan(x := getattr(score, name))]
        result[name] = (median if name == "milliseconds" else fmean)(known) if known else math.nan
    return result


def table(scored: Mapping[str, Sequence[PairScore]]) -> str:
    """Header, and a row for every provider."""
    formats = ("{:.2f}", "{:.1%}", "{:.2f}", "{:.2f}", "{:.1%}", "{:.1f}")
    rows = [HEAD]
    for name, scores in scored.items():
        numbers = zip(formats, means(scores).values(), strict=True)
        cells = ("-" if math.isnan(x) else f.format(x).replace("%", " %") for f, x in numbers)
        rows.append((name, str(len(scores)), *cells))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * (w - 1) + ":" if k else "-" * w for k, w in enumerate(widths)))
    return "\n".join(
        f"| {' | '.join(x.rjust(w) if k else x.ljust(w) for k, (x, w) in enumerate(zip(row, widths, strict=True)))} |"
        for row in rows
    )


def report(name: str, command: ScoreCommand, scores: Sequence[PairScore]) -> str:
    """JSON with null for what is not known."""

    def known(numbers: dict[str, object]) -> dict[str, object]:
        return {k: None if isinstance(x, float) and math.isnan(x) else x for k, x in numbers.items()}

    content: dict[str, object] = {
        "provider": name,
        "dataset": command.dataset,
        "size": command.size,
        "step": command.step,
    }
    content |= {"mean": known({**means(scores)}), "pairs": [known(asdict(score)) for score in scores]}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
