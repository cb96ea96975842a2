"""Ray casting of the embedded world: what each pixel sees, how far, and where that point goes.

The camera is level, so a ray's horizontal part depends on its column alone and its vertical part on its row
alone. The slab test of an upright box (Kay and Kajiya 1986) then splits into one interval of depth per column
and one per row; only their intersection is two-dimensional. Depth is distance along the optical axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vda.data import _silhouettes as cut
from vda.data._street import Street
from vda.data._world import (
    CAMERA_HEIGHT,
    CROSSING,
    POLE,
    ROAD,
    SIDEWALK,
    SKY,
    SMALL,
    STATIC,
    TERRAIN,
    VEGETATION,
    Camera,
    Prims,
)

Float = NDArray[np.float32]

NEAR = 0.3  # m; nothing is drawn nearer than this
GROUND, REMOTE = -1, -2  # `owner` of pixels that see no prim: the ground, and what is infinitely far


@dataclass(frozen=True)
class Geometry:
    """What frame t shows. Maps are [H, W].

    depth: metres, inf at the sky and the skyline. label: class. surface: identity of the flat piece of the
    world that is seen, the same in all frames. owner: index into prims, GROUND or REMOTE.
    """

    t: int
    camera: Camera
    prims: Prims
    depth: Float
    owner: NDArray[np.int32]
    label: NDArray[np.uint8]
    surface: NDArray[np.int64]
    rays: tuple[Float, Float, Float]  # world direction per unit depth: x [W], z [W], y [H]
    ground: GroundPoints
    hits: Hits


@dataclass(frozen=True)
class GroundPoints:
    """The ground pixels: flat index, place along the street, distance to the right of its middle (metres)."""

    index: NDArray[np.int64]
    z: Float
    d: Float
    crossing: NDArray[np.bool_]


@dataclass(frozen=True)
class Hits:
    """The pixels that see a prim: flat index, prim, point in its axes (right, forward, height), face, part.

    face: 0 a side, 1 front or back, 2 the top.
    """

    index: NDArray[np.int64]
    owner: NDArray[np.int32]
    right: Float
    forward: Float
    height: Float
    face: NDArray[np.uint8]
    part: NDArray[np.uint8]


@dataclass(frozen=True)
class _Slabs:
    """Depth intervals of N prims: per column [N, W] and per row [N, H], and points of the columns' rays."""

    enter: Float
    leave: Float
    row_enter: Float
    row_leave: Float
    origin: tuple[Float, Float]  # the camera in the axes of each prim [N]
    dir: tuple[Float, Float]  # the columns' directions in them [N, W]


def cast(street: Street, t: int, size: tuple[int, int]) -> Geometry:
    """Everything frame t shows, at size (H, W)."""
    H, W = size
    camera = street.camera(t, size)
    rays = _rays(camera, size)
    prims = street.visible(t)
    slabs = _slabs(street, prims, t, camera, rays)

    down = np.maximum(-rays[2], 0)
    with np.errstate(divide="ignore"):
        row_depth = np.where(down > 1e-5, np.float32(CAMERA_HEIGHT) / down, np.float32(np.inf))
    depth = np.repeat(row_depth.astype(np.float32)[:, None], W, axis=1)
    owner = np.where(np.isinf(depth), np.int32(REMOTE), np.int32(GROUND))
    _draw(slabs, prims, rays[2], camera.f, depth, owner)

    label = np.full((H, W), SKY, np.uint8)
    surface = np.full((H, W), REMOTE, np.int64)
    _paint_skyline(street, rays, owner, label)
    ground = _paint_ground(street, camera, rays, depth, owner, label)
    surface[owner == GROUND] = GROUND
    hits = _hits(prims, slabs, rays[2], depth, owner)
    label.flat[hits.index] = prims["label"][hits.owner]
    side = (hits.face * 2).astype(np.int64)
    side += np.where(hits.face == 0, hits.right > 0, (hits.face == 1) & (hits.forward > 0))
    surface.flat[hits.index] = prims["uid"][hits.owner] * 8 + side
    return Geometry(t, camera, prims, depth, owner, label, surface, rays, ground, hits)


def _rays(camera: Camera, size: tuple[int, int]) -> tuple[Float, Float, Float]:
    across = (np.arange(size[1]) - camera.cx) / camera.f
    up = (camera.cy - np.arange(size[0])) / camera.f
    up[np.abs(up) < 1e-6] = 1e-6  # a ray along the horizon would divide 0 by 0 at the edge of a box
    sin, cos = np.sin(camera.yaw), np.cos(camera.yaw)
    x, z = across * cos + sin, cos - across * sin
    return x.astype(np.float32), z.astype(np.float32), up.astype(np.float32)


def _slabs(street: Street, prims: Prims, t: float, camera: Camera, rays: tuple[Float, Float, Float]) -> _Slabs:
    x, z, heading = street.poses(prims, t)
    sin, cos = np.sin(heading), np.cos(heading)
    rel_x, rel_z = camera.x - x, camera.z - z
    right = (rel_x * cos - rel_z * sin).astype(np.float32)
    forward = (rel_x * sin + rel_z * cos).astype(np.float32)
    sin, cos = sin.astype(np.float32)[:, None], cos.astype(np.float32)[:, None]
    dir_right, dir_forward = rays[0] * cos - rays[1] * sin, rays[0] * sin + rays[1] * cos
    a, b = prims["a"].astype(np.float32)[:, None], prims["b"].astype(np.float32)[:, None]
    low, high = prims["y0"].astype(np.float32)[:, None], prims["y1"].astype(np.float32)[:, None]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = 1 / dir_right
        t0, t1 = (-a - right[:, None]) * inverse, (a - right[:, None]) * inverse
        inverse = 1 / dir_forward
        s0, s1 = (-b - forward[:, None]) * inverse, (b - forward[:, None]) * inverse
        enter = np.fmax(np.fmin(t0, t1), np.fmin(s0, s1))
        leave = np.fmin(np.fmax(t0, t1), np.fmax(s0, s1))
        inverse = 1 / rays[2]
        v0, v1 = (low - np.float32(CAMERA_HEIGHT)) * inverse, (high - np.float32(CAMERA_HEIGHT)) * inverse
    missed = ~((enter <= leave) & (enter > NEAR))
    enter[missed], leave[missed] = np.inf, -np.inf
    return _Slabs(enter, leave, np.fmin(v0, v1), np.fmax(v0, v1), (right, forward), (dir_right, dir_forward))


def _extent(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and one past the last True of each row of [N, M]; 0, 0 where there is none."""
    some = mask.any(axis=1)
    last = mask.shape[1] - mask[:, ::-1].argmax(axis=1)
    return np.where(some, mask.argmax(axis=1), 0), np.where(some, last, 0)


def _draw(slabs: _Slabs, prims: Prims, up: Float, focal: float, depth: Float, owner: NDArray[np.int32]) -> None:
    """Depth-test every prim into depth and owner, each inside its bounding rectangle."""
    nearest = slabs.enter.min(axis=1, keepdims=True)
    farthest = slabs.leave.max(axis=1, keepdims=True)
    c0, c1 = _extent(slabs.leave > 0)
    r0, r1 = _extent((slabs.row_enter <= farthest) & (slabs.row_leave >= nearest))
    holes = cut.silhouettes().reshape(cut.COUNT, -1) > 0
    cell, drop, scale = _cells(slabs, prims)
    shapes = prims["shape"].tolist()
    # clutter of single pixels far away can neither be learnt nor seen to move
    width, height = 2 * np.maximum(prims["a"], prims["b"]), prims["y1"] - prims["y0"]
    thin = np.where(prims["label"] == POLE, np.minimum(width, height), width)  # arms go with their posts
    large = thin * focal > SMALL * nearest[:, 0]
    for k in np.flatnonzero((c1 > c0) & (r1 > r0) & large).tolist():
        rows, cols = slice(int(r0[k]), int(r1[k])), slice(int(c0[k]), int(c1[k]))
        enter = slabs.enter[k, cols]
        near = np.maximum(enter, slabs.row_enter[k, rows, None])
        hit = near <= np.minimum(slabs.leave[k, cols], slabs.row_leave[k, rows, None])
        window = depth[rows, cols]
        hit &= near < window
        if shapes[k] >= 0:
            row = (drop[k] - up[rows, None] * np.where(enter < np.inf, enter, 0)) * scale[k]
            # beyond the rectangle the cell is nonsense, but there `hit` is already False
            index = row.astype(np.int64) * cut.SHAPE[1] + cell[k, cols]
            hit &= holes[shapes[k]].take(index, mode="clip")
        np.copyto(window, near, where=hit)
        np.copyto(owner[rows, cols], np.int32(k), where=hit)


def _cells(slabs: _Slabs, prims: Prims) -> tuple[NDArray[np.int64], Float, Float]:
    """Silhouette columns met by the picture's columns [N, W]; metres from eye level to top, rows per m."""
    a, y0, y1 = (prims[name].astype(np.float32) for name in ("a", "y0", "y1"))
    entered = np.where(slabs.enter < np.inf, slabs.enter, 0)
    right = slabs.origin[0][:, None] + entered * slabs.dir[0] + a[:, None]
    cell = (right * (cut.SHAPE[1] / (2 * a))[:, None]).astype(np.int64).clip(0, cut.SHAPE[1] - 1)
    return cell, y1 - np.float32(CAMERA_HEIGHT), np.float32(cut.SHAPE[0]) / (y1 - y0)


def _hits(prims: Prims, slabs: _Slabs, up: Float, depth: Float, owner: NDArray[np.int32]) -> Hits:
    index = np.flatnonzero(owner >= 0)
    who, t = owner.flat[index], depth.flat[index]
    row, col = np.divmod(index, owner.shape[1])
    right = slabs.origin[0][who] + t * slabs.dir[0][who, col]
    forward = slabs.origin[1][who] + t * slabs.dir[1][who, col]
    height = t * up[row] + np.float32(CAMERA_HEIGHT)
    a, b = prims["a"].astype(np.float32), prims["b"].astype(np.float32)
    edge = np.abs(right) * b[who] > np.abs(forward) * a[who]
    face = np.where(edge, 0, 1).astype(np.uint8)
    face[t > slabs.enter[who, col]] = 2
    part = prims["part"][who]
    flat = prims["shape"][who]
    cutout = np.flatnonzero(flat >= 0)
    if cutout.size:
        k = who[cutout]
        rows, cols = cut.SHAPE
        y0, y1 = prims["y0"].astype(np.float32), prims["y1"].astype(np.float32)
        j = ((right[cutout] + a[k]) * (cols / (2 * a))[k]).astype(np.int64).clip(0, cols - 1)
        i = ((y1[k] - height[cutout]) * (rows / (y1 - y0))[k]).astype(np.int64).clip(0, rows - 1)
        # rounding may land one cell beside the shape's edge; the body's part is right there
        part[cutout] = np.maximum(cut.silhouettes()[flat[cutout], i, j], cut.PLAIN)
        face[cutout] = 1
    return Hits(index, who, right, forward, height, face, part)


def _paint_skyline(
    street: Street, rays: tuple[Float, Float, Float], owner: NDArray[np.int32], label: NDArray[np.uint8]
) -> None:
    """A line of far trees: below an outline that depends on the azimuth alone."""
    azimuth = np.arctan2(rays[0], rays[1])
    height, p, q = street.skyline
    outline = 0.012 + 0.05 * height * (1 + 0.6 * np.sin(5 * azimuth + p) + 0.3 * np.sin(23 * azimuth + q))
    outline += 0.006 * np.sin(91 * azimuth + p)
    rise = rays[2][:, None] / np.hypot(rays[0], rays[1])
    label[(owner == REMOTE) & (rise < outline)] = VEGETATION


def _paint_ground(
    street: Street,
    camera: Camera,
    rays: tuple[Float, Float, Float],
    depth: Float,
    owner: NDArray[np.int32],
    label: NDArray[np.uint8],
) -> GroundPoints:
    """Road, sidewalk and terrain from the place of each ground point along and across the street."""
    index = np.flatnonzero(owner == GROUND)
    col = index % owner.shape[1]
    t = depth.flat[index]
    z = camera.z + t * rays[1][col]
    x = camera.x + t * rays[0][col]
    slope = street.slope(z)
    d = ((x - street.centre(z)) / np.hypot(1, slope)).astype(np.float32)
    first, last = (int(np.floor((camera.z + reach) / street.block)) for reach in (-12, 200))
    block = np.clip(np.floor(z / street.block).astype(np.int64), first, last) - first
    _, cover = street.blocks(first, last)
    far = np.abs(d)
    inside = z - (block + first) * street.block < CROSSING
    crossing = cover[block, 2] & inside
    kind = np.where(cover[block, (d > 0).astype(np.int64)], np.uint8(SIDEWALK), np.uint8(TERRAIN))
    kind[far > street.kerb + 30] = TERRAIN
    kind[far < street.kerb] = SIDEWALK
    kind[far < street.verge] = TERRAIN
    kind[(far < street.half_road) | crossing] = ROAD
    label.flat[index] = kind
    return GroundPoints(index, z.astype(np.float32), d, crossing)


def flow(street: Street, seen: Geometry, t: float) -> Float:
    """How far the points that a frame shows have moved in the picture at frame t: [2, H, W] in pixels.

    A point behind the camera of frame t gets a large finite flow that leaves the picture.
    """
    H, W = seen.depth.shape
    camera = street.camera(t, (H, W))
    if t == seen.t:
        return np.zeros((2, H, W), np.float32)
    remote = seen.owner == REMOTE
    depth = np.where(remote, np.float32(1), seen.depth)
    right: Float = depth * seen.rays[0]
    ahead: Float = depth * seen.rays[1]
    up = depth * seen.rays[2][:, None]
    _move(street, seen, t, right, ahead)
    right -= np.where(remote, np.float32(0), np.float32(camera.x - seen.camera.x))
    ahead -= np.where(remote, np.float32(0), np.float32(camera.z - seen.camera.z))
    sin, cos = np.float32(np.sin(camera.yaw)), np.float32(np.cos(camera.yaw))
    across, z = right * cos - ahead * sin, right * sin + ahead * cos
    scale = np.float32(camera.f) / np.maximum(z, np.float32(1e-3))
    field = np.empty((2, H, W), np.float32)
    field[0] = across * scale + np.float32(camera.cx) - np.arange(W, dtype=np.float32)
    field[1] = np.float32(camera.cy) - up * scale - np.arange(H, dtype=np.float32)[:, None]
    field[0, z < NEAR] = 2 * W  # behind: anywhere outside will do
    limit = np.float32(4 * max(H, W))
    return np.clip(field, -limit, limit, out=field)


def _move(street: Street, seen: Geometry, t: float, right: Float, ahead: Float) -> None:
    """Carry the points (relative to the first camera, world axes) along with the prims they belong to."""
    hits, prims = seen.hits, seen.prims
    moving = np.flatnonzero(prims["motion"][hits.owner] != STATIC)
    if not moving.size:
        return
    index, who = hits.index[moving], hits.owner[moving]
    x, z, heading = street.poses(prims, t)
    sin, cos = np.sin(heading).astype(np.float32)[who], np.cos(heading).astype(np.float32)[who]
    p, q = hits.right[moving], hits.forward[moving]
    right.flat[index] = (x - seen.camera.x).astype(np.float32)[who] + p * cos + q * sin
    ahead.flat[index] = (z - seen.camera.z).astype(np.float32)[who] - p * sin + q * cos
