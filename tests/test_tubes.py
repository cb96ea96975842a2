"""Tubes: what is drawn depends on (seed, iteration) alone; nothing crosses a clip."""

import pytest
import torch
from clips import dataset, scrolling_clip

from vda.data.transforms import Augment
from vda.data.tubes import Tubes, draws, loader, true_labels
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
