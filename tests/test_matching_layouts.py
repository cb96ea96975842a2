"""The layout matching of CCM against hand-worked numbers and brute force: fractions, every partition, loops."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from vda import matching
from vda.matching import Layout, LayoutCentres, cluster, label_layout, layout, layout_centres, layout_score, stack

IGNORE = 255


def draw(K: int, H: int, W: int, seed: int = 0, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """Logits [K, H, W] and a label map [H, W] uint8."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(K, (H, W), generator=g, dtype=torch.uint8)
    label[torch.rand(H, W, generator=g) < ignored] = IGNORE
    return 3 * torch.randn(K, H, W, generator=g), label


def draw_layouts(N: int, K: int, H: int, W: int, seed: int = 0) -> Layout:
    return stack([label_layout(draw(K, H, W, seed=seed * 1000 + n)[1], K) for n in range(N)])


# ---- layouts


def test_label_layout_by_hand() -> None:
    label = torch.tensor([[0, 0, 1], [0, 255, 1]], dtype=torch.uint8)
    found = label_layout(label, 3)
    torch.testing.assert_close(found.horizontal, torch.tensor([[2 / 3, 1 / 3], [0.5, 0.5], [0, 0]]))
    torch.testing.assert_close(found.vertical, torch.tensor([[2 / 3, 1 / 3, 0], [0, 0, 1], [0, 0, 0]]))


def test_layout_by_hand() -> None:
    soft = torch.tensor([[[0.9, 0.8, 0.7], [0.1, 0.2, 0.3]], [[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]]])
    found = layout(soft)
    torch.testing.assert_close(found.horizontal, torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
    torch.testing.assert_close(found.vertical, torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize(
    ("places", "expected"), [(1, [1]), (2, [2 / 6, 4 / 6]), (3, [1 / 6, 2 / 6, 3 / 6]), (6, [1, 1, 2, 2, 3, 3])]
)
def test_places_share_the_mass_of_the_pixels_they_overlap(places: int, expected: list[float]) -> None:
    """Rows of 1, 2 and 3 pixels; onto two places the middle row is halved: 1 + 1 and 1 + 3 of 6."""
    label = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]], dtype=torch.uint8)
    found = label_layout(label, 2, (places, 3)).horizontal[0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32) / sum(expected))


def test_resize_against_fractions() -> None:
    """Every pair of sizes; a place that no pixel of the class reaches is zero to the bit."""
    for P, places in itertools.product(range(1, 9), range(1, 13)):
        column = torch.tensor([[k % 3 == 0 for k in range(P)]], dtype=torch.uint8).T  # class 1 at every third row
        found = label_layout(column, 2, (places, 1)).horizontal[1].tolist()
        for j, value in enumerate(found):
            low, high = Fraction(j * P, places), Fraction((j + 1) * P, places)
            overlap = sum(max(Fraction(0), min(high, k + 1) - max(low, Fraction(k))) for k in range(0, P, 3))
            assert value == pytest.approx(float(overlap / len(range(0, P, 3))), abs=1e-7)
            assert (value == 0) == (overlap == 0), (P, places)


@pytest.mark.parametrize("size", [None, (4, 40)])
@pytest.mark.parametrize("K", [1, 5, 21, 255])
def test_label_layout_is_layout_of_one_hot_maps(K: int, size: tuple[int, int] | None) -> None:
    _, label = draw(K, 13, 17)
    one_hot = torch.stack([label == k for k in range(K)]).float()
    a, b = label_layout(label, K, size), layout(one_hot, size)
    torch.testing.assert_close(a.horizontal, b.horizontal)
    torch.testing.assert_close(a.vertical, b.vertical)
    assert a.horizontal.shape == (K, size[0] if size else 13)
    assert a.vertical.shape == (K, size[1] if size else 17)


def test_a_class_with_less_than_one_pixel_is_not_shown() -> None:
    soft = torch.full((2, 4, 5), 0.04)
    soft[0] = 0.96
    assert not layout(soft).horizontal[1].any()  # 0.8 pixels
    torch.testing.assert_close(layout(soft, least=0.5).horizontal[1], torch.full((4,), 0.25))
    assert layout(torch.cat([soft, soft], 2)).horizontal[1].any()  # 1.6 pixels


def test_ignored_frame_has_an_empty_layout() -> None:
    found = label_layout(torch.full((3, 4), IGNORE, dtype=torch.uint8), 2)
    assert not found.horizontal.any()
    assert not found.vertical.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_layout_of_other_types_and_strides(dtype: torch.dtype) -> None:
    """Sums run in float32: rounded to 16 bits they would be off by a thousandth."""
    soft = draw(3, 60, 50)[0].softmax(0).to(dtype).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    found, expected = layout(soft), layout(soft.double())
    assert found.horizontal.dtype == found.vertical.dtype == torch.float32
    torch.testing.assert_close(found.horizontal, expected.horizontal)
    torch.testing.assert_close(found.vertical, expected.vertical)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e-3])
def test_layout_refuses(value: float) -> None:
    soft = torch.rand(3, 4, 5)
    soft[1, 2, 3] = value
    with pytest.raises(ValueError, match="soft: wanted probabilities"):
        layout(soft)


def test_layout_refuses_other_input() -> None:
    label = torch.tensor([[0, 3]], dtype=torch.uint8)
    with pytest.raises(ValueError, match="label: wanted 0 to 2 or 255, got 3"):
        label_layout(label, 3)
    with pytest.raises(TypeError, match="label"):
        label_layout(label.long(), 4)
    for K in (0, 256):
        with pytest.raises(ValueError, match="num_classes: wanted 1 to 255"):
            label_layout(label, K)
    with pytest.raises(ValueError, match="label: wanted at least one pixel"):
        label_layout(label[:, :0], 4)
    with pytest.raises(ValueError, match="soft: wanted at least one pixel"):
        layout(torch.rand(3, 0, 4))
    with pytest.raises(ValueError, match="soft: wanted shape"):
        layout(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match="least"):
        layout(torch.rand(3, 4, 4), least=0)
    with pytest.raises(ValueError, match="size"):
        layout(torch.rand(3, 4, 4), (0, 4))


# ---- k-means


def inertia(rows: Tensor, centres: Tensor) -> float:
    return float(torch.cdist(rows.double(), centres.double()).min(1).values.square().sum())


def best_inertia(rows: Tensor, C: int) -> float:
    """Of every partition into C clusters."""
    best = math.inf
    for choice in itertools.product(range(C), repeat=len(rows)):
        member = torch.tensor(choice)
        parts = [rows[member == c] for c in range(C)]
        if all(map(len, parts)):
            best = min(best, sum(float((x - x.mean(0)).square().sum()) for x in parts))
    return best


def test_cluster_by_hand() -> None:
    rows = torch.tensor([[0.0], [11], [1], [10]])
    for seed in range(10):
        assert sorted(cluster(rows, 2, seed).flatten().tolist()) == [0.5, 10.5]
    assert cluster(rows, 1).tolist() == [[5.5]]


def test_cluster_against_every_partition() -> None:
    rows = torch.rand(8, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    best = best_inertia(rows, 3)
    reached = []
    for seed in range(12):
        found = cluster(rows, 3, seed)
        nearest = torch.cdist(rows.float(), found).argmin(1)
        for c, centre in enumerate(found):  # where Lloyd stops, every centre is the mean of its rows
            torch.testing.assert_close(centre, rows[nearest == c].mean(0).float())
        reached.append(inertia(rows, found))
    assert min(reached) == pytest.approx(best, rel=1e-5)
    assert all(value > best * (1 - 1e-5) for value in reached)


def test_seeds_are_spread() -> None:
    """Two far rows among 200 near ones: seeds drawn evenly would miss one of them nearly always."""
    rows = torch.cat([torch.rand(200, 3, generator=torch.Generator().manual_seed(0)), torch.eye(3)[:2] * 1000])
    for seed in range(20):
        found = cluster(rows, 3, seed)
        assert sorted((found.norm(dim=1) > 900).tolist()) == [False, True, True]


def test_cluster_with_fewer_distinct_rows_than_centres() -> None:
    rows = torch.tensor([[0.1, 0.9], [0.7, 0.3]]).repeat(5, 1)
    assert sorted(cluster(rows, 10).tolist()) == sorted(rows[:2].tolist())
    assert cluster(rows[:1], 10).tolist() == rows[:1].tolist()
    assert cluster(rows[:0], 10).shape == (0, 2)


def test_a_cluster_without_rows_is_dropped() -> None:
    found = matching._means(torch.tensor([[1.0], [3], [8]], dtype=torch.float64), torch.tensor([0, 0, 2]))
    assert found.tolist() == [[2], [8]]


def test_cluster_is_a_function_of_rows_and_seed() -> None:
    rows = torch.rand(60, 5, generator=torch.Generator().manual_seed(1))
    first = cluster(rows, 6, 7)
    torch.rand(3), np.random.rand(3)
    state = torch.get_rng_state()
    assert torch.equal(cluster(rows, 6, 7), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(cluster(rows, 6, 8), first)


def test_cluster_refuses() -> None:
    with pytest.raises(ValueError, match="centres: wanted at least 1"):
        cluster(torch.rand(3, 2), 0)
    with pytest.raises(ValueError, match="layouts: wanted finite"):
        cluster(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match="layouts: wanted shape"):
        cluster(torch.rand(3))


def test_centres_are_of_the_frames_that_show_the_class() -> None:
    """Class 0 at the top in one frame and at the bottom in the next, class 1 opposite or absent, class 2 never."""
    a = torch.tensor([[0, 0], [1, 1]], dtype=torch.uint8)
    b = torch.tensor([[255, 255], [0, 0]], dtype=torch.uint8)
    found = layout_centres(stack([label_layout(x, 3) for x in (a, b, a)]), 10)
    assert sorted(found.horizontal[0].tolist()) == [[0, 1], [1, 0]]
    assert found.horizontal[1].tolist() == [[0, 1]]
    assert found.vertical[0].tolist() == [[0.5, 0.5]]
    assert [len(c) for c in found.horizontal] == [2, 1, 0]
    with pytest.raises(ValueError, match="show none"):
        layout_centres(stack([label_layout(torch.full((2, 2), IGNORE, dtype=torch.uint8), 3)]))


# ---- layout score


def test_score_by_hand() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) = ln 2 / 2 + ln(2/3) / 2 = 0.14384, and to itself 0; the vertical centre is met."""
    centres = LayoutCentres((torch.tensor([[0.5, 0.5], [0.25, 0.75]]),), (torch.tensor([[1.0]]),))
    source = Layout(torch.tensor([[[0.25, 0.75]], [[1.0, 0.0]]]), torch.ones(2, 1, 1))
    missing = math.log(1e-30)
    second = math.log(0.5) - 0.5 * missing + 0.25 * math.log(0.25) + 0.75 * (math.log(0.75) - missing)
    assert layout_score(source, centres).tolist() == pytest.approx([0.143841 / 2, second / 2], rel=1e-5)


def test_score_against_loops() -> None:
    K, H, W = 4, 5, 7
    target = draw_layouts(30, K, H, W, seed=1)
    target.horizontal[:, 1], target.vertical[:, 1] = 0, 0  # no frame shows class 1
    centres = layout_centres(target, 3)
    source = draw_layouts(70, K, H, W, seed=2)
    source.horizontal[3, 2], source.vertical[3, 2] = 0, 0  # a frame without class 2
    expected = np.zeros(70)
    for n in range(70):
        for s, rows in ((source.horizontal[n], centres.horizontal), (source.vertical[n], centres.vertical)):
            kls = []
            for k in range(K):
                q = s[k].double().numpy()
                for c in rows[k].double().numpy():
                    kls.append((c * (np.log(c + 1e-30) - np.log(q + 1e-30))).sum())
            assert len(kls) == 9
            expected[n] += np.mean(kls)
    found = layout_score(source, centres)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert found.argmax() == 3
    for n in (0, 3, 69):  # one at a time or all at once
        alone = Layout(source.horizontal[n : n + 1], source.vertical[n : n + 1])
        torch.testing.assert_close(layout_score(alone, centres), found[n : n + 1])


def test_a_class_that_the_source_lacks_costs_69() -> None:
    target = label_layout(torch.tensor([[0, 1]], dtype=torch.uint8), 2)
    source = label_layout(torch.tensor([[0, 0]], dtype=torch.uint8), 2)
    centres = layout_centres(stack([target]))
    # class 1: ln 1e30 in both directions; class 0: its column has half the mass; mean over two classes
    expected = (2 * math.log(1e30) + math.log(2)) / 2
    assert layout_score(stack([source, target]), centres).tolist() == pytest.approx([expected, 0], abs=1e-5)


def test_score_refuses() -> None:
    centres = layout_centres(draw_layouts(3, 2, 4, 5), 2)
    with pytest.raises(ValueError, match="horizontal: wanted shape"):
        layout_score(draw_layouts(3, 3, 4, 5), centres)
    with pytest.raises(ValueError, match="vertical: wanted shape"):
        layout_score(draw_layouts(3, 2, 4, 6), centres)
