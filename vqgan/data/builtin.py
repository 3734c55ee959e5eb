"""Built-in procedural images with the statistics of photographs, so that a first run needs no data.

`leaves` draws dead-leaves scenes (Lee, Mumford and Huang, IJCV 41, 2001): overlapping objects whose radii follow a
power law have the edges, the occlusion and the scale invariance of natural images. Colours, light and texture are ours.

Arrays: n objects, the lowest first; S = size * SAMPLES rows and columns; lengths in units of the image side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

MIN_OBJECTS, MAX_OBJECTS = 12, 38
MIN_RADIUS, MAX_RADIUS = 0.13, 0.7
SHADOW_REACH = 1.3  # a shadow ends at this many radii
SAMPLES = 2  # per pixel and axis, for soft edges
_STREAM = 0x6C656166  # keeps these scenes apart from other draws of Philox

# The colours of a scene, 0 to 255: the ground, then its objects from common to rare.
PALETTES = np.array(
    [
        [(46, 30, 22), (186, 84, 34), (224, 148, 52), (134, 48, 28), (240, 206, 110), (96, 102, 44)],  # autumn
        [(18, 32, 20), (58, 110, 48), (122, 164, 66), (30, 66, 40), (198, 214, 124), (226, 104, 88)],  # undergrowth
        [(54, 50, 48), (152, 142, 130), (98, 94, 96), (206, 196, 180), (128, 100, 82), (66, 76, 90)],  # pebbles
        [(12, 34, 62), (32, 96, 136), (88, 166, 176), (16, 58, 92), (206, 228, 214), (240, 188, 120)],  # sea
        [(40, 62, 36), (236, 166, 184), (252, 222, 222), (106, 142, 78), (188, 74, 112), (250, 236, 160)],  # blossom
        [(30, 22, 50), (96, 58, 116), (196, 96, 108), (246, 166, 98), (54, 44, 96), (252, 226, 176)],  # dusk
        [(70, 88, 106), (214, 224, 232), (156, 178, 200), (246, 248, 248), (104, 128, 154), (178, 140, 122)],  # frost
        [(60, 44, 16), (238, 196, 62), (250, 232, 160), (126, 150, 50), (226, 132, 40), (70, 98, 52)],  # meadow
    ],
    np.float32,
)


class _Scene(NamedTuple):
    """What there is to see; the last of the n + 1 objects is the ground, which is never on top of another."""

    x: Array  # (n + 1,) centres
    y: Array
    radius: Array
    cos: Array  # direction of the long axis
    sin: Array
    narrow: Array  # long axis over short axis
    pointed: Array  # 1: a leaf with two tips, 0: an oval pebble
    phase: Array  # of the texture
    colour: Array  # (n + 1, 3)
    light: Array  # (2,) towards the light
    falloff: float  # how fast the light fades across the scene
    exposure: float


def leaves(index: int, size: int) -> Tensor:
    """Scene number `index`: leaves, petals and pebbles that lie on one another in slanting light.

    A pure function; the same index is the same scene at every size.

    Args:
        index: 0 or more.
        size: side in pixels.

    Returns:
        (3, size, size), uint8.
    """
    scene = _draw_scene(index)
    axis = (np.arange(size * SAMPLES, dtype=np.float32) + 0.5) / (size * SAMPLES)
    top, lit = _stack(scene, axis)
    image = scene.colour[top] * (lit * _shade(scene, axis, top))[..., None]  # (S, S, 3)
    image = image.reshape(size, SAMPLES, size, SAMPLES, 3).mean(axis=(1, 3))
    return torch.from_numpy(np.rint(image.clip(0, 255)).astype(np.uint8).transpose(2, 0, 1).copy())


def _draw_scene(index: int) -> _Scene:
    """Draw everything random. Raw Philox numbers are the same in every version of NumPy."""
    bits = np.random.Philox(key=_STREAM, counter=[0, 0, 0, index]).random_raw(6 + 9 * (MAX_OBJECTS + 1))
    numbers = ((bits >> np.uint64(40)) * 2.0**-24).astype(np.float32)  # each in [0, 1)
    hue, amount, leafiness, light, falloff, exposure = numbers[:6].tolist()
    count = MIN_OBJECTS + round((MAX_OBJECTS - MIN_OBJECTS) * amount)
    draws = numbers[6:].reshape(9, -1)[:, : count + 1]

    radius = (MIN_RADIUS**-2 + draws[2] * (MAX_RADIUS**-2 - MIN_RADIUS**-2)) ** -0.5  # density ~ radius^-3
    palette = PALETTES[int(hue * len(PALETTES))]
    kind = 1 + (draws[6] ** 1.5 * (len(palette) - 1)).astype(np.intp)
    colour = palette[kind] * (0.65 + 0.7 * draws[7])[:, None]
    colour *= np.linspace(0.65, 1.05, count + 1, dtype=np.float32)[:, None]  # what lies deep lies in the dark
    colour[-1] = palette[0]
    pointed = (draws[5] < leafiness).astype(np.float32)
    radius[-1], pointed[-1] = 2, 0
    return _Scene(
        x=draws[0] * 1.2 - 0.1,
        y=draws[1] * 1.2 - 0.1,
        radius=radius,
        cos=np.cos(2 * np.pi * draws[3]),
        sin=np.sin(2 * np.pi * draws[3]),
        narrow=1 / (0.5 + 0.5 * draws[4]),
        pointed=pointed,
        phase=2 * np.pi * draws[8],
        colour=colour,
        light=np.array([np.cos(2 * np.pi * light), np.sin(2 * np.pi * light)], np.float32),
        falloff=0.4 + 0.8 * falloff,
        exposure=0.75 + 0.5 * exposure,
    )


def _stack(scene: _Scene, axis: Array) -> tuple[Array, Array]:
    """Lay the objects on one another: which one is on top, and the light that the shadows of others leave.

    Args:
        axis: (S,), positions of rows and columns.

    Returns:
        (S, S) indices of objects, and (S, S) in [0, 1].
    """
    side, ground = len(axis), len(scene.x) - 1
    top = np.full((side, side), ground)
    lit = np.ones((side, side), np.float32)
    numbers = np.stack(scene[:7], axis=1).tolist()  # plain numbers: small arrays below are quicker with them
    for i, (x, y, radius, cos, sin, narrow, pointed) in enumerate(numbers[:ground]):
        reach = radius * SHADOW_REACH
        columns = slice(max(0, int((x - reach) * side)), max(0, int((x + reach) * side) + 1))
        rows = slice(max(0, int((y - reach) * side)), max(0, int((y + reach) * side) + 1))
        dx, dy = (axis[columns] - x) / radius, ((axis[rows] - y) / radius)[:, None]
        u = dx * cos + dy * sin
        v = np.abs(dy * cos - dx * sin) * narrow
        body = u * u + (v if pointed else v * v)  # 1 at the rim: two arcs that meet, or an ellipse
        inside = body < 1
        lit[rows, columns] *= np.clip(body * 0.9 - 0.35, 0.5, 1)  # 1 from body 1.5 on
        lit[rows, columns][inside] = 1
        top[rows, columns][inside] = i
    return top, lit


def _shade(scene: _Scene, axis: Array, top: Array) -> Array:
    """Brightness (S, S), about 1, of the surfaces on top: domes in slanting light, veined leaves, mottled pebbles."""
    light_x, light_y = scene.light
    x, y = axis[None], axis[:, None]
    radius, cos, sin = scene.radius[top], scene.cos[top], scene.sin[top]
    dx, dy = (x - scene.x[top]) / radius, (y - scene.y[top]) / radius
    u = dx * cos + dy * sin
    v = (dy * cos - dx * sin) * scene.narrow[top]
    veins = 0.18 * np.exp(-81 * v * v) + np.minimum(0.07, 0.23 * radius) * np.cos(16 * (u - 0.6 * np.abs(v)))
    mottle = 0.1 * np.sin(5 * u + scene.phase[top]) * np.sin(6 * v + 2 * scene.phase[top])
    dome = 0.4 * (light_x * dx + light_y * dy)
    near = 1 + scene.falloff * (light_x * (x - 0.5) + light_y * (y - 0.5))  # closer to the light
    return scene.exposure * near * (1 + dome + np.where(scene.pointed[top], veins, mottle))


BUILTIN: dict[str, Callable[[int, int], Tensor]] = {"leaves": leaves}
"""Sources of `builtin:NAME`: (index, size) -> (3, size, size), uint8."""
