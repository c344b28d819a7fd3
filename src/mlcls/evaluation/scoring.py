"""Score all images of an annotation file, on any runner, in bounded memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mlcls.base.threads import map_ahead
from mlcls.dataset.annotations import read_annotations, read_image, require_files
from mlcls.engines.runners import DecodingRunner, ImageRunner, Scores
from mlcls.errors import ServedImageError, ServerError

# Images in a batch; every served model takes as many.
BATCH_SIZE: Final = 8
# Batches of images that are read ahead of the one being computed, which bounds the memory.
_BATCHES_AHEAD: Final = 2


class AnnotatedScores(NamedTuple):
    """A runner's scores of the images of an annotation file, in its order, and the file's targets.

    Scores (N, num_labels) are float32 without NaN; targets (N, num_labels) say which labels each image has.
    """

    scores: Scores
    targets: npt.NDArray[np.bool_]


def score_annotated(
    runner: ImageRunner,
    annotations: Path,
    *,
    batch_size: int = BATCH_SIZE,
    num_workers: int | None = None,
    after_batch: Callable[[int], None] = lambda _: None,
) -> AnnotatedScores:
    """Score every image of an annotation file, with a progress bar.

    Threads read images a few batches ahead, and each is dropped once scored: only one float32 and one bool for each
    image and label grow with the file.

    Args:
        runner: Computes the scores, of as many batches at once as it takes.
        annotations: `val.txt` of an `MLClsDataset`, or a file like it, with the runner's labels.
        batch_size: Images in a batch.
        num_workers: Threads that read images; by default as many as there are cores.
        after_batch: Called after each batch, in order, with the number of images scored so far.

    Raises:
        DatasetError: The annotation file is wrong, or an image cannot be used; the text has its path.
        ServedImageError: The server has no good answer for an image; the text has its path.
        ServerError: The server does not answer, or fails for a whole batch.
    """
    from tqdm import tqdm

    dataset = read_annotations(annotations, len(runner.labels))
    paths = dataset.paths
    require_files(annotations, paths)  # now, not after an hour
    prepare = runner.decode if isinstance(runner, DecodingRunner) else bytes

    def score_batch(batch: tuple[int, list[Any]]) -> tuple[int, Scores]:
        start, images = batch
        return start, _score_batch(runner, images, paths[start : start + len(images)])

    num_workers = num_workers or len(os.sched_getaffinity(0))
    scores = np.full(dataset.targets.shape, np.nan, np.float32)
    with (
        ThreadPoolExecutor(num_workers, "mlcls-images") as readers,
        ThreadPoolExecutor(runner.concurrency, "mlcls-batches") as callers,
        tqdm(total=len(paths), desc=f"evaluation ({runner.name})", unit="image", leave=False, disable=None) as bar,
    ):
        ahead = _BATCHES_AHEAD * batch_size + num_workers
        images = map_ahead(readers, lambda path: read_image(path, prepare), paths, ahead)
        starts = range(0, len(paths), batch_size)
        batches = ((start, list(itertools.islice(images, batch_size))) for start in starts)
        results: Iterable[tuple[int, Scores]] = map(score_batch, batches)
        if runner.concurrency > 1:  # others may be bound to this thread, as Paddle's device is
            results = map_ahead(callers, score_batch, batches, runner.concurrency)
        for start, rows in results:
            scores[start : start + len(rows)] = rows
            bar.update(len(rows))
            after_batch(start + len(rows))
    return AnnotatedScores(scores, dataset.targets)


def _score_batch(runner: ImageRunner, images: Sequence[Any], paths: Sequence[Path]) -> Scores:
    try:
        rows = runner.score_pixels(np.stack(images)) if isinstance(runner, DecodingRunner) else runner.scores(images)
    except ServedImageError as error:
        raise ServedImageError(f"{paths[error.index]}: {error}", error.index) from None
    except ServerError as error:
        others = f" and {len(paths) - 1} more images" if len(paths) > 1 else ""
        raise ServerError(f"{paths[0]}{others}: {error}") from None
    if len(rows) != len(images):
        raise ServerError(f"{paths[0]}: expected {len(images)} rows of scores for as many images, got {len(rows)}.")
    blank = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if blank.size:
        raise ServedImageError(
            f"{paths[blank[0]]}: expected finite scores, got some that are not; the model cannot be evaluated.",
            int(blank[0]),
        )
    return rows
