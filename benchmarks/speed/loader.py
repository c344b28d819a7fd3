"""Measure how many images a second a training's loader reaches.

They are read, decoded, resized, augmented, normalized and put into batches.

A GPU that trains faster than this waits for images. No network runs, and paddle is not imported.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.machine import describe_machine
from benchmarks.photo_set import write_photos
from mlcls.base.machine import format_machine
from mlcls.dataset.annotations import ImageSet
from mlcls.model.catalog import DEFAULT_TRANSFORM
from mlcls.training.augmentation import augment
from mlcls.training.data import read_batches

_PHOTO_SIZE: Final = (480, 640)
_PHOTOS: Final = 64
_BATCH_SIZE: Final = 32
_ROUNDS: Final = 3

Change = Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.uint8]]


class Rate(NamedTuple):
    """Images a second, and milliseconds of processor time for each."""

    images_per_s: float
    core_ms_per_image: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, measure each number of threads in turns and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.loader", description=__doc__.splitlines()[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers", type=int, nargs="+", default=sorted({1, max(1, cores // 2), cores}), metavar="N",
        help="Train.num_workers to measure (default: one, half the cores, all of them)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each round (default: %(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), [_PHOTO_SIZE] * _PHOTOS)
        images = ImageSet(tuple(paths), np.zeros((len(paths), 1), np.bool_))
        cases = [(workers, change) for change in (augmented, None) for workers in options.workers]
        rounds = [[measure(images, *case, options.seconds) for case in cases] for _ in range(_ROUNDS)]
    print("| threads | images | images/s | core-ms an image |\n|---|---|---|---|")
    for number, (workers, change) in enumerate(cases):
        rates = [measured[number] for measured in rounds]
        print(
            f"| {workers} | {'training' if change else 'validation'} | {median(r.images_per_s for r in rates):.0f} "
            f"| {median(r.core_ms_per_image for r in rates):.1f} |"
        )
    size = f"{DEFAULT_TRANSFORM.width}x{DEFAULT_TRANSFORM.height}"
    print(
        f"\nJPEG photos of {_PHOTO_SIZE[1]}x{_PHOTO_SIZE[0]} to {size} in batches of {_BATCH_SIZE}; medians of "
        f"{_ROUNDS} rounds of {options.seconds:g} s, in turns.\n{format_machine(describe_machine())}"
    )
    return 0


def measure(images: ImageSet, workers: int, change: Change | None, seconds: float) -> Rate:
    """Read batches for some seconds, after the first one, which waits for the threads."""
    batches = [np.arange(start, start + _BATCH_SIZE) % len(images) for start in range(0, 1_000_000, _BATCH_SIZE)]
    reading = read_batches(images, DEFAULT_TRANSFORM, batches, workers, change)
    next(reading)
    count, started, cpu_started = 0, time.monotonic(), time.process_time()
    while time.monotonic() - started < seconds:
        count += len(next(reading)[0])
    elapsed, cpu = time.monotonic() - started, time.process_time() - cpu_started
    reading.close()
    return Rate(count / elapsed, cpu / count * 1000)


def augmented(pixels: npt.NDArray[np.uint8], index: int) -> npt.NDArray[np.uint8]:
    """Change an image as a training does."""
    return augment(pixels, np.random.default_rng(index))


if __name__ == "__main__":
    sys.exit(main())
