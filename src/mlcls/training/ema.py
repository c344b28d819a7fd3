"""A moving average of the weights, which is evaluated beside the weights themselves."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import paddle


def ema_decay(step: int, decay: float) -> float:
    """Return the decay at a step, counted from 0: `decay` in the long run, less before.

    With a fixed 0.9997 the average of a run of a few hundred steps would still be made of its first weights. The ramp
    (1 + step) / (10 + step), TensorFlow's for `ExponentialMovingAverage`, averages over about the last ninth of the
    steps so far; it meets 0.9997 after 30,000 steps.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """The average of a network's parameters and batch-norm statistics, as a network of its own.

    Attributes:
        network: In evaluation mode, with the averaged weights.
    """

    def __init__(self, network: paddle.nn.Layer, decay: float) -> None:
        """Start with the network's weights as they are.

        Args:
            network: The network that is trained.
            decay: See `ema_decay`.
        """
        self.network: Any = copy.deepcopy(network)
        self.network.eval()
        self._decay = decay
        source = network.state_dict()
        self._pairs = [(tensor, source[name]) for name, tensor in self.network.state_dict().items()]

    def update(self, step: int) -> None:
        """Move the average towards the network's weights after a step, counted from 0."""
        import paddle

        weight = 1 - ema_decay(step, self._decay)
        with paddle.no_grad():
            for average, current in self._pairs:
                average.lerp_(current, weight)
