"""Content-consistent matching (CCM, Li et al., ECCV 2020): which source frames, and which of their pixels, look like
the target. The parts without the training loop.

    layout matching   S_k(place) = share of class k at a row (horizontal layout) or a column (vertical layout)
                      score(source) = mean over classes and centres of KL(centre || S), horizontal + vertical
    pixel matching    template_k = mean over the selected target pixels of class k of softmax(logits / 2)
                      a source pixel of class k stays where KL(template_k || P(pixel)) is among the lowest 90 %

Frames come one at a time; of each only its layout is kept, 4 K (H + W) bytes. Layouts live on the CPU, pixels where
they came from. Nothing here is differentiable: all of it selects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vda.data.clip import IGNORE
from vda.ops import _lib

EPS = 1e-30  # in every logarithm, as published: a class that the source lacks costs about log 1e30 = 69
ITERATIONS = 100
CHUNK = 1 << 14  # pixels at a time: their K values stay in the cache


# ---- layouts


@dataclass(frozen=True)
class Layout:
    """Where the classes of a frame lie: horizontal [K, H], vertical [K, W], or [N, K, H], [N, K, W] of N frames.

    float32 on the CPU. A row sums to 1 over its places, or is zero where the frame does not show the class.
    """

    horizontal: Tensor
    vertical: Tensor


def stack(layouts: Sequence[Layout]) -> Layout:
    """The layouts of N frames, each [K, .], as one [N, K, .]."""
    return Layout(torch.stack([x.horizontal for x in layouts]), torch.stack([x.vertical for x in layouts]))


@torch.no_grad()
def layout(soft: Tensor, size: tuple[int, int] | None = None, *, least: float = 1.0) -> Layout:
    """The layout of a frame from its probabilities.

    soft: [K, H, W], float. size: (height, width) in places, for frames of several sizes; theirs by default. Places
    share the mass of the pixels they overlap, so the result is that of an area resize of the maps.
    least: mass, in pixels, below which a class counts as not shown. A softmax leaves no class at zero, and to
    normalise what it leaves would give noise the weight of a class; the published code does (its least is 1e-12).

    Raises ValueError for a soft that has no pixel, is negative or not finite.
    """
    _lib.check(soft, "soft", _lib.FLOAT_AND_DOUBLE, ("K", "H", "W"))
    _check_pixels(soft, "soft")
    wide = torch.promote_types(soft.dtype, torch.float32)
    rows, columns = soft.sum(2, dtype=wide), soft.sum(1, dtype=wide)
    if not (soft.min() >= 0 and rows.isfinite().all()):
        raise ValueError("soft: wanted probabilities, got negative or non-finite values")
    return _layout(rows, columns, size, least)


@torch.no_grad()
def label_layout(label: Tensor, num_classes: int, size: tuple[int, int] | None = None, *, least: float = 1.0) -> Layout:
    """`layout` of a label map [H, W] uint8, as of its one-hot maps; 255 counts for no class.

    Raises ValueError for a label that has no pixel or holds a value outside 0 .. num_classes - 1 and 255.
    """
    _check_classes(num_classes)
    _lib.check(label, "label", (torch.uint8,), ("H", "W"))
    _check_pixels(label, "label")

    def count(place: Tensor, places: int) -> Tensor:
        return torch.bincount((place * 256 + label).flatten(), minlength=256 * places).view(places, 256).T

    H, W = label.shape
    rows = count(torch.arange(H, device=label.device)[:, None], H)
    columns = count(torch.arange(W, device=label.device), W)
    _check_known(rows.sum(1), num_classes)
    return _layout(rows[:num_classes], columns[:num_classes], size, least)


def _layout(rows: Tensor, columns: Tensor, size: tuple[int, int] | None, least: float) -> Layout:
    _lib.check_number(least, "least")
    if not least > 0:
        raise ValueError(f"least: wanted more than 0 pixels, got {least}")
    H, W = size or (rows.shape[1], columns.shape[1])
    if H < 1 or W < 1:
        raise ValueError(f"size: wanted a height and a width of at least 1, got {size}")
    rows, columns = rows.cpu().double(), columns.cpu().double()
    shown = rows.sum(1, keepdim=True) >= least
    return Layout(_normalised(rows, H, shown), _normalised(columns, W, shown))


def _normalised(mass: Tensor, places: int, shown: Tensor) -> Tensor:
    """[K, P] mass per row or column of pixels, float64 -> [K, places], over its sum where `shown` [K, 1], else zero."""
    P = mass.shape[1]
    # The edges of the places in whole numbers: an edge off by a rounding error would leak mass into an empty place,
    # which counts where only EPS should.
    edge = torch.arange(places + 1) * P
    low = (edge // places).clamp(max=P - 1)
    cumulative = F.pad(mass.cumsum(1), (1, 0))
    beyond = (edge - low * places).double() / places  # of column `low`, 0 to 1
    resized = torch.lerp(cumulative[:, low], cumulative[:, low + 1], beyond).diff(dim=1)
    return torch.where(shown, resized.clamp(min=0) / mass.sum(1, keepdim=True), 0).float()


# ---- centres of the target's layouts


@dataclass(frozen=True)
class LayoutCentres:
    """Per class the k-means centres of the target's layouts: horizontal K times [C_k, H], vertical K times [C_k, W].

    C_k is 0 for a class that no frame shows.
    """

    horizontal: tuple[Tensor, ...]
    vertical: tuple[Tensor, ...]


@torch.no_grad()
def layout_centres(layouts: Layout, centres: int = 10, seed: int = 0) -> LayoutCentres:
    """Clusters the layouts [N, K, .] of the target, class by class, over the frames that show the class.

    Raises ValueError where no frame shows any class.
    """

    def of(rows: Tensor, direction: int) -> tuple[Tensor, ...]:
        _lib.check(rows, ("horizontal", "vertical")[direction], (torch.float32,), ("N", "K", "P"))
        shown = [of_class[of_class.any(1)] for of_class in rows.unbind(1)]
        if not any(map(len, shown)):
            raise ValueError(f"layouts: wanted frames that show a class, got {len(rows)} that show none")
        return tuple(cluster(x, centres, (seed, k, direction)) for k, x in enumerate(shown))

    return LayoutCentres(of(layouts.horizontal, 0), of(layouts.vertical, 1))


@torch.no_grad()
def cluster(layouts: Tensor, centres: int = 10, seed: int | Sequence[int] = 0) -> Tensor:
    """k-means: [N, P] -> at most `centres` rows [C, P], float32.

    Seeded by k-means++ (Arthur and Vassilvitskii, 2007), then Lloyd's iterations until nothing changes, 100 at most.
    The same rows and seed give the same centres. There are fewer than asked for where there are fewer distinct rows,
    and where a cluster loses its last row on the way. In torch, since cv2.kmeans draws from a generator that the
    whole process shares and fails with fewer rows than centres.

    Raises ValueError for rows that are not finite and for centres below 1.
    """
    _lib.check(layouts, "layouts", (torch.float32, torch.float64), ("N", "P"))
    _lib.check_number(centres, "centres", "an int")
    if centres < 1:
        raise ValueError(f"centres: wanted at least 1, got {centres}")
    if not layouts.isfinite().all():
        raise ValueError("layouts: wanted finite values, got NaN or infinity")
    rows = layouts.double()
    if not len(rows):
        return layouts.float()
    found = _seeds(rows, centres, np.random.default_rng(seed))
    for _ in range(ITERATIONS):
        before, found = found, _means(rows, _nearest(rows, found))
        if torch.equal(before, found):
            break
    return found.float()


def _seeds(rows: Tensor, centres: int, rng: np.random.Generator) -> Tensor:
    """k-means++: every next seed is drawn with the squared distance to the nearest seed so far as its weight."""
    chosen = [int(rng.integers(len(rows)))]
    distance = (rows - rows[chosen[0]]).square().sum(1)
    while len(chosen) < centres and distance.any():  # else every row is a seed already
        chosen.append(int(rng.choice(len(rows), p=(distance / distance.sum()).cpu().numpy())))
        distance = distance.minimum((rows - rows[chosen[-1]]).square().sum(1))
    return rows[chosen]


def _nearest(rows: Tensor, centres: Tensor) -> Tensor:
    return (centres.square().sum(1) - 2 * rows @ centres.T).argmin(1)


def _means(rows: Tensor, nearest: Tensor) -> Tensor:
    member = F.one_hot(nearest).to(rows.dtype)
    member = member[:, member.any(0)]
    return member.T @ rows / member.sum(0)[:, None]


# ---- layout score


@torch.no_grad()
def layout_score(layouts: Layout, centres: LayoutCentres) -> Tensor:
    """How far the layouts [N, K, .] of source frames are from the target's centres: [N] float32, lower is nearer.

    The mean over classes and their centres of KL(centre || source) in nats, horizontal + vertical; classes without a
    centre take no part.

    Raises ValueError where the layouts have other classes or places than the centres.
    """
    return _score(layouts.horizontal, centres.horizontal, "horizontal") + _score(
        layouts.vertical, centres.vertical, "vertical"
    )


def _score(source: Tensor, centres: tuple[Tensor, ...], name: str) -> Tensor:
    known = [k for k, rows in enumerate(centres) if len(rows)]
    if not known:
        raise ValueError(f"centres: wanted a class with {name} centres, got {len(centres)} without")
    _lib.check(source, name, (torch.float32,), ("N", len(centres), centres[0].shape[1]))
    # The mean of sum c log c - c log s over the centres c is linear in log s. So one mean centre a class is enough
    # for that part, and the number of centres costs nothing.
    mean = torch.stack([centres[k].mean(0) for k in known])
    negentropy = torch.stack([(centres[k] * (centres[k] + EPS).log()).sum(1).mean() for k in known])
    cross = [((part[:, known] + EPS).log_() * mean).sum((1, 2)) for part in source.split(64)]
    return negentropy.mean() - torch.cat(cross) / len(known)


# ---- class templates and pixel matching


class Templates:
    """What the network says, on average, of the selected target pixels of each class.

        templates = Templates(K)
        for frame in target: templates.update(logits, label)
        templates.mean()

    temperature: T of softmax(logits / T).

    Every pixel weighs the same, as the paper has it. (The published code never raises the count of the frames so
    far, so its late frames weigh more.)
    """

    def __init__(self, num_classes: int, *, temperature: float = 2.0, device: torch.device | str = "cpu") -> None:
        _check_classes(num_classes)
        _lib.check_number(temperature, "temperature")
        if not temperature > 0:
            raise ValueError(f"temperature: wanted more than 0, got {temperature}")
        self.temperature = float(temperature)
        self.sums = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)  # pixels per class

    @torch.no_grad()
    def update(self, logits: Tensor, label: Tensor) -> None:
        """Adds frames: logits [N, K, H, W] float, label [N, H, W] uint8 with 255 for pixels not selected.

        Raises ValueError, and adds nothing, where logits give no distribution (NaN, +inf) or a label is unknown.
        """
        K = len(self.counts)
        _lib.check(logits, "logits", _lib.FLOAT_AND_DOUBLE, ("N", K, "H", "W"))
        _lib.check(label, "label", (torch.uint8,), (logits.shape[0], *logits.shape[2:]))
        _lib.check_devices(templates=self.sums, logits=logits, label=label)
        seen = torch.bincount(label.flatten(), minlength=256)
        _check_known(seen, K)
        classes = torch.arange(K, device=label.device)[:, None]
        sums = torch.zeros_like(self.sums)
        pixels = logits.transpose(0, 1).flatten(1).split(CHUNK, 1)
        with torch.autocast(logits.device.type, enabled=False):
            for z, k in zip(pixels, label.flatten().split(CHUNK), strict=True):
                p = (z.float() / self.temperature).softmax(0)
                sums += (k == classes).float() @ p.T  # 255 is no class
        if not sums.isfinite().all():
            raise ValueError("logits: wanted values whose softmax is finite, got NaN or +inf")
        self.sums += sums
        self.counts += seen[:K]

    def mean(self) -> Tensor:
        """[K, K] float32: row k is the template of class k, zero where no pixel was selected."""
        return (self.sums / self.counts.clamp(min=1)[:, None]).float()


@torch.no_grad()
def similar_pixels(probs: Tensor, label: Tensor, templates: Tensor, keep: float = 0.9) -> Tensor:
    """The label map without the pixels that look least like their class does in the target.

    probs: [K, H, W] float, softmax at temperature 1 of a source frame. label: [H, W] uint8, its truth, 255 ignored.
    templates: [K, K] float32, of `Templates`. keep: share in (0, 1] of the pixels of each class that stay.

    Of the n pixels of class k in this frame, the int(keep n) of lowest KL(template_k || P) stay, one at least, and
    every pixel that ties with the last of them; the others become 255. So a rare class does not vanish, and neither
    does one whose pixels are all alike: the published code keeps neither. A class whose template is zero has the KL
    0 everywhere and keeps all its pixels.

    The published similarity, max KL - KL, has the same order.

    Raises ValueError for probabilities that are negative or not finite, and for an unknown label.
    """
    _lib.check(probs, "probs", _lib.FLOAT_AND_DOUBLE, ("K", "H", "W"))
    K = probs.shape[0]
    _check_classes(K, "probs: classes")
    _lib.check(label, "label", (torch.uint8,), probs.shape[1:])
    _lib.check(templates, "templates", (torch.float32,), (K, K))
    _lib.check_devices(probs=probs, label=label, templates=templates)
    _check_portion(keep, "keep")
    flat = label.flatten()
    counts = torch.bincount(flat, minlength=256)
    _check_known(counts, K)
    cross = _cross_entropy(probs, flat, templates)
    if not cross.isfinite().all():
        raise ValueError("probs, templates: wanted probabilities, got negative or non-finite values")
    bar = cross.new_zeros(256)
    by_class = cross.index_select(0, flat.sort().indices).split(counts.tolist())
    for k, mine in enumerate(by_class[:K]):
        if len(mine):
            # topk and not kthvalue, which CUDA refuses in deterministic mode; neither sorts.
            bar[k] = mine.topk(max(1, int(keep * len(mine))), largest=False, sorted=False).values.max()
    return torch.where(cross <= bar.index_select(0, flat.long()), flat, IGNORE).view_as(label)


def _cross_entropy(probs: Tensor, label: Tensor, templates: Tensor) -> Tensor:
    """-sum_j template_kj log P_j of every pixel, k its label: the KL up to a constant of the class. [H W] float32."""
    result = torch.empty(label.shape, device=probs.device)
    own = label.clamp(max=len(templates) - 1).long()[None]  # what an ignored pixel gets is never read
    with torch.autocast(probs.device.type, enabled=False):
        for p, k, out in zip(probs.flatten(1).split(CHUNK, 1), own.split(CHUNK, 1), result.split(CHUNK), strict=True):
            of_each = templates @ (p.float() + EPS).log_()
            torch.neg(of_each.gather(0, k)[0], out=out)
    return result


@torch.no_grad()
def image_quantile(confidence: Tensor, portion: float) -> Tensor:
    """The confidence that the portion of a frame's pixels reaches, for CCM's image-level mask.

    confidence: [H, W] float, any range. portion: in (0, 1]. Returns element int(portion H W) - 1 of the descending
    order, the first at least, as a tensor [] of the same type.

    `confidence >= image_quantile(..)` takes the portion and whatever ties with its last pixel. The published mask
    takes `>`: nothing, where a saturated network ties at the top.

    Raises ValueError without pixels and for NaN.
    """
    _lib.check(confidence, "confidence", _lib.FLOAT_AND_DOUBLE, ("H", "W"))
    _check_pixels(confidence, "confidence")
    _check_portion(portion, "portion")
    if confidence.isnan().any():
        raise ValueError("confidence: wanted numbers, got NaN")
    values = confidence.flatten()
    return values.topk(max(1, int(portion * len(values))), sorted=False).values.min()


# ---- checks at the door


def _check_classes(num_classes: int, name: str = "num_classes") -> None:
    _lib.check_number(num_classes, name, "an int")
    if not 1 <= num_classes <= IGNORE:
        raise ValueError(f"{name}: wanted 1 to {IGNORE}, got {num_classes}")


def _check_pixels(x: Tensor, name: str) -> None:
    if not x.numel():
        raise ValueError(f"{name}: wanted at least one pixel, got shape {list(x.shape)}")


def _check_known(counts: Tensor, num_classes: int) -> None:
    """counts [256]: how often each label value occurs."""
    unknown = counts[num_classes:IGNORE].nonzero()
    if len(unknown):
        wanted = f"0 to {num_classes - 1} or {IGNORE}"
        raise ValueError(f"label: wanted {wanted}, got {num_classes + int(unknown[0])}")


def _check_portion(value: float, name: str) -> None:
    _lib.check_number(value, name)
    if not 0 < value <= 1:
        raise ValueError(f"{name}: wanted a share in (0, 1], got {value}")
