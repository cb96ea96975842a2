"""How the embedded world is pictured: colours, light, air, optics and sensor.

Geometry, labels and motion never depend on the look. `Look` is typed and small on purpose: the distance
between two domains is tuned by its numbers (or by `Look.between`), not by other code.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from vda.data import _silhouettes as cut
from vda.data._palettes import PALETTES, PART_COLOURS
from vda.data._raycast import REMOTE, Float, Geometry
from vda.data._street import Street
from vda.data._world import BUILDING, CAR, CLASSES, FENCE, ROAD, SKY, VEGETATION
from vda.errors import UsageError


@dataclass(frozen=True)
class Look:
    """One way of picturing the world. The defaults are the simulator's: flat, clean, saturated.

    palette: 0 the simulator's colours of things, 1 the camera's, in between a mixture.
    variety: how far single objects stray from the colour of their kind.
    saturation: 1 keeps the palette's colours, 0 is grey. gain: brightness of (red, green, blue).
    exposure: standard deviation of each clip's own brightness. tone: gamma; above 1 darkens the middle tones.
    shading: how much darker the faces are that the sun does not meet. shadows: darkness of patches of shade.
    texture: strength of the grain of surfaces. haze: per metre; haze_colour: RGB of the air.
    vignette: loss of light in the corners. softness: standard deviation of the optics' blur in pixels of a
    128-row picture. shutter: share of the frame time during which motion smears. noise: standard deviation of
    the sensor's noise. jpeg: quality 1 .. 100, or 0 for none. Colours and brightness are in [0, 1].
    """

    name: str = "simulator"
    palette: float = 0.0
    variety: float = 0.12
    saturation: float = 1.0
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    exposure: float = 0.2
    tone: float = 1.0
    shading: float = 0.25
    shadows: float = 0.0
    texture: float = 0.0
    haze: float = 0.0
    haze_colour: tuple[float, float, float] = (0.78, 0.78, 0.76)
    vignette: float = 0.0
    softness: float = 0.0
    shutter: float = 0.0
    noise: float = 0.0
    jpeg: int = 0

    def __post_init__(self) -> None:
        limits = {"palette": 1, "jpeg": 100, "tone": 4, "saturation": 3, "softness": 20, "shutter": 2}
        for field in fields(self):
            value = getattr(self, field.name)
            top = limits.get(field.name, 2)
            if field.name == "jpeg" and not isinstance(value, int):
                raise UsageError(f"look.jpeg: wanted a whole number, found {value!r}")
            for number in () if field.name == "name" else np.atleast_1d(value):
                if not 0 <= number <= top:
                    raise UsageError(f"look.{field.name}: wanted 0 to {top}, found {value!r}")

    @staticmethod
    def between(first: Look, second: Look, amount: float) -> Look:
        """The look `amount` of the way from first (0) to second (1); the name is the second's."""
        mixed: dict[str, object] = {"name": second.name}
        for field in fields(first)[1:]:
            a, b = getattr(first, field.name), getattr(second, field.name)
            if field.name == "jpeg":  # no compression counts as quality 100
                mixed["jpeg"] = round((a or 100) + amount * ((b or 100) - (a or 100)))
            elif isinstance(a, tuple):
                mixed[field.name] = tuple(p + amount * (q - p) for p, q in zip(a, b, strict=True))
            else:
                mixed[field.name] = a + amount * (b - a)
        return Look(**mixed)  # type: ignore[arg-type]


SIMULATOR = Look()
CAMERA = Look(
    name="camera",
    palette=1.0,
    variety=0.1,
    saturation=0.85,
    gain=(1.22, 1.08, 0.88),
    exposure=0.16,
    tone=1.1,
    shading=0.4,
    shadows=0.3,
    texture=0.3,
    haze=0.008,
    vignette=0.3,
    softness=0.6,
    shutter=0.5,
    noise=0.028,
    jpeg=70,
)


@cache
def _grain() -> Float:
    """[256, 256] tileable noise in [-1, 1], three octaves."""
    rng = np.random.default_rng(7)
    total = np.zeros((256, 256), np.float32)
    for sigma, weight in ((1.0, 0.45), (3.0, 0.35), (9.0, 0.5)):
        noise = cv2.GaussianBlur(np.tile(rng.standard_normal((256, 256)).astype(np.float32), (3, 3)), (0, 0), sigma)
        noise = noise[256:512, 256:512]
        total += weight * noise / noise.std()
    return np.clip(total / 1.5, -1, 1)


def picture(street: Street, look: Look, seen: Geometry, flow: Float) -> NDArray[np.uint8]:
    """Frame [H, W, 3] RGB of what is seen. flow [2, H, W]: to the next frame, for the motion blur."""
    colour = _surfaces(street, look, seen)
    if look.haze:
        air = np.float32(1) - np.exp(np.minimum(seen.depth, 600) * np.float32(-look.haze))
        air[seen.label == SKY] *= np.float32(0.6)
        colour += air[..., None] * (np.array(look.haze_colour, np.float32) - colour)
    return _sensor(street, look, seen, _optics(street, look, colour, flow))


def _mix(look: Look, table: Float) -> Float:
    """Entry 0 is the simulator's, entry 1 the camera's."""
    colours = (1 - look.palette) * table[0] + look.palette * table[1]
    grey = colours.mean(axis=-1, keepdims=True)
    return np.asarray(grey + look.saturation * (colours - grey), np.float32)


def _prim_colours(look: Look, seen: Geometry) -> tuple[Float, Float]:
    """[N, 3] colour of each prim and [N, PARTS, 4] colour and opacity of its parts."""
    prims, palette = seen.prims, _mix(look, PALETTES)
    tint, label = prims["tint"].astype(np.int64), prims["label"]
    colour = palette[label, tint % palette.shape[1]]
    jitter = np.stack([(tint // step) % 97 for step in (8, 800, 80000)], -1).astype(np.float32) / 48 - 1
    jitter = jitter.mean(axis=-1, keepdims=True) + 0.4 * jitter  # mostly brightness
    return colour * (1 + look.variety * 2 * jitter), _mix(look, PART_COLOURS[..., :3])[label]


def _surfaces(street: Street, look: Look, seen: Geometry) -> Float:
    """Colours [H, W, 3] of the surfaces, lit."""
    H, W = seen.depth.shape
    palette = _mix(look, PALETTES)
    # each clip has its own asphalt, paving, grass and sky
    kind = np.random.default_rng([*street.seed, 97]).integers(palette.shape[1], size=len(CLASSES))
    colour = palette[np.arange(len(CLASSES)), kind][seen.label.ravel()]
    hits = seen.hits
    base, parts = _prim_colours(look, seen)
    light = np.ones(H * W, np.float32)
    grain = np.zeros(H * W, np.float32)
    near = 1 / (1 + seen.depth.ravel() * np.float32(3 * 128 / (40 * seen.camera.f)))  # finer than pixels: averaged

    part, opacity = _facing(seen)
    opacity = opacity[:, None]
    colour[hits.index] = base[hits.owner] * (1 - opacity) + parts[hits.owner, part] * opacity
    light[hits.index] = _shade(street, look, seen)
    if look.texture:
        across = np.where(hits.face == 0, hits.forward, hits.right) + (seen.prims["tint"] % 64)[hits.owner]
        grain[hits.index] = _sample(across, hits.height, 16)

    ground, depth = seen.ground, seen.depth.ravel()[seen.ground.index]
    paint = _markings(street, ground.z, ground.d, depth / seen.camera.f) * ~ground.crossing
    paint *= seen.label.ravel()[ground.index] == ROAD
    line = _mix(look, PART_COLOURS[..., :3])[ROAD, cut.RIM]
    colour[ground.index] += paint[:, None] * (line - colour[ground.index])
    if look.texture:
        grain[ground.index] = _sample(ground.d, ground.z, 10)
    if look.shadows:
        shade = np.clip(4 * _sample(ground.d, ground.z, 0.9) - 0.8, 0, 1)
        light[ground.index] *= 1 - look.shadows * shade
    sky = np.flatnonzero((seen.owner == REMOTE).ravel())
    light[sky] *= 1.08 - 0.5 * np.clip(seen.rays[2][sky // W], 0, 0.6)
    weight = np.full(len(CLASSES), look.texture, np.float32)
    weight[VEGETATION] *= 1.8
    light *= 1 + weight[seen.label.ravel()] * near * grain
    return (colour * light[:, None]).reshape(H, W, 3)


def _sample(u: NDArray[np.floating], v: NDArray[np.floating], scale: float) -> Float:
    """Grain at the points (u, v) metres [n], `scale` texels per metre, interpolated."""
    u, v = (np.mod(w * scale, 256).astype(np.float32) for w in (u, v))
    i, j = v.astype(np.int64), u.astype(np.int64)
    a, b = v - i, u - j
    i, j, i1, j1 = i & 255, j & 255, (i + 1) & 255, (j + 1) & 255
    grain = _grain()
    upper = grain[i, j] * (1 - b) + grain[i, j1] * b
    lower = grain[i1, j] * (1 - b) + grain[i1, j1] * b
    return np.asarray(upper * (1 - a) + lower * a, np.float32)


def _facing(seen: Geometry) -> tuple[NDArray[np.uint8], Float]:
    """Part number and opacity of each hit: windows of houses, slats of fences, glass and wheels of cars."""
    hits, label = seen.hits, seen.prims["label"][seen.hits.owner]
    part = hits.part.copy()
    opacity = (part != cut.PLAIN).astype(np.float32)
    pixel = seen.depth.ravel()[hits.index] / np.float32(seen.camera.f)  # metres per pixel
    across = np.where(hits.face == 0, hits.forward, hits.right)

    house = np.flatnonzero((label == BUILDING) & (hits.face < 2))
    tint = seen.prims["tint"][hits.owner[house]]
    bay = 2.4 + (tint % 5) * 0.25
    u, v = np.mod(across[house] / bay, 1), np.mod(hits.height[house] / 3.0, 1)
    window = (np.abs(u - 0.5) < 0.27) & (np.abs(v - 0.55) < 0.27)
    fade = np.clip(1.6 - 1.2 * pixel[house], 0, 1)
    part[house] = cut.DARK
    opacity[house] = window * fade + 0.29 * (1 - fade)

    fence = np.flatnonzero((label == FENCE) & (hits.face < 2))
    fade = np.clip(1.5 - 5 * pixel[fence], 0, 1)
    part[fence] = cut.DARK
    opacity[fence] = (np.mod(across[fence] * 2.5, 1) < 0.3) * fade + 0.3 * (1 - fade)

    ends = np.flatnonzero((label == CAR) & (hits.face == 1) & (hits.part == cut.PLAIN))
    lamp = (hits.height[ends] > 0.55) & (hits.height[ends] < 0.75) & (np.abs(hits.right[ends]) > 0.5)
    part[ends[lamp]] = cut.RED
    opacity[ends[lamp]] = 1
    return part, opacity


def _shade(street: Street, look: Look, seen: Geometry) -> Float:
    """Brightness of each hit by the direction of its face; the sun stands where the clip's seed puts it."""
    hits = seen.hits
    sun = street.skyline[1]
    _, _, heading = street.poses(seen.prims, seen.t)
    sides = 0.5 - 0.5 * np.cos(heading - sun), 0.5 - 0.5 * np.sin(heading - sun)
    side, front = (s.astype(np.float32)[hits.owner] for s in sides)
    flip_side, flip_front = hits.right > 0, hits.forward > 0
    side = np.where(flip_side, 1 - side, side)
    front = np.where(flip_front, 1 - front, front)
    dark = np.where(hits.face == 0, side, np.where(hits.face == 1, front, np.float32(-0.3)))
    dark[seen.prims["shape"][hits.owner] >= 0] = 0.2
    return np.asarray(1 - np.float32(look.shading) * dark, np.float32)


def _markings(street: Street, z: Float, d: Float, pixel: Float) -> Float:
    """Coverage [n] of lane markings: dashes in the middle and lines along the kerbs, 15 cm wide."""

    def line(distance: NDArray[np.floating], half: float) -> Float:
        cover = np.clip((half + pixel / 2 - np.abs(distance)) / pixel, 0, 1)
        return np.asarray(cover * np.minimum(1, 2 * half / pixel), np.float32)

    dashes = line(d, 0.09) * (np.mod(z, 8) < 4)
    lanes = line(np.abs(d) - 3.6, 0.07)
    return np.maximum(dashes, lanes if street.half_road > 5 else 0 * lanes)


def _optics(street: Street, look: Look, colour: Float, flow: Float) -> Float:
    """Motion blur, softness, vignette and the clip's exposure."""
    H, W = flow.shape[1:]
    if look.shutter:
        rows, cols = np.indices((H, W), dtype=np.float32)
        step = np.clip(flow, -0.2 * W, 0.2 * W) * np.float32(look.shutter / 3)
        total = colour.copy()
        for k in (-1, 1):
            total += cv2.remap(
                colour, cols + k * step[0], rows + k * step[1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE
            )
        colour = total / np.float32(3)
    sigma = look.softness * H / 128
    if sigma > 0.2:
        soft = cv2.GaussianBlur(colour, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        colour = np.asarray(soft, np.float32).reshape(H, W, 3)
    draw = np.random.default_rng([*street.seed, 99]).standard_normal(4)
    gain = np.array(look.gain) * np.exp(look.exposure * (draw[0] + 0.35 * draw[1:]))
    if look.vignette:
        v, u = np.linspace(-1, 1, H)[:, None], np.linspace(-1, 1, W)
        fall = (1 - look.vignette * (u * u + v * v) / 2).astype(np.float32)
        colour = colour * fall[..., None]
    return np.asarray(colour * gain.astype(np.float32))


def _sensor(street: Street, look: Look, seen: Geometry, colour: Float) -> NDArray[np.uint8]:
    """Tone curve, noise, quantisation and compression."""
    colour = np.clip(colour, 0, 1)
    if look.tone != 1:
        colour **= np.float32(look.tone)
    if look.noise:
        rng = np.random.default_rng([*street.seed, 98, seen.t + (1 << 20)])
        colour += np.float32(look.noise) * rng.standard_normal(colour.shape, np.float32)
    image = np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
    if look.jpeg:
        _, packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, look.jpeg])
        image = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)[..., ::-1].copy()
    return image
