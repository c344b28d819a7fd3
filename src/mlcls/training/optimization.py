"""What a step of a training computes, as in PaddleClas's multi-label recipes.

Asymmetric loss (Ben-Baruch et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021), AdamW, a learning rate
that warms up and then follows a cosine, and a moving average of the weights.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any, Final

from mlcls.errors import TrainingError

if TYPE_CHECKING:
    import paddle

# PaddleClas's `MultiLabelAsymmetricLoss`.
GAMMA_NEGATIVE: Final = 4.0
GAMMA_POSITIVE: Final = 0.0
CLIP: Final = 0.05
_SMALLEST_PROBABILITY: Final = 1e-8

BETA1: Final = 0.9
BETA2: Final = 0.999
EPSILON: Final = 1e-8

# PaddleClas's `warmup_start_lr` and `eta_min`.
WARMUP_START: Final = 1e-6
LOWEST: Final = 1e-10


def asymmetric_loss(
    logits: paddle.Tensor,
    targets: paddle.Tensor,
    gamma_negative: float = GAMMA_NEGATIVE,
    gamma_positive: float = GAMMA_POSITIVE,
    clip: float = CLIP,
) -> paddle.Tensor:
    """Return the loss of each image, summed over its labels.

    With p the score of a label: a present label costs -log(p) * (1 - p)^gamma_positive; an absent one, with
    q = min(1 - p + clip, 1), costs -log(q) * (1 - q)^gamma_negative, so that an absent label with a score below `clip`
    costs nothing. No gradient flows through the two powers, which are only weights.

    Args:
        logits: (N, num_labels) of any float type; the loss is computed in float32.
        targets: (N, num_labels), 0 or 1.
        gamma_negative: Exponent for absent labels.
        gamma_positive: Exponent for present labels.
        clip: Shift of the probability of absent labels.

    Returns:
        (N,) float32. PaddleClas minimizes the sum over the batch.
    """
    import paddle

    scores = paddle.nn.functional.sigmoid(logits.astype("float32"))
    targets = targets.astype("float32")
    certainty = paddle.where(targets > 0.5, scores, (1 - scores + clip).clip(max=1.0))
    with paddle.no_grad():
        exponents = gamma_positive * targets + gamma_negative * (1 - targets)
        weights = (1 - certainty).pow(exponents)
    return (-certainty.clip(min=_SMALLEST_PROBABILITY).log() * weights).sum(axis=1)


def decayed_parameter_names(network: paddle.nn.Layer) -> frozenset[str]:
    """Return paddle's own names of the trained parameters that decay: all but one-dimensional ones.

    One-dimensional are biases and the scales and shifts of norms (PaddleClas's `one_dim_param_no_weight_decay`).
    """
    return frozenset(parameter.name for parameter in _trained(network) if len(parameter.shape) > 1)


def make_optimizer(network: paddle.nn.Layer, weight_decay: float, gradient_clip: float = 0.0) -> Any:
    """Return an AdamW for the network's trained parameters; set its learning rate before each step.

    Args:
        network: The network that is trained.
        weight_decay: See `TrainSettings`.
        gradient_clip: See `TrainSettings`.

    Raises:
        TrainingError: The network has no parameters to train.
    """
    import paddle

    parameters = _trained(network)
    if not parameters:
        raise TrainingError("Expected a network with parameters to train, got one that is frozen throughout.")
    decayed = decayed_parameter_names(network)
    return paddle.optimizer.AdamW(
        learning_rate=0.0,
        beta1=BETA1,
        beta2=BETA2,
        epsilon=EPSILON,
        parameters=parameters,
        weight_decay=weight_decay,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(gradient_clip) if gradient_clip else None,
        apply_decay_param_fun=lambda name: name in decayed,
    )


@dataclasses.dataclass(frozen=True)
class CosineSchedule:
    """The learning rate: linear warm-up, then a cosine to almost zero (PaddleClas's `Cosine`).

    It depends only on the step, so that a checkpoint needs nothing but the step.

    Attributes:
        peak: Learning rate at the end of the warm-up.
        total_steps: Steps of the whole training.
        warmup_steps: Steps of the warm-up, below `total_steps`.
    """

    peak: float
    total_steps: int
    warmup_steps: int

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            start = min(WARMUP_START, self.peak)
            return start + (self.peak - start) * step / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        lowest = min(LOWEST, self.peak)
        return lowest + (self.peak - lowest) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def ema_decay(step: int, decay: float) -> float:
    """Return the decay at a step, counted from 0: `decay` in the long run, less before.

    With a fixed 0.9997 the average of a run of a few hundred steps would still consist of its first weights. The ramp
    (1 + step) / (10 + step), that of TensorFlow's `ExponentialMovingAverage`, averages over about the last ninth of the
    steps so far; it reaches 0.9997 after 30,000 steps.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """The average of a network's parameters and batch-norm statistics, as a network of its own.

    Attributes:
        network: In evaluation mode, with the averaged weights.
    """

    def __init__(self, network: paddle.nn.Layer, decay: float) -> None:
        """Start with the network's present weights.

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


def _trained(network: paddle.nn.Layer) -> list[Any]:
    # batch-norm statistics and the decoder's frozen queries are parameters for paddle, but have no gradient
    return [parameter for parameter in network.parameters() if not parameter.stop_gradient]
