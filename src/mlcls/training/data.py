"""The dataset of a training, checked before the first step, and its batches, read by threads.

Threads rather than processes: decoding, resizing and Pillow's operations release Python's lock, so that on two cores
both reach the same rate (61 to 84 images/s with two threads, 67 to 71 with two spawned processes, 640x427 JPEG to
448x448 and two operations, on a machine that others used too). Threads start at once, share memory instead of copying
through pipes, and leave nothing behind when the training is killed; a process forked after importing paddle can hang.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.base.files import sha256_of
from mlcls.base.threads import map_ahead
from mlcls.dataset.annotations import TRAIN_FILE, VAL_FILE, ImageSet, read_annotations, read_image, require_files
from mlcls.dataset.labels import DATASET_LABELS_FILE, read_dataset_labels
from mlcls.errors import DatasetError
from mlcls.model.spec import ImageTransform

# Batches that are read ahead of the one in use, one of them complete; the number bounds the memory.
PREFETCHED_BATCHES: Final = 2


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """A dataset in PaddleX's format `MLClsDataset`: labels, images, and SHA-256 of each of its three files."""

    labels: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    digests: dict[str, str]

    @classmethod
    def read(cls, folder: Path, num_classes: int | None = None) -> TrainingData:
        """Read the three files and check that every image exists, without opening any.

        Raises:
            DatasetError: A file is missing or wrong, the number of labels is not `num_classes`, images are missing, or
                no image of `val.txt` has a label.
        """
        labels = read_dataset_labels(folder, num_classes)
        train, val = (read_annotations(folder / name, len(labels)) for name in (TRAIN_FILE, VAL_FILE))
        for name, images in ((TRAIN_FILE, train), (VAL_FILE, val)):
            require_files(folder / name, images.paths)
        if not val.targets.any():
            raise DatasetError(
                f"{folder / VAL_FILE}: expected images with labels, got none with any; mAP cannot be computed."
            )
        files = (DATASET_LABELS_FILE, TRAIN_FILE, VAL_FILE)
        return cls(labels, train, val, {name: sha256_of(folder / name) for name in files})


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[npt.NDArray[np.int64]]:
    """Return the indices of each step's images in one epoch, for one process.

    Every image occurs once in an epoch, in an order that depends only on the seed and the epoch. The images are spread
    evenly: batch sizes differ by at most one, so that no epoch ends in a batch too small for batch norm, and all
    processes do the same number of steps.
    """
    steps = -(-count // (batch_size * world_size))
    order = np.random.default_rng((seed, epoch)).permutation(count)
    chunks = np.array_split(order, steps * world_size)
    return chunks[rank::world_size]


def sequential_batches(count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[npt.NDArray[np.int64]]:
    """Return the indices of a process's images, in order; the processes together have each image once."""
    own = np.arange(rank, count, world_size)
    return [own[start : start + batch_size] for start in range(0, len(own), batch_size)]


def read_batches(
    images: ImageSet,
    transform: ImageTransform,
    batches: Sequence[npt.NDArray[np.int64]],
    num_workers: int,
    augment: Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.uint8]] | None = None,
    upload: Callable[[npt.NDArray[np.float32]], Any] = np.asarray,
) -> Generator[tuple[Any, Any], None, None]:
    """Read images, resize them with the one transform, augment and normalize them, and upload each batch.

    Args:
        images: The images that the indices refer to.
        transform: From an image to the network's input.
        batches: Indices of each batch's images.
        num_workers: Number of threads; 0 reads each image on demand.
        augment: Changes the resized image (H, W, 3) uint8 RGB with an index.
        upload: Makes of an array what is yielded; a thread calls it ahead of the consumer.

    Yields:
        (N, 3, H, W) float32, normalized, and targets (N, num_labels) float32, 0 or 1, in order, both uploaded.

    Raises:
        DatasetError: An image cannot be read or decoded; the text has its path.
    """
    from mlcls.images.transforms import normalize, preprocess

    def read(index: int) -> npt.NDArray[np.float32]:
        pixels = read_image(images.paths[index], lambda encoded: preprocess(encoded, transform))
        if augment:
            pixels = augment(pixels, index)
        inputs: npt.NDArray[np.float32] = normalize(pixels[None], transform)[0]
        return inputs

    def assemble(batch: npt.NDArray[np.int64]) -> tuple[Any, Any]:
        return upload(np.stack([next(inputs) for _ in batch])), upload(images.targets[batch].astype(np.float32))

    indices = (int(index) for batch in batches for index in batch)
    images_ahead = max(num_workers, PREFETCHED_BATCHES * max(map(len, batches), default=0)) if num_workers else 1
    batches_ahead = PREFETCHED_BATCHES if num_workers else 1
    with (
        ThreadPoolExecutor(max(1, num_workers), "mlcls-images") as readers,
        contextlib.closing(map_ahead(readers, read, indices, images_ahead)) as inputs,
        ThreadPoolExecutor(1, "mlcls-batches") as assembler,
        contextlib.closing(map_ahead(assembler, assemble, batches, batches_ahead)) as uploaded,
    ):
        yield from uploaded
