"""What the users send: photos by size class, a share of files that must be refused, several images per request."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

PHOTO_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")


class LoadTestError(Exception):
    """A load test cannot run: an option, a photo or the file of expected answers is wrong, or the server refuses."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One file to send.

    Attributes:
        name: Its name in reports.
        data: Its bytes.
        refusal: A regular expression that the server's refusal must match; None for an image that must be answered.
    """

    name: str
    data: bytes
    refusal: str | None = None

    @property
    def key(self) -> str:
        """Its digest, the key of its expected answer."""
        return hashlib.sha256(self.data).hexdigest()


class ImageMix:
    """Files to send, and how often each.

    Attributes:
        good: All photos.
        bad: Files that must be refused.
    """

    def __init__(
        self,
        photos: Mapping[str, Sequence[Sample]],
        weights: Mapping[str, float],
        batch_sizes: Mapping[int, float],
        bad_share: float = 0.0,
    ) -> None:
        """Check that there are photos for the weights.

        Args:
            photos: The photos of each size class, 1 or more.
            weights: How often each class is drawn, relative to the others; empty for equal weights.
            batch_sizes: How often a request has this many images.
            bad_share: Share of files, 0 to 1, that must be refused.

        Raises:
            LoadTestError: A weight names an unknown class, no class has a weight, or the share is not a share.
        """
        unknown = set(weights) - set(photos)
        if unknown or (weights and not any(weights.values())):
            raise LoadTestError(
                f"Expected weights of {', '.join(sorted(photos))}, one above 0, got {', '.join(sorted(weights))}."
            )
        if not 0 <= bad_share <= 1:
            raise LoadTestError(f"Expected a --bad-share from 0 to 1, got {bad_share}.")
        self.good = [sample for samples in photos.values() for sample in samples]
        self.bad = make_bad_files(self.good[0])
        self._photos = photos
        self._weights = {name: weights.get(name, 0.0) if weights else 1.0 for name in photos}
        self._batch_sizes, self._bad_share = batch_sizes, bad_share

    def draw(self, generator: random.Random) -> list[Sample]:
        """Return the images of one request."""
        (size,) = generator.choices(list(self._batch_sizes), list(self._batch_sizes.values()))
        return [self._draw_one(generator) for _ in range(size)]

    def _draw_one(self, generator: random.Random) -> Sample:
        if generator.random() < self._bad_share:
            return generator.choice(self.bad)
        (name,) = generator.choices(list(self._weights), list(self._weights.values()))
        return generator.choice(self._photos[name])


def read_photos(folder: Path) -> dict[str, list[Sample]]:
    """Read the photos in a folder; each subfolder is a size class with its name. Duplicates are read once.

    Raises:
        LoadTestError: The folder does not exist, or has no photo.
    """
    photos: dict[str, dict[str, Sample]] = {}
    seen: set[str] = set()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file():
            relative = path.relative_to(folder)
            sample = Sample(relative.as_posix(), path.read_bytes())
            if sample.key not in seen:
                name = relative.parts[0] if len(relative.parts) > 1 else "photos"
                photos.setdefault(name, {})[sample.key] = sample
                seen.add(sample.key)
    if not photos:
        raise LoadTestError(f"Expected a folder with photos ({', '.join(PHOTO_SUFFIXES)}), got {folder}.")
    return {name: list(samples.values()) for name, samples in photos.items()}


def make_bad_files(photo: Sample) -> list[Sample]:
    """Return files that a server must refuse, and what the refusal must say.

    Args:
        photo: A photo; if it is a JPEG file, half of it is one of them.
    """
    bad = [
        Sample("text", b"https://example.com/photo.jpg\n", r"got text \(30 bytes"),
        Sample("nothing", b"", r"got 0 bytes"),
        Sample("header of 16000x16000", make_png(16_000, 16_000, b"\0"), r"expected at most \d+ pixels.*16000"),
        Sample("header of 30000x10", make_png(10, 30_000, b"\0"), r"expected sides of at most \d+ pixels.*30000"),
    ]
    if photo.data.startswith(b"\xff\xd8\xff"):
        half = photo.data[: len(photo.data) // 2]
        bad.append(Sample("half a JPEG file", half, r"JPEG.*end marker is missing"))
    return bad


def parse_weights(text: str) -> dict[str, float]:
    """Parse `small=2,medium=6`.

    Raises:
        LoadTestError: The format is wrong, a weight is below 0, or none is above 0.
    """
    try:
        weights = {name.strip(): float(number) for name, number in (part.split("=") for part in text.split(","))}
    except ValueError:
        weights = {}
    if not any(weights.values()) or not all(0 <= weight < float("inf") for weight in weights.values()):
        raise LoadTestError(f"Expected weights like small=2,medium=6, at least one above 0, got {text!r}.")
    return weights


def parse_batch_mix(text: str) -> dict[int, float]:
    """Parse `1=8,4=1`: eight of nine requests have one image, the other has four.

    Raises:
        LoadTestError: The format is wrong, or a size is below 1.
    """
    weights = parse_weights(text)
    if not all(size.isdecimal() and int(size) >= 1 for size in weights):
        raise LoadTestError(f"Expected batch sizes of 1 or more with weights, like 1=8,4=1, got {text!r}.")
    return {int(size): weight for size, weight in weights.items()}


def make_png(height: int, width: int, lines: bytes, interlaced: bool = False) -> bytes:
    """Return a PNG file of 8-bit RGB.

    Args:
        height: Height in its header.
        width: Width in its header.
        lines: Uncompressed lines of pixels, each after its filter's byte; fewer than announced make it truncated.
        interlaced: Whether the lines are those of the seven Adam7 passes.
    """
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
