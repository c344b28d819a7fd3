"""Pictures to train the demo model on: shapes, gradients and cloudy textures with the color range of photos."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from demo.colors import COLORS, name_pixels

Canvas = npt.NDArray[np.float32]

# Number of random colors, enough for several hundred of the rarest name.
_POOL_SIZE: Final = 60_000


def draw_scene(generator: np.random.Generator, side: int) -> npt.NDArray[np.uint8]:
    """Return one picture.

    It draws a few colors, each name with the same probability, so that rare names (cyan, pink) are learned as well as
    common ones. They fill a background and shapes; then light, texture, blur and noise imitate a camera.

    Args:
        generator: Source of randomness.
        side: Height and width.

    Returns:
        (side, side, 3) uint8 RGB.
    """
    import cv2

    colors = _draw_colors(generator, int(generator.integers(1, 7)))
    canvas = _fill(generator, side, colors)
    for _ in range(int(generator.integers(0, 9))):
        mask = _SHAPES[int(generator.integers(len(_SHAPES)))](generator, side)
        canvas = canvas + mask[..., None] * (_fill(generator, side, colors) - canvas)
    if generator.random() < 0.6:  # light from one side
        canvas = canvas * (1 + generator.uniform(0.1, 0.5) * (_ramp(generator, side) - 0.5))[..., None]
    if generator.random() < 0.6:  # texture
        canvas = canvas + generator.uniform(0.02, 0.15) * (_clouds(generator, side, 1.0) - 0.5)[..., None]
    if generator.random() < 0.4:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), generator.uniform(0.4, 2.0)), np.float32)
    if generator.random() < 0.3:  # haze, or a faded print
        strength = generator.uniform(0.05, 0.35)
        canvas = canvas + np.float32(strength) * (_draw_colors(generator, 1)[0] - canvas)
    canvas = canvas + generator.normal(0, generator.uniform(0, 0.04), canvas.shape)
    return np.asarray((canvas * 255).round().clip(0, 255).astype(np.uint8))


@functools.cache
def _color_pool() -> tuple[Canvas, ...]:
    """Return random colors of each name, (N, 3) float32 RGB from 0 to 1."""
    generator = np.random.default_rng(0)
    cube = generator.random((_POOL_SIZE, 3))
    grayish = generator.random((_POOL_SIZE, 1)) + generator.normal(0, 0.06, (_POOL_SIZE, 3))
    pool = np.concatenate([cube, grayish]).clip(0, 1).astype(np.float32)
    names = name_pixels((pool * 255).astype(np.uint8))
    return tuple(pool[names == index] for index in range(len(COLORS)))


def _draw_colors(generator: np.random.Generator, count: int) -> list[Canvas]:
    pool = _color_pool()
    groups = [pool[int(index)] for index in generator.choice(len(COLORS), count, replace=False)]
    return [group[int(generator.integers(len(group)))] for group in groups]


def _fill(generator: np.random.Generator, side: int, colors: list[Canvas]) -> Canvas:
    """Return a plain color, a gradient, or clouds in the colors: (side, side, 3) float32."""
    chosen = [colors[int(index)] for index in generator.integers(0, len(colors), int(generator.integers(1, 4)))]
    if len(chosen) == 1:
        jitter = generator.normal(0, 0.02, 3).astype(np.float32)
        return np.broadcast_to(chosen[0] + jitter, (side, side, 3)).astype(np.float32)
    field = (
        _ramp(generator, side) if generator.random() < 0.3 else _clouds(generator, side, generator.uniform(0.8, 1.8))
    )
    position = field * (len(chosen) - 1)
    # some fields have soft transitions, some hard borders
    sharpness = generator.uniform(1, 12)
    lower = np.floor(position).clip(0, len(chosen) - 2).astype(np.int64)
    weight = ((position - lower - 0.5) * sharpness + 0.5).clip(0, 1)[..., None]
    palette = np.stack(chosen)
    return np.asarray(palette[lower] * (1 - weight) + palette[lower + 1] * weight, np.float32)


def _ramp(generator: np.random.Generator, side: int) -> Canvas:
    """Return a ramp from 0 to 1 in a random direction: (side, side) float32."""
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    return _stretch(rows * np.float32(np.sin(angle)) + columns * np.float32(np.cos(angle)))


def _clouds(generator: np.random.Generator, side: int, roughness: float) -> Canvas:
    """Return noise from 0 to 1 whose amplitude falls with frequency, as in photos: (side, side) float32."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(generator.standard_normal((side, side))) / frequency**roughness
    return _stretch(np.fft.irfft2(spectrum, s=(side, side)).astype(np.float32))


def _stretch(field: Canvas) -> Canvas:
    low, high = float(field.min()), float(field.max())
    return np.asarray((field - low) / max(high - low, 1e-6), np.float32)


def _ellipse(generator: np.random.Generator, side: int) -> Canvas:
    import cv2

    mask = np.zeros((side, side), np.float32)
    x, y = (int(value) for value in generator.integers(0, side, 2))
    width, height = (int(value) for value in generator.integers(side // 16, side // 2, 2))
    cv2.ellipse(mask, (x, y), (width, height), generator.uniform(0, 180), 0, 360, [1.0], -1, cv2.LINE_AA)
    return mask


def _polygon(generator: np.random.Generator, side: int) -> Canvas:
    import cv2

    mask = np.zeros((side, side), np.float32)
    count = int(generator.integers(3, 7))
    angles = np.sort(generator.uniform(0, 2 * np.pi, count))
    radii = generator.uniform(side / 10, side / 1.6, count)
    points = generator.uniform(0, side, 2) + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    cv2.fillPoly(mask, [points.round().astype(np.int32)], [1.0], cv2.LINE_AA)
    return mask


def _rectangle(generator: np.random.Generator, side: int) -> Canvas:
    mask = np.zeros((side, side), np.float32)
    top, left = (int(value) for value in generator.integers(-side // 4, side, 2))
    height, width = (int(value) for value in generator.integers(side // 10, side, 2))
    mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = 1
    return mask


def _stripes(generator: np.random.Generator, side: int) -> Canvas:
    period = generator.uniform(0.05, 0.6)
    return np.asarray(_ramp(generator, side) % period < generator.uniform(0.2, 0.8) * period, np.float32)


def _cloud(generator: np.random.Generator, side: int) -> Canvas:
    field = _clouds(generator, side, generator.uniform(1.0, 2.0))
    return ((field - generator.uniform(0.35, 0.65)) * np.float32(generator.uniform(4, 30)) + np.float32(0.5)).clip(0, 1)


_SHAPES: Final[tuple[Callable[[np.random.Generator, int], Canvas], ...]] = (
    _ellipse,
    _polygon,
    _rectangle,
    _stripes,
    _cloud,
)
