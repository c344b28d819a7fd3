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

from benchmarks.load.locustfiles.errors import LoadTestError

PHOTO_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")


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
        photos: The photos of each size class.
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
            photos: The photos of each size class.
            weights: How often each class is drawn, relative to the others; empty for equal weights.
            batch_sizes: How often a request has this many images.
            bad_share: Share of files, 0 to 1, that must be refused.

        Raises:
            LoadTestError: There are no photos, a weight names an unknown class, or no class has a weight.
        """
        if not any(photos.values()):
            raise LoadTestError("Expected photos to send, got none.")
        unknown = set(weights) - set(photos)
        if unknown:
            raise LoadTestError(f"Expected weights of {', '.join(sorted(photos))}, got {', '.join(sorted(unknown))}.")
        self.photos = photos
        self.bad = make_bad_files(next(sample for samples in photos.values() for sample in samples))
        self._classes = [name for name in photos if photos[name]]
        self._weights = [weights.get(name, 0.0) if weights else 1.0 for name in self._classes]
        if not any(self._weights):
            raise LoadTestError("Expected a weight above 0 for a size class that has photos, got none.")
        self._batch_sizes, self._batch_weights = list(batch_sizes), list(batch_sizes.values())
        self._bad_share = bad_share

    @property
    def good(self) -> list[Sample]:
        """All photos."""
        return [sample for samples in self.photos.values() for sample in samples]

    def draw(self, generator: random.Random) -> list[Sample]:
        """Return the images of one request."""
        (size,) = generator.choices(self._batch_sizes, self._batch_weights)
        return [self._draw_one(generator) for _ in range(size)]

    def _draw_one(self, generator: random.Random) -> Sample:
        if generator.random() < self._bad_share:
            return generator.choice(self.bad)
        (name,) = generator.choices(self._classes, self._weights)
        return generator.choice(self.photos[name])


def read_photos(folder: Path) -> dict[str, list[Sample]]:
    """Read the photos in a folder; each subfolder is a size class with its name. Duplicates are read once.

    Raises:
        LoadTestError: The folder does not exist, or has no photo.
    """
    if not folder.is_dir():
        raise LoadTestError(f"Expected a folder of photos, got {folder}, which is not a folder.")
    photos: dict[str, list[Sample]] = {}
    seen = set()
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in PHOTO_SUFFIXES or not path.is_file():
            continue
        relative = path.relative_to(folder)
        sample = Sample(relative.as_posix(), path.read_bytes())
        if sample.key not in seen:
            seen.add(sample.key)
            photos.setdefault(relative.parts[0] if len(relative.parts) > 1 else "photos", []).append(sample)
    if not photos:
        raise LoadTestError(f"Expected photos ({', '.join(PHOTO_SUFFIXES)}) in {folder}, got none.")
    return photos


def make_bad_files(photo: Sample) -> list[Sample]:
    """Return files that a server must refuse, and what the refusal must say.

    Args:
        photo: A photo; if it is a JPEG file, half of it is one of them.
    """
    bad = [
        Sample("text", b"https://example.com/photo.jpg\n", r"got text \(30 bytes"),
        Sample("nothing", b"", r"got 0 bytes"),
        Sample("header of 16000x16000", _png_of_size(16_000, 16_000), r"expected at most \d+ pixels.*16000"),
        Sample("header of 30000x10", _png_of_size(10, 30_000), r"expected sides of at most \d+ pixels.*30000"),
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
    weights = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise LoadTestError(f"Expected weights like small=2,medium=6, got {text!r}.") from None
    if any(not 0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
        raise LoadTestError(f"Expected weights of 0 or more, at least one above 0, got {text!r}.")
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


def _png_of_size(height: int, width: int) -> bytes:
    """Return a PNG file whose header announces more pixels than it has."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
