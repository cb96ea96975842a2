"""The embedded world against geometry worked by hand and against a scalar ray caster in float64."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest

from vda.data import _silhouettes as cut
from vda.data import synthetic as world
from vda.data._world import BUILDING, CAR, PERSON, ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION
from vda.data.synthetic import CAMERA, CLASSES, PALETTE, SIMULATOR, Drive, Look, SyntheticClip, embedded
from vda.errors import UsageError

STRAIGHT = Drive(turn=0, sway=0, traffic=False)
STILL = Drive(speed=0, sway=0, traffic=False)


def clip(seed: int = 3, size: tuple[int, int] = (64, 128), length: int = 6, **options: object) -> SyntheticClip:
    return SyntheticClip(seed, size=size, length=length, **options)  # type: ignore[arg-type]


def nearest(values: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """values(p + flow(p)), clamped to the picture."""
    H, W = values.shape[-2:]
    v, u = np.indices((H, W))
    v, u = np.rint(v + flow[1]).astype(int).clip(0, H - 1), np.rint(u + flow[0]).astype(int).clip(0, W - 1)
    return values[..., v, u]


# geometry


def test_depth_of_the_road_by_hand() -> None:
    # f = 0.85 * 200 = 170, horizon at 0.46 * 100 = 46: row 96 looks 50 / 170 down, so 1.5 m are met at 5.1 m
    straight = clip(size=(101, 200), drive=STRAIGHT)
    for i in range(len(straight)):
        depth, label = straight.depth(i), straight.label(i)
        assert label[96, 99] == ROAD
        assert depth[96, 99] == pytest.approx(5.1, rel=1e-5)
        rows, cols = np.nonzero((label == ROAD) | (label == SIDEWALK) | (label == TERRAIN))
        np.testing.assert_allclose(depth[rows, cols], 1.5 * 170 / (rows - 46), rtol=1e-4)


def test_forward_motion_expands_from_the_vanishing_point() -> None:
    straight = clip(size=(101, 200), drive=STRAIGHT)
    flow, depth = straight.exact_flow(1, 2), straight.depth(1)
    # (depth - dz) / depth = 50 / (50 + v) at 50 rows below the horizon
    dz = 5.1 * (1 - 50 / (50 + flow[1, 96, 99]))
    assert 0.8 * 0.4 <= dz <= 1.2 * 0.4
    v, u = np.indices(depth.shape)
    seen = np.isfinite(depth) & (depth > dz + 0.5)
    scale = (dz / (depth - dz))[seen]
    np.testing.assert_allclose(flow[0][seen], (u[seen] - 99.5) * scale, atol=2e-3)
    np.testing.assert_allclose(flow[1][seen], (v[seen] - 46) * scale, atol=2e-3)
    assert np.abs(flow[:, np.isinf(depth)]).max() < 1e-3
    assert np.isinf(depth[straight.label(1) == SKY]).all()


def test_nothing_moves_when_nothing_moves() -> None:
    still = clip(drive=STILL)
    assert np.abs(still.exact_flow(0, 4)).max() < 1e-3
    np.testing.assert_array_equal(still.label(0), still.label(4))
    np.testing.assert_array_equal(still.frame(0), still.frame(4))
    assert not still.occlusion(0, 4).any()
    assert not clip().exact_flow(2, 2).any()


def test_only_traffic_moves_before_a_still_camera() -> None:
    moved = 0
    for seed in range(4):
        still = clip(seed, (96, 192), drive=Drive(speed=0, sway=0))
        flow, label = still.exact_flow(0, 3), still.label(0)
        moving = np.hypot(*flow) > 1e-2
        assert np.isin(label[moving], (CAR, PERSON)).all()
        moved += moving.sum()
        seen = ~still.occlusion(0, 3) & moving
        assert (nearest(still.label(3), flow)[seen] == label[seen]).mean() > 0.99
    assert moved > 200


def test_flow_equals_reprojection_by_matrices() -> None:
    bend = clip(7, (72, 120), length=8, drive=Drive(traffic=False, turn=2, sway=3))
    size, depth = bend.size, bend.depth(1).astype(np.float64)
    first, second = bend._street.camera(1, size), bend._street.camera(6, size)

    def turn(yaw: float) -> np.ndarray:
        return np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])

    v, u = np.indices(size)
    z = np.where(np.isinf(depth), 1e9, depth)  # far enough to be at infinity
    local = np.stack([(u - first.cx) / first.f * z, z])
    there = np.einsum("ab,bhw->ahw", turn(first.yaw), local)
    there += np.array([first.x - second.x, first.z - second.z])[:, None, None]
    there = np.einsum("ab,bhw->ahw", turn(second.yaw).T, there)
    ahead = there[1] > 1.0
    expected_u = second.f * there[0] / there[1] + second.cx - u
    expected_v = second.cy + (v - first.cy) * z / there[1] - v
    flow = bend.exact_flow(1, 6)
    inside = ahead & (np.abs(expected_u) < 200) & (np.abs(expected_v) < 200)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(flow[0][inside], expected_u[inside], atol=5e-3)
    np.testing.assert_allclose(flow[1][inside], expected_v[inside], atol=5e-3)
    assert abs(second.yaw - first.yaw) > 0.01


def scalar_cast(film: SyntheticClip, i: int, row: int, col: int) -> tuple[float, int]:
    """Depth and class by testing one ray against everything, one thing after the other, in float64."""
    street, camera = film._street, film._street.camera(i, film.size)
    across, up = (col - camera.cx) / camera.f, (camera.cy - row) / camera.f
    ray = np.array([across * np.cos(camera.yaw) + np.sin(camera.yaw), np.cos(camera.yaw) - across * np.sin(camera.yaw)])
    best = (1.5 / -up, -1) if up < 0 else (np.inf, -2)
    prims = street.visible(i)
    for k, (x, z, heading) in enumerate(zip(*street.poses(prims, i), strict=True)):
        prim = prims[k]
        axes = np.array([[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]])
        o, d = axes @ np.array([camera.x - x, camera.z - z]), axes @ ray
        low, high = -np.inf, np.inf
        if prim["shape"] >= 0:  # a cut-out: the plane, then the cell of the silhouette
            low = high = -o[1] / d[1]
            right, height = o[0] + low * d[0], 1.5 + low * up
            column = int(np.floor((right / prim["a"] + 1) / 2 * cut.SHAPE[1]))
            line = int(np.floor((prim["y1"] - height) / (prim["y1"] - prim["y0"]) * cut.SHAPE[0]))
            if not (0 <= column < cut.SHAPE[1] and 0 <= line < cut.SHAPE[0]):
                continue
            if not cut.silhouettes()[prim["shape"], line, column]:
                continue
        else:
            for start, step, lo, hi in (
                (o[0], d[0], -prim["a"], prim["a"]),
                (o[1], d[1], -prim["b"], prim["b"]),
                (1.5, up, prim["y0"], prim["y1"]),
            ):
                near, far = sorted(((lo - start) / step, (hi - start) / step))
                low, high = max(low, near), min(high, far)
        if 0.3 < low <= high and low < best[0]:
            best = (low, k)
    return best[0], (int(prims["label"][best[1]]) if best[1] >= 0 else best[1])


def test_against_a_scalar_ray_caster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vda.data._raycast.SMALL", 1e-9)
    rng = np.random.default_rng(5)
    wrong = total = 0
    things = set()
    for seed in (1, 2, 6):
        film = clip(seed, (75, 131))
        depth, label = film.depth(3), film.label(3)
        for row, col in zip(rng.integers(12, 66, 70), rng.integers(0, 131, 70), strict=True):
            expected, kind = scalar_cast(film, 3, row, col)
            if kind == -1:
                same = label[row, col] in (ROAD, SIDEWALK, TERRAIN)
            elif kind == -2:
                same = label[row, col] in (SKY, VEGETATION)
            else:
                same = label[row, col] == kind
                things.add(kind)
            same = same and np.isclose(depth[row, col], expected, rtol=1e-3)
            wrong, total = wrong + (not same), total + 1
    assert wrong <= 1, f"{wrong} of {total} rays differ"  # a ray may graze an edge in float32
    assert len(things) >= 5


# motion


@pytest.mark.parametrize(("i", "j"), [(2, 3), (3, 2), (1, 4)])
def test_labels_carried_by_the_flow_agree_where_visible(i: int, j: int) -> None:
    agree, hidden = [], []
    for film in embedded("camera", clips=4, length=6, size=(96, 192)).clips:
        seen = ~film.occlusion(i, j)
        carried = nearest(film.label(j), film.exact_flow(i, j))
        agree.append((carried == film.label(i))[seen].mean())
        hidden.append((carried == film.label(i))[~seen].mean())
    assert np.mean(agree) > 0.99
    assert np.mean(hidden) < 0.9  # the mask does single out what cannot be carried


def test_round_trip_returns_to_the_pixel() -> None:
    for seed in (1, 4):
        film = clip(seed, (96, 192))
        there, back = film.exact_flow(2, 3), film.exact_flow(3, 2)
        v, u = np.indices(film.size)
        y, x = v + there[1], u + there[0]
        r, c = np.floor(y).astype(int).clip(0, 94), np.floor(x).astype(int).clip(0, 190)
        a, b = y - r, x - c
        corners = [(0, 0, (1 - a) * (1 - b)), (0, 1, (1 - a) * b), (1, 0, a * (1 - b)), (1, 1, a * b)]
        returned = sum(w * back[:, r + dr, c + dc] for dr, dc, w in corners)
        # smooth: the four pixels around the landing point see one piece of surface
        pieces = film._geometry(3).surface
        smooth = ~film.occlusion(2, 3)
        for dr, dc, _ in corners:
            smooth &= pieces[r + dr, c + dc] == film._geometry(2).surface
        smooth &= (y >= 0) & (y <= 95) & (x >= 0) & (x <= 191)
        error = np.hypot(*(there + returned))[smooth]
        assert smooth.mean() > 0.5
        assert np.quantile(error, 0.99) < 0.05
        assert np.mean(error) < 0.01


def test_points_left_behind_get_a_finite_flow_out_of_the_picture() -> None:
    film = clip(2, (64, 128), length=40, drive=Drive(speed=2))
    flow = film.exact_flow(0, 39)
    assert np.isfinite(flow).all()
    near = film.depth(0) < 20  # the car drives some 70 m
    u, v = np.arange(128) + flow[0], np.arange(64)[:, None] + flow[1]
    static = ~np.isin(film.label(0), (CAR, PERSON))
    assert not ((u >= 0) & (u < 128) & (v >= 0) & (v < 64))[near & static].any()


def test_neighbouring_frames_look_like_video() -> None:
    data = embedded("simulator", clips=6, length=4, size=(64, 128))
    agree = [(c.label(i) == c.label(i + 1)).mean() for c, i in itertools.product(data.clips, (0, 2))]
    assert 0.85 < np.mean(agree) < 0.97
    visible = [np.hypot(*c.exact_flow(0, 1))[~c.occlusion(0, 1)].mean() for c in data.clips]
    assert 0.5 < np.mean(visible) < 4  # pixels at 64 x 128


# the clip and the data set


def test_same_seed_same_bytes_in_any_order() -> None:
    one, two = clip(5, look=CAMERA, cache=1), clip(5, look=CAMERA)
    forward = [one.frame(i) for i in range(6)]
    for i in (5, 0, 3, 1, 4, 2):
        np.testing.assert_array_equal(two.frame(i), forward[i])
        np.testing.assert_array_equal(two.label(i), one.label(i))
    np.testing.assert_array_equal(one.exact_flow(4, 1), two.exact_flow(4, 1))
    assert (clip(6, look=CAMERA).label(0) != one.label(0)).mean() > 0.05
    later = clip(5, look=CAMERA, length=2, first_frame=3)
    np.testing.assert_array_equal(later.frame(1), forward[4])
    np.testing.assert_array_equal(later.exact_flow(0, 1), one.exact_flow(3, 4))
    assert later.frame_names == list(one.frame_names)[3:5]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).frame(2), forward[2])


def test_what_is_given_out_may_be_overwritten() -> None:
    film = clip()
    for take in (film.frame, film.label, film.depth, lambda i: film.exact_flow(i, 2)):
        before = take(1).copy()
        take(1)[:] = 0
        np.testing.assert_array_equal(take(1), before)
        assert before.any()


@pytest.mark.parametrize("split", list(world.SPLITS))
def test_splits(split: str) -> None:
    data = embedded(split, clips=10, length=9, size=(64, 128))
    assert data.num_classes == len(CLASSES) == len(PALETTE) == 11
    assert data.size == (64, 128)
    assert data.num_frames == 90
    assert len({c.name for c in data.clips}) == 10
    counts = sum(np.bincount(c.label(i).ravel(), minlength=11) for c in data.clips for i in (0, 8))
    share = counts / counts.sum()
    assert share.min() > 0.004, dict(zip(CLASSES, share, strict=True))
    assert share.max() < 0.5
    assert len(counts) == 11


def test_splits_and_seeds_share_no_layout() -> None:
    films = [c for s in world.SPLITS for c in embedded(s, clips=3, length=1, size=(48, 96)).clips]
    films += embedded("camera", clips=2, length=1, size=(48, 96), seed=1).clips
    for a, b in itertools.combinations(films, 2):
        assert (a.label(0) != b.label(0)).mean() > 0.02


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (37, 61), (61, 37), (5, 400)])
def test_any_size(size: tuple[int, int]) -> None:
    film = clip(2, size, 2, look=CAMERA)
    assert film.frame(0).shape == (*size, 3)
    assert film.frame(0).dtype == film.label(1).dtype == np.uint8
    assert film.label(1).shape == film.depth(1).shape == film.occlusion(0, 1).shape == size
    flow = film.exact_flow(0, 1)
    assert flow.shape == (2, *size)
    assert flow.dtype == film.depth(0).dtype == np.float32
    assert np.isfinite(flow).all()
    assert film.label(0).max() < 11


@pytest.mark.parametrize("i", [-1, 6, 100])
def test_frames_outside_the_clip(i: int) -> None:
    film = clip()
    for take in (film.frame, film.label, film.depth):
        with pytest.raises(IndexError, match=r"frames 0 to 5"):
            take(i)
    for pair in ((i, 0), (0, i)):
        for take_pair in (film.exact_flow, film.occlusion):
            with pytest.raises(IndexError, match=r"frames 0 to 5"):
                take_pair(*pair)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: embedded("cameras"), "split: wanted one of simulator"),
        (lambda: embedded("camera", clips=0), "clips"),
        (lambda: embedded("camera", length=0), "length"),
        (lambda: embedded("camera", seed=-1), "seed"),
        (lambda: embedded("camera", size=(0, 5)), "height"),
        (lambda: embedded("camera", size=(5, 2.5)), "width"),  # type: ignore[arg-type]
        (lambda: clip(size=7), "size"),  # type: ignore[arg-type]
        (lambda: clip(seed="x"), "seed"),  # type: ignore[arg-type]
        (lambda: clip(seed=()), "seed"),  # type: ignore[arg-type]
        (lambda: clip(first_frame=-1), "first_frame"),
        (lambda: clip(cache=0), "cache"),
        (lambda: Look(jpeg=101), "look.jpeg"),
        (lambda: Look(jpeg=70.5), "look.jpeg"),  # type: ignore[arg-type]
        (lambda: Look(gain=(1, 1, -1)), "look.gain"),
        (lambda: Look(palette=float("nan")), "look.palette"),
        (lambda: Drive(speed=9), "drive.speed"),
    ],
)
def test_bad_input_is_named(make, named: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=named):
        make()


# looks


def test_the_look_changes_pictures_and_nothing_else() -> None:
    plain, filmed = clip(4), clip(4, look=CAMERA)
    np.testing.assert_array_equal(plain.label(2), filmed.label(2))
    np.testing.assert_array_equal(plain.exact_flow(2, 3), filmed.exact_flow(2, 3))
    difference = np.abs(plain.frame(2).astype(int) - filmed.frame(2)).mean()
    assert difference > 20
    pictures = [c.frame(2).astype(float) for c in (plain, filmed)]
    balanced = [p / p.mean((0, 1)) for p in pictures]  # the camera's white balance taken out
    saturation = [np.ptp(p, axis=-1).mean() for p in balanced]
    assert saturation[0] > 1.6 * saturation[1]
    red, _, blue = pictures[1].mean((0, 1))
    assert red > 1.15 * blue


@pytest.mark.parametrize("field", [f.name for f in fields(Look) if f.name not in ("name", "haze_colour")])
def test_every_number_of_a_look_matters(field: str) -> None:
    before = clip(4, look=SIMULATOR).frame(2).astype(int)
    after = clip(4, look=replace(SIMULATOR, **{field: getattr(CAMERA, field)})).frame(2).astype(int)
    assert (before != after).mean() > 0.005, field


def test_haze_grows_with_depth() -> None:
    clear, hazy = Look(), Look(haze=0.02, haze_colour=(1.0, 0.0, 1.0))
    film = clip(4, (96, 192), look=clear)
    depth, label = film.depth(2), film.label(2)
    moved = np.abs(clip(4, (96, 192), look=hazy).frame(2).astype(int) - film.frame(2)).mean(-1)
    near, far = (moved[(label == BUILDING) & (depth > lo) & (depth < hi)] for lo, hi in ((0, 25), (50, 500)))
    assert near.size > 50
    assert far.size > 50
    assert far.mean() > 1.5 * near.mean()


def test_between_two_looks() -> None:
    assert replace(Look.between(SIMULATOR, CAMERA, 0), name="simulator", jpeg=0) == SIMULATOR
    assert Look.between(SIMULATOR, CAMERA, 1) == CAMERA
    half = Look.between(SIMULATOR, CAMERA, 0.5)
    assert half.haze == pytest.approx(CAMERA.haze / 2)
    frames = [clip(4, look=look).frame(1).astype(int) for look in (SIMULATOR, half, CAMERA)]
    distance = [np.abs(f - frames[0]).mean() for f in frames]
    assert distance[0] < distance[1] < distance[2]
