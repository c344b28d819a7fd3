"""The demo model's ground truth: twelve basic colors, and the rule for which of them a picture has.

The names are the eleven basic color terms of English (Berlin and Kay, "Basic Color Terms", 1969) and cyan. A pixel's
color follows from its hue (degrees), value (highest channel) and chroma (highest minus lowest channel); value and
chroma go from 0 to 1:

    black     value below 0.2
    white     chroma below 0.1, value from 0.85 on     gray      chroma below 0.1
    brown     hue 10 to 50; value below 0.6, or value below 0.85 and chroma below half of the value
    pink      hue 290 to 340, value from 0.6 on; or hue 340 to 15, value from 0.7 on, chroma below half of the value
    purple    other hues 255 to 340                    red       other hues 340 to 15
    orange    15 to 42          yellow    42 to 70          green     70 to 160
    cyan      160 to 195        blue      195 to 255

The first matching line counts; a range includes its lower end but not its upper one. A picture has a color if at least
a tenth of its pixels have it after resizing to the network's input, which averages fine grain as the eye does.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

# Label of each class id.
COLORS: Final = (
    "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "gray", "white",
)  # fmt: skip
# Least share of pixels for a picture to have a color.
NOTICEABLE_SHARE: Final = 0.1

# Hues, and the upper end of each one's range in degrees; red lies around 0.
_HUES: Final = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "red")
_ENDS: Final = (15, 42, 70, 160, 195, 255, 290, 340, 360)


def name_pixels(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the color of each pixel.

    Args:
        pixels: (..., 3) uint8 RGB.

    Returns:
        (...) int64, indexes into `COLORS`.
    """
    channels = pixels.astype(np.float64) / 255
    red, green, blue = np.moveaxis(channels, -1, 0)
    value = channels.max(axis=-1)
    chroma = value - channels.min(axis=-1)
    divisor = np.where(chroma > 0, chroma, 1)
    sectors = [(green - blue) / divisor % 6, (blue - red) / divisor + 2, (red - green) / divisor + 4]
    hue = np.select([value == red, value == green], sectors[:2], sectors[2]) * 60 % 360  # degrees; 0 without chroma
    of_hue = np.array([COLORS.index(name) for name in _HUES])
    names: npt.NDArray[np.int64] = of_hue[np.searchsorted(_ENDS, hue, side="right").clip(max=len(_ENDS) - 1)]
    pale = chroma < 0.5 * value
    names[(names == COLORS.index("pink")) & (value < 0.6)] = COLORS.index("purple")
    names[(names == COLORS.index("red")) & (value >= 0.7) & pale] = COLORS.index("pink")
    names[(hue >= 10) & (hue < 50) & ((value < 0.6) | (value < 0.85) & pale)] = COLORS.index("brown")
    colorless = chroma < 0.1
    names[colorless & (value < 0.85)] = COLORS.index("gray")
    names[colorless & (value >= 0.85)] = COLORS.index("white")
    names[value < 0.2] = COLORS.index("black")
    return names


def color_shares(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return the share of each color among pixels (H, W, 3) uint8 RGB: (12,), with sum 1."""
    counts = np.bincount(name_pixels(pixels).ravel(), minlength=len(COLORS))
    return np.asarray(counts / counts.sum())


def has_colors(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which colors a picture of the network's input size has: (12,)."""
    return np.asarray(color_shares(pixels) >= NOTICEABLE_SHARE)
