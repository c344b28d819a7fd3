"""JPEG files decoded at a reduced scale: which scale, which way up, and that faults are still found."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from mlcls.errors import ImageError
from mlcls.images.decoding import decode_image
from mlcls.images.photos import load_photos, sample_photo_paths
from mlcls.images.settings import ImageSettings
from mlcls.images.transforms import preprocess
from mlcls.model.catalog import official_spec
from support.image_samples import encode, encode_lossless_jpeg, oriented

TRANSFORM = official_spec("PP-LCNet_x1_0_ML").transform  # 448x448


def encode_photo(height: int, width: int, mode: str = "RGB", **options: Any) -> bytes:
    photo = Image.fromarray(load_photos(sample_photo_paths()[:1])[0]).resize((width, height)).convert(mode)
    return encode(photo, "JPEG", quality=90, **options)


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((800, 1000), None, (800, 1000)),
        ((800, 1000), 401, (800, 1000)),
        ((800, 1000), 400, (400, 500)),
        ((801, 1001), 400, (401, 501)),
        ((1601, 1999), 400, (401, 500)),
        ((3200, 3600), 400, (400, 450)),
        ((3200, 3600), 20, (400, 450)),
        ((200, 6400), 400, (200, 6400)),
    ],
)
def test_the_smallest_scale_with_enough_pixels(
    size: tuple[int, int], least: int | None, expected: tuple[int, int]
) -> None:
    data = encode_photo(*size)
    settings = ImageSettings(jpeg_oversampling=least and 1.0)
    transform = msgspec.structs.replace(TRANSFORM, height=least or 400, width=10)
    assert decode_image(data, settings, transform).shape == (*expected, 3)
    assert decode_image(data, settings).shape == (*size, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_it_is_the_same_picture_the_same_way_up(orientation: int, mode: str) -> None:
    data = encode_photo(1400, 1900, mode, exif=oriented(orientation))
    whole = preprocess(data, TRANSFORM).astype(np.int16)
    reduced = preprocess(data, TRANSFORM, ImageSettings(jpeg_oversampling=1.5)).astype(np.int16)
    assert 0 < np.abs(reduced - whole).mean() < 2
    turned = np.abs(reduced - whole[::-1, ::-1]).mean()
    assert turned > 20, "the photo must not look the same upside down"


def test_oversampling_counts_in_pixels_of_the_network() -> None:
    data = encode_photo(math.ceil(448 * 1.5) * 2, 1400)
    whole = preprocess(data, TRANSFORM)
    assert not np.array_equal(preprocess(data, TRANSFORM, ImageSettings(jpeg_oversampling=1.5)), whole)
    np.testing.assert_array_equal(preprocess(data, TRANSFORM, ImageSettings(jpeg_oversampling=1.51)), whole)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_file_is_refused_all_the_same(progressive: bool) -> None:
    data = encode_photo(1400, 1900, progressive=progressive)
    for length in (len(data) // 2, len(data) - 40):
        with pytest.raises(ImageError, match="JPEG"):
            preprocess(data[:length], TRANSFORM, ImageSettings(jpeg_oversampling=1.0))


def test_a_lossless_file_is_not_reduced() -> None:
    """libjpeg-turbo would write all of its pixels into the array for the smaller picture."""
    picture = np.random.default_rng(2).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    transform = msgspec.structs.replace(TRANSFORM, height=8, width=8)
    decoded = decode_image(encode_lossless_jpeg(picture), ImageSettings(jpeg_oversampling=1.0), transform)
    np.testing.assert_array_equal(decoded, picture)
