"""Augmentation of training images: Cutout and RandAugment as in PaddleClas's multi-label recipes.

Both work on the resized image, before normalization. All random draws come from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

# Fills what an image that is moved or rotated leaves uncovered.
_GRAY: Final = (128, 128, 128)
# Number of operations for each image, and the probability of each (PaddleClas's `RandAugmentV4`, by ML-Decoder's
# authors).
_OPERATIONS: Final = 2
_PROBABILITY: Final = 0.5
# A magnitude is one ninth to nine ninths of the highest, all equally likely.
_MAGNITUDES: Final = 9


def augment(
    pixels: npt.NDArray[np.uint8], generator: np.random.Generator, *, cutout: bool = True, rand: bool = True
) -> npt.NDArray[np.uint8]:
    """Change a training image (H, W, 3) uint8 as the recipe does: `cut_out`, then `rand_augment`."""
    if cutout:
        pixels = cut_out(pixels, generator)
    return rand_augment(pixels, generator) if rand else pixels


def cut_out(pixels: npt.NDArray[np.uint8], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Cover a rectangle of half the image's sides, centered anywhere, with one random color.

    `pixels` (H, W, 3) uint8 are not changed. Source: DeVries and Taylor, "Improved Regularization of Convolutional
    Neural Networks with Cutout", 2017.
    """
    height, width = pixels.shape[:2]
    row, column = (int(generator.integers(side)) for side in (height, width))
    color = generator.integers(0, 256, 3)
    covered = pixels.copy()
    top, left = max(row - height // 4, 0), max(column - width // 4, 0)
    covered[top : row + height // 4, left : column + width // 4] = color
    return covered


def rand_augment(pixels: npt.NDArray[np.uint8], generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw two of fifteen operations and a magnitude for each, and apply each with probability one half.

    `pixels` (H, W, 3) uint8 are not changed. Source: Cubuk et al., "RandAugment", 2020, in the version of ML-Decoder's
    authors.
    """
    image = Image.fromarray(pixels)
    names = list(OPERATIONS)
    for _ in range(_OPERATIONS):
        # always the same number of draws, so that one operation does not affect the next ones
        name = names[int(generator.integers(len(names)))]
        magnitude = int(generator.integers(1, _MAGNITUDES + 1)) / _MAGNITUDES
        sign = 1 if generator.random() < 0.5 else -1
        place = generator.random(2)
        if generator.random() < _PROBABILITY:
            image = OPERATIONS[name](image, magnitude, sign, place)
    return np.array(image)


_Operation = Callable[[Image.Image, float, int, npt.NDArray[np.float64]], Image.Image]


def _affine(image: Image.Image, *, shear_x: float = 0, shear_y: float = 0, x: float = 0, y: float = 0) -> Image.Image:
    coefficients = (1, shear_x, x * image.width, shear_y, 1, y * image.height)
    # interpolated, since the shifts are fractions of the image's sides and not whole pixels
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC, fillcolor=_GRAY)


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> _Operation:
    return lambda image, magnitude, sign, _place: enhancer(image).enhance(1 + 0.9 * magnitude * sign)


def _cover_small(image: Image.Image, magnitude: float, _sign: int, place: npt.NDArray[np.float64]) -> Image.Image:
    """Cover a gray square with a side of up to 40 pixels at an input size of 448."""
    side = max(1, round(40 / 448 * magnitude * max(image.size)))
    left, top = (int(fraction * length) - side // 2 for fraction, length in zip(place, image.size, strict=True))
    covered = image.copy()
    covered.paste(_GRAY, (left, top, left + side, top + side))
    return covered


# Each takes an image, a magnitude in (0, 1], a sign, and a place as fractions of width and height. The highest
# magnitudes are AutoAugment's (Cubuk et al., 2019).
OPERATIONS: Final[dict[str, _Operation]] = {
    "shear_x": lambda image, m, sign, _: _affine(image, shear_x=0.3 * m * sign),
    "shear_y": lambda image, m, sign, _: _affine(image, shear_y=0.3 * m * sign),
    "translate_x": lambda image, m, sign, _: _affine(image, x=150 / 331 * m * sign),
    "translate_y": lambda image, m, sign, _: _affine(image, y=150 / 331 * m * sign),
    "rotate": lambda image, m, sign, _: image.rotate(30 * m * sign, Image.Resampling.BICUBIC, fillcolor=_GRAY),
    "color": _enhance(ImageEnhance.Color),
    "posterize": lambda image, m, *_: ImageOps.posterize(image, 8 - round(4 * m)),
    "solarize": lambda image, m, *_: ImageOps.solarize(image, round(256 * (1 - m))),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "brightness": _enhance(ImageEnhance.Brightness),
    "auto_contrast": lambda image, *_: ImageOps.autocontrast(image),
    "equalize": lambda image, *_: ImageOps.equalize(image),
    "invert": lambda image, *_: ImageOps.invert(image),
    "cover": _cover_small,
}
