"""Decode every image of a dataset in several processes, and report those that cannot be used."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Final, NamedTuple

from mlcls.base.processes import end_with_parent
from mlcls.errors import DatasetError, ImageError
from mlcls.images.decoding import decode_image
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS

# Images for which one more process is worthwhile.
_IMAGES_PER_PROCESS: Final = 64
# A process may need half a gigabyte for a picture of the largest size.
_MAX_PROCESSES: Final = 16
# Images that a process gets at once.
_CHUNK: Final = 8


class ImageFinding(NamedTuple):
    """The result of decoding one image.

    Attributes:
        digest: SHA-256 of its size and pixels, the same for copies in other files and formats; empty for a fault.
        kind: Short name of what is wrong; empty if nothing is.
        fault: What is wrong.
    """

    digest: bytes
    kind: str = ""
    fault: str = ""


def inspect_images(root: Path, names: Sequence[str]) -> Mapping[str, ImageFinding]:
    """Decode images as for a model, with a progress bar on a terminal.

    Returns:
        A finding for each name, which is a path relative to the folder.

    Raises:
        DatasetError: A process was killed, as the kernel does when memory runs out.
    """
    from tqdm import tqdm

    findings = _inspect_paths([str(root / name) for name in names])
    options = {"total": len(names), "desc": "opening images", "unit": "image", "leave": False, "disable": None}
    return dict(zip(names, tqdm(findings, **options), strict=True))


def inspect_image(path: str) -> ImageFinding:
    """Decode one image."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # such as a FIFO, on which a read would wait
            return ImageFinding(b"", "unreadable-image", "expected an image file, got something that is not a file")
        with open(path, "rb") as file:
            data = file.read(DEFAULT_IMAGE_SETTINGS.max_bytes + 1)
    except FileNotFoundError:
        hint = "; write paths with /" if "\\" in path else ""
        return ImageFinding(b"", "missing-image", f"expected an image file, but it does not exist{hint}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return ImageFinding(b"", "unreadable-image", f"expected an image file, got one that cannot be read: {reason}")
    try:
        pixels = decode_image(data)
    except ImageError as error:
        return ImageFinding(b"", "broken-image", str(error).removeprefix("image: ").removesuffix("."))
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(pixels.data)
    return ImageFinding(digest.digest())


def _inspect_paths(paths: Sequence[str]) -> Iterator[ImageFinding]:
    """Yield findings in the order of the paths."""
    process_count = min(len(os.sched_getaffinity(0)), math.ceil(len(paths) / _IMAGES_PER_PROCESS), _MAX_PROCESSES)
    if process_count <= 1:
        yield from map(inspect_image, paths)
        return
    # not forked: OpenCV and tqdm have threads, and a fork would copy their locks
    executor = ProcessPoolExecutor(process_count, multiprocessing.get_context("spawn"), _prepare_process)
    try:
        yield from executor.map(inspect_image, paths, chunksize=_CHUNK)
    except BrokenProcessPool:
        raise DatasetError(
            "expected to decode all images, but a process that did was killed, as happens when memory runs out; close "
            "other programs and run it again."
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _prepare_process() -> None:
    import cv2

    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one ends the others
    cv2.setNumThreads(1)
