"""Tubes: what is drawn depends on (seed, iteration) alone; nothing crosses a clip."""

from collections import Counter

import numpy as np
import pytest
import torch
from clips import dataset, scrolling_clip

from vda.data.transforms import Augment
from vda.data.tubes import Draw, Mixed, Tubes, draws, loader, true_labels
from vda.errors import UsageError


def tubes(**changes: object) -> Tubes:
    clips = dataset(scrolling_clip("a", 5), scrolling_clip("b", 4, seed=1))
    options = {"length": 2, "step": 1, "augment": Augment(), "seed": 3, "labels": true_labels} | changes
    return Tubes(clips, **options)  # type: ignore[arg-type]


def test_tubes_stay_inside_their_clip() -> None:
    found = [(clip.name, indices) for clip, indices in tubes(length=3, step=2).tubes]
    assert found == [("a", (0, 2, 4))]  # clip b has four frames, a tube spans five
    assert len(tubes()) == 4 + 3


def test_too_short_clips_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"arrays/all.*at least 7 frames, the longest of 2 clips has 5"):
        tubes(length=3, step=3)


def test_unlabelled_frame_is_refused_by_name() -> None:
    clip = scrolling_clip("bare")
    clip.labels = None
    source = Tubes(dataset(clip), length=2, step=1, augment=Augment(), seed=0, labels=true_labels)
    with pytest.raises(UsageError, match=r"frame bare/0002 has no label"):
        next(loader(source, batch=1, start=0, stop=1))


def test_error_in_a_loader_process_keeps_its_sentence() -> None:
    clip = scrolling_clip("bare")
    clip.labels = None
    source = Tubes(dataset(clip), length=2, step=1, augment=Augment(), seed=0, labels=true_labels)
    with pytest.raises(UsageError) as caught:
        next(loader(source, batch=1, start=0, stop=1, workers=1))
    assert str(caught.value) == "data set arrays/all: frame bare/0002 has no label"


def test_every_epoch_sees_every_tube_once() -> None:
    drawn = [d for batch in draws(7, 2, seed=1, start=0, stop=7) for d in batch]
    for epoch in (0, 1):
        assert sorted(d.index for d in drawn if d.epoch == epoch) == list(range(7))
    assert [d.index for d in drawn[:7]] != [d.index for d in drawn[7:]]


def test_stream_continues_where_it_stopped() -> None:
    whole = list(draws(5, 3, seed=2, start=0, stop=9))
    assert list(draws(5, 3, seed=2, start=4, stop=9)) == whole[4:]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_the_iteration(workers: int) -> None:
    source = tubes(
        augment=Augment(flip=0.5, jitter=1.0, brightness=0.3, contrast=0.3),
        flow=lambda c, i, j: c.exact_flow(i, j),
    )
    whole = list(loader(source, batch=2, start=0, stop=5))
    late = list(loader(source, batch=2, start=3, stop=5, workers=workers))
    assert len(late) == 2
    for a, b in zip(whole[3:], late, strict=True):
        assert a.names == b.names
        for field in ("frames", "labels", "flows"):
            assert torch.equal(getattr(a, field), getattr(b, field)), field


def test_batch_layout() -> None:
    batch = next(loader(tubes(flow=lambda c, i, j: c.exact_flow(i, j)), batch=3, start=0, stop=1))
    assert batch.frames.shape == (3, 2, 3, 24, 40)
    assert batch.frames.dtype == torch.uint8
    assert batch.labels is not None
    assert batch.flows is not None
    assert batch.flows.shape == (3, 1, 2, 2, 24, 40)
    assert batch.flows[:, 0, 0, 0].unique().tolist() == [-2.0]  # to the next frame
    assert batch.flows[:, 0, 1, 0].unique().tolist() == [2.0]  # and back
    on_device = batch.to(torch.device("cpu"))
    assert on_device.frames.dtype == torch.float32
    assert on_device.frames.max() <= 1


# ---- some of the tubes


def test_chosen_tubes_are_those_and_in_that_order() -> None:
    source = tubes()
    fewer = source.chosen([5, 0, 2])
    assert fewer.tubes == [source.tubes[i] for i in (5, 0, 2)]
    assert (len(fewer), len(source)) == (3, 7)  # a set of its own
    with pytest.raises(UsageError, match="data set arrays/all: wanted at least one of its 7 tubes, chose none"):
        source.chosen([])
    with pytest.raises(IndexError):
        source.chosen([7])


@pytest.mark.parametrize(("share", "count"), [(0.0001, 1), (0.28, 1), (0.29, 2), (0.5, 3), (1.0, 7)])
def test_part_is_a_share_of_the_tubes(share: float, count: int) -> None:
    """The number of whole tubes, at least one; all different, in the order of the set."""
    source = tubes()
    part = source.part(share, 0)
    places = [source.tubes.index(tube) for tube in part.tubes]
    assert len(places) == count
    assert places == sorted(set(places))


def test_part_is_drawn_by_seed_and_number() -> None:
    def drawn(number: int, **changes: object) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((clip.name, indices) for clip, indices in tubes(**changes).part(0.5, number).tubes)

    assert drawn(1) == drawn(1)
    assert len({drawn(number) for number in range(8)}) > 3
    assert len({drawn(0, seed=seed) for seed in range(8)}) > 3
    seen = Counter(tube for number in range(70) for tube in drawn(number))
    assert len(seen) == 7  # every tube has its chance, of 3 in 7
    assert min(seen.values()) > 15


# ---- several sets as one


def mixed(**changes: object) -> Mixed:
    """Seven tubes of clips a and b, and three of a clip c in other colours."""
    options = {"length": 2, "step": 1, "augment": Augment(), "seed": 8, "labels": true_labels} | changes
    return Mixed([tubes(), Tubes(dataset(scrolling_clip("c", 4, seed=2)), **options)])  # type: ignore[arg-type]


def test_mixed_draws_every_tube_of_every_part_equally_often() -> None:
    source = mixed()
    assert len(source) == 10
    assert source.seed == source.parts[0].seed
    seen: Counter[tuple[str, int]] = Counter()
    for batch in loader(source, batch=5, start=0, stop=6):  # three epochs
        assert batch.part.dtype == torch.int64
        assert batch.part.shape == (5,)
        seen.update((names[0], int(part)) for names, part in zip(batch.names, batch.part, strict=True))
    starts = {f"{clip.name}/{clip.frame_names[i[0]]}": n for n, p in enumerate(source.parts) for clip, i in p.tubes}
    assert seen == dict.fromkeys(starts.items(), 3)


def test_mixed_tubes_are_those_of_their_parts() -> None:
    """Index by index, augmented as their own set would do it."""
    change = Augment(flip=0.5, jitter=1.0, brightness=0.3, noise=5.0)
    source = Mixed([tubes(augment=change), tubes(augment=change, seed=5).chosen([6, 2]), tubes(length=3)])
    place = 0
    for number, part in enumerate(source.parts):
        for index in range(len(part)):
            found, wanted = source[Draw(4, place)], part[Draw(4, index)]
            assert not isinstance(found, UsageError)
            assert not isinstance(wanted, UsageError)
            assert (found.part, wanted.part) == (number, 0)
            assert found.names == wanted.names
            for field in ("frames", "labels"):
                assert np.array_equal(getattr(found.sample, field), getattr(wanted.sample, field))
            place += 1
    assert place == len(source) == 7 + 2 + 5


def test_the_part_goes_where_the_batch_goes() -> None:
    batch = next(loader(mixed(), batch=10, start=0, stop=1))
    assert sorted(batch.part.tolist()) == [0] * 7 + [1] * 3
    assert [names[0][0] == "c" for names in batch.names] == (batch.part == 1).tolist()
    assert batch.to(torch.device("cpu")).part.tolist() == batch.part.tolist()
    assert next(loader(tubes(), batch=3, start=0, stop=1)).part.tolist() == [0, 0, 0]


def test_a_field_that_one_part_lacks_is_missing_in_the_batch() -> None:
    batch = next(loader(mixed(labels=None), batch=10, start=0, stop=1))
    assert batch.labels is None
    assert batch.flows is None


def test_an_error_in_a_part_names_its_frame() -> None:
    bare = scrolling_clip("bare")
    bare.labels = None
    source = Mixed([tubes(), Tubes(dataset(bare), length=2, step=1, augment=Augment(), seed=0, labels=true_labels)])
    with pytest.raises(UsageError, match=r"frame bare/000\d has no label"):
        list(loader(source, batch=11, start=0, stop=1))


# ---- crops around classes


@pytest.mark.parametrize("focus", [(2,), ()])
def test_focus_reaches_the_crops(focus: tuple[int, ...]) -> None:
    """A class of one pixel is in every crop of a quarter of the frame where the tubes focus on it, else in a few."""
    clip = scrolling_clip(classes=2)
    assert clip.labels is not None
    clip.labels[:, 12, 20] = 2
    what = Augment(focus=1.0, crop=(12, 20))
    source = Tubes(dataset(clip), length=2, step=1, augment=what, seed=0, labels=true_labels, focus=focus)
    batches = list(loader(source, batch=4, start=0, stop=10))
    shown = torch.cat([(b.labels == 2).flatten(1).any(1) for b in batches if b.labels is not None])
    assert len(shown) == 40
    assert shown.all() == bool(focus)
