"""A network in training form, `.pdparams` and architecture, as a runner."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from mlcls.engines.runners import Pixels, Scores
from mlcls.images.transforms import normalize
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ImageTransform

if TYPE_CHECKING:
    import paddle


@dataclasses.dataclass(frozen=True)
class NetworkInput:
    """What a `DecodingRunner` needs to know where there is no spec yet.

    Attributes:
        labels: Label of each class id.
        transform: From an image to `pixels`.
    """

    labels: tuple[str, ...]
    transform: ImageTransform


class NetworkRunner:
    """A paddle network, on paddle's present device."""

    name = "weights"

    def __init__(self, network: paddle.nn.Layer, transform: ImageTransform) -> None:
        """Puts the network into evaluation mode.

        Args:
            network: (N, 3, H, W) float32 to logits.
            transform: Normalises.
        """
        network.eval()
        self._network = network
        self._transform = transform

    def scores(self, pixels: Pixels) -> Scores:
        """Scores (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB."""
        import paddle

        with paddle.no_grad():
            logits = self._network(paddle.to_tensor(normalize(pixels, self._transform)))
        return apply_sigmoid(np.asarray(logits.numpy(), np.float32))
