"""Scores of a network on a set of images, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlcls.dataset.annotations import ImageSet
from mlcls.training.loading import BatchLoader, sequential_batches
from mlcls.training.process_group import ProcessGroup
from mlcls.training.settings import TrainSettings

if TYPE_CHECKING:
    import paddle


def score_images(
    network: paddle.nn.Layer,
    images: ImageSet,
    settings: TrainSettings,
    group: ProcessGroup,
    after_batch: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.float32]:
    """Score all images, in float32, each process its share.

    Args:
        network: (N, 3, H, W) float32 to logits; put into evaluation mode and left there.
        images: What to score.
        settings: Image size, batch size and threads.
        group: The processes that share the work.
        after_batch: Called after each batch; what it raises ends the scoring.

    Returns:
        (N, num_labels) float32 in the images' order, in every process.

    Raises:
        DatasetError: An image cannot be used.
    """
    import paddle
    from tqdm import tqdm

    network.eval()
    own = sequential_batches(len(images), settings.batch_size, group.rank, group.size)
    rows = [np.empty((0, images.targets.shape[1]), np.float32)]
    loader = BatchLoader(images, settings.transform, num_workers=settings.num_workers)
    hidden = None if group.is_first else True
    bar = tqdm(total=len(own), desc="evaluation", unit="batch", leave=False, disable=hidden)
    with loader, bar, paddle.no_grad():
        for batch in loader.batches(own):
            rows.append(paddle.nn.functional.sigmoid(network(paddle.to_tensor(batch.inputs))).numpy())
            bar.update()
            after_batch()
    return group.gather_rows(np.concatenate(rows), len(images))
