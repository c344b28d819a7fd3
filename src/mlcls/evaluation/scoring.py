"""Score all images of an annotation file, on any runner, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mlcls.base.threads import map_ahead
from mlcls.dataset.annotations import parse_annotations, read_image, require_files
from mlcls.dataset.problems import ProblemLog
from mlcls.engines.runners import DecodingRunner, ImageRunner, Scores
from mlcls.errors import DatasetError, ServedImageError, ServerError

# Images in a batch; every served model takes as many.
BATCH_SIZE: Final = 8
# Threads that read and decode images.
NUM_WORKERS: Final = 4
# Batches of images that are read ahead of the one being computed, which bounds the memory.
_BATCHES_AHEAD: Final = 2


class AnnotatedScores(NamedTuple):
    """A runner's scores of the images of an annotation file, and the file's targets.

    Attributes:
        scores: (N, num_labels) float32, in the file's order; no NaN.
        targets: (N, num_labels) which labels each image has.
    """

    scores: Scores
    targets: npt.NDArray[np.bool_]


def score_annotated(
    runner: ImageRunner,
    annotations: Path,
    *,
    root: Path | None = None,
    batch_size: int = BATCH_SIZE,
    num_workers: int = NUM_WORKERS,
    after_batch: Callable[[int], None] = lambda _: None,
) -> AnnotatedScores:
    """Score every image of an annotation file, with a progress bar.

    Threads read images a few batches ahead, and each is dropped once scored: only one float32 and one bool for each
    image and label grow with the file.

    Args:
        runner: Computes the scores, of as many batches at once as it takes.
        annotations: `val.txt` of an `MLClsDataset`, or a file like it, with the runner's labels.
        root: Folder that the images' paths are relative to; by default the annotation file's.
        batch_size: Images in a batch.
        num_workers: Threads that read images.
        after_batch: Called after each batch, in order, with the number of images scored so far.

    Returns:
        The scores and the targets.

    Raises:
        DatasetError: The annotation file is wrong, or an image cannot be used; the text has its path.
        ServedImageError: The server has no good answer for an image; the text has its path.
        ServerError: The server does not answer, or fails for a whole batch.
    """
    from tqdm import tqdm

    names, targets = _read(annotations, len(runner.labels))
    folder = annotations.parent if root is None else root
    require_files(annotations, [folder / name for name in names])  # now, not after an hour
    prepare = runner.decode if isinstance(runner, DecodingRunner) else bytes
    score: Callable[[Sequence[Any]], Scores] = runner.scores
    if isinstance(runner, DecodingRunner):
        decoding = runner
        score = lambda images: decoding.score_pixels(np.stack(images))  # noqa: E731

    def score_batch(batch: tuple[range, list[Any]]) -> tuple[range, Scores]:
        indices, images = batch
        return indices, _score_batch(score, images, [folder / names[index] for index in indices])

    scores = np.full(targets.shape, np.nan, np.float32)
    with (
        ThreadPoolExecutor(num_workers, "mlcls-images") as readers,
        ThreadPoolExecutor(runner.concurrency, "mlcls-batches") as callers,
        tqdm(total=len(names), desc=f"evaluation ({runner.name})", unit="image", leave=False, disable=None) as bar,
    ):
        images = map_ahead(
            readers, lambda name: read_image(folder / name, prepare), names, _BATCHES_AHEAD * batch_size + num_workers
        )
        batches = _in_batches(images, len(names), batch_size)
        # a runner that takes one call at a time may be bound to this thread, as Paddle's device is
        one_by_one = runner.concurrency == 1
        results = (
            map(score_batch, batches) if one_by_one else map_ahead(callers, score_batch, batches, runner.concurrency)
        )
        for indices, rows in results:
            scores[indices.start : indices.stop] = rows
            bar.update(len(indices))
            after_batch(indices.stop)
    return AnnotatedScores(scores, targets)


def _read(annotations: Path, num_labels: int) -> tuple[tuple[str, ...], npt.NDArray[np.bool_]]:
    log = ProblemLog()
    samples = parse_annotations(annotations, str(annotations), num_labels, log)
    log.raise_errors(annotations)
    if samples is None or not len(samples):
        raise DatasetError(f"{annotations}: expected one image per line, got none.")
    return samples.names, samples.targets


def _score_batch(score: Callable[[Sequence[Any]], Scores], images: Sequence[Any], paths: Sequence[Path]) -> Scores:
    try:
        rows = score(images)
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


def _in_batches(images: Iterator[Any], count: int, batch_size: int) -> Iterator[tuple[range, list[Any]]]:
    for start in range(0, count, batch_size):
        indices = range(start, min(start + batch_size, count))
        yield indices, [next(images) for _ in indices]
