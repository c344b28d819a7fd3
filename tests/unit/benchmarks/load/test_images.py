"""What a load test sends: shares, weights, and files that the decoder really refuses."""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load.images import (
    ImageMix,
    LoadTestError,
    Sample,
    make_bad_files,
    parse_batch_mix,
    parse_weights,
    read_photos,
)
from benchmarks.load.options import choose_users
from benchmarks.photo_set import LOAD_MIX, LOAD_SIZES, write_photos
from mlcls.errors import ImageError
from mlcls.images.decoding import decode_image
from support.image_samples import encode

NOISE = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
JPEG = Sample("noise.jpg", encode(NOISE, "JPEG"))


def test_bad_files_are_refused_by_the_decoder_for_their_own_reason() -> None:
    bad = make_bad_files(JPEG)
    assert len(bad) == 5
    for sample in bad:
        assert sample.refusal is not None
        with pytest.raises(ImageError) as caught:
            decode_image(sample.data)
        matching = [other.name for other in bad if re.search(str(other.refusal), str(caught.value))]
        assert matching == [sample.name], str(caught.value)
    assert len(make_bad_files(Sample("noise.png", encode(NOISE, "PNG")))) == 4, "no half of a JPEG file"


def test_shares_are_those_asked_for() -> None:
    photos = {"small": [JPEG], "large": [Sample("other", b"1"), Sample("third", b"2")], "never": [Sample("n", b"3")]}
    mix = ImageMix(photos, {"small": 3, "large": 1}, {1: 1, 4: 1}, bad_share=0.2)
    generator = random.Random(0)
    batches = [mix.draw(generator) for _ in range(2000)]
    sizes = Counter(map(len, batches))
    assert set(sizes) == {1, 4}
    assert sizes[4] == pytest.approx(1000, abs=100)
    names = Counter(sample.name for batch in batches for sample in batch)
    total = names.total()
    assert sum(names[sample.name] for sample in mix.bad) / total == pytest.approx(0.2, abs=0.02)
    assert all(names[sample.name] for sample in mix.bad)
    assert names["noise.jpg"] / total == pytest.approx(0.6, abs=0.03)
    assert names["other"] == pytest.approx(names["third"], rel=0.2)
    assert names["n"] == 0
    assert mix.draw(random.Random(7)) == mix.draw(random.Random(7))


def test_photos_are_read_by_size_class_and_once(tmp_path: Path) -> None:
    for name, content in {"a.jpg": b"a", "small/b.PNG": b"b", "small/x/c.jpg": b"c", "big/a2.jpg": b"a"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "small" / "notes.txt").write_text("no photo")
    names = {folder: [photo.name for photo in photos] for folder, photos in read_photos(tmp_path).items()}
    assert names == {"photos": ["a.jpg"], "small": ["small/b.PNG", "small/x/c.jpg"]}


def test_without_photos(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(LoadTestError, match="Expected a folder with photos"):
            read_photos(folder)


def test_own_photos_have_all_classes_and_differ(tmp_path: Path) -> None:
    write_photos(tmp_path, LOAD_SIZES)
    photos = read_photos(tmp_path)
    mix = ImageMix(photos, parse_weights(LOAD_MIX), {1: 1})
    sizes = {name: decode_image(samples[0].data).shape for name, samples in photos.items()}
    assert sizes == {"4000x3000": (3000, 4000, 3), "640x480": (480, 640, 3), "320x240": (240, 320, 3)}
    assert len({photo.key for photo in mix.good}) == 18


@pytest.mark.parametrize("text", ["small", "small=x", "small=-1", "small=0", "small=nan", "small=inf", ""])
def test_wrong_weights(text: str) -> None:
    with pytest.raises(LoadTestError, match="Expected weights"):
        parse_weights(text)


@pytest.mark.parametrize("text", ["0=1", "x=1", "1.5=1", "-1=1"])
def test_wrong_batch_sizes(text: str) -> None:
    with pytest.raises(LoadTestError, match="batch sizes"):
        parse_batch_mix(text)


def test_wrong_mixes() -> None:
    with pytest.raises(LoadTestError, match="Expected weights of small, one above 0, got big"):
        ImageMix({"small": [JPEG]}, {"big": 1}, {1: 1})
    with pytest.raises(LoadTestError, match="one above 0"):
        ImageMix({"small": [JPEG]}, {"small": 0}, {1: 1})
    with pytest.raises(LoadTestError, match=r"--bad-share from 0 to 1, got 1\.5"):
        ImageMix({"small": [JPEG]}, {}, {1: 1}, bad_share=1.5)
    assert parse_batch_mix("1=8, 4=1") == {1: 8.0, 4: 1.0}


@pytest.mark.parametrize(
    ("shape", "users", "expected"),
    [
        ("ramp", 10, {0: 3, 0.249: 3, 0.25: 5, 0.5: 8, 0.75: 10, 0.999: 10, 1: None}),
        ("soak", 7, {0: 7, 0.999: 7, 1: None}),
        ("spike", 3, {0: 3, 0.33: 3, 0.34: 30, 0.66: 30, 0.67: 3, 0.99: 3, 1: None}),
    ],
)
def test_users_over_time(shape: str, users: int, expected: dict[float, int | None]) -> None:
    options = argparse.Namespace(shape=shape, steps=4, spike_factor=10.0)
    assert {elapsed: choose_users(options, users, elapsed) for elapsed in expected} == expected
