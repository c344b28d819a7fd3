"""What a step of a training computes, as in PaddleClas's multi-label recipes.

Asymmetric loss (Ben-Baruch et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021), AdamW, a learning rate
that warms up and then follows a cosine, and a moving average of the weights.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import paddle

# PaddleClas's `MultiLabelAsymmetricLoss`.
GAMMA_NEGATIVE: Final = 4.0
GAMMA_POSITIVE: Final = 0.0
CLIP: Final = 0.05
_SMALLEST_PROBABILITY: Final = 1e-8

# PaddleClas's `warmup_start_lr` and `eta_min`.
WARMUP_START: Final = 1e-6
LOWEST: Final = 1e-10


def asymmetric_loss(logits: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
    """Return the loss of each image, summed over its labels.

    With p the score of a label: a present label costs -log(p) * (1 - p)^GAMMA_POSITIVE; an absent one, with
    q = min(1 - p + CLIP, 1), costs -log(q) * (1 - q)^GAMMA_NEGATIVE, so that an absent label with a score below CLIP
    costs nothing. No gradient flows through the two powers, which are only weights.

    Logits, of any float type, and targets, 0 or 1, are (N, num_labels), the loss is (N,) float32. PaddleClas minimizes
    its sum over the batch.
    """
    import paddle

    scores = paddle.nn.functional.sigmoid(logits.astype("float32"))
    targets = targets.astype("float32")
    certainty = paddle.where(targets > 0.5, scores, (1 - scores + CLIP).clip(max=1.0))
    with paddle.no_grad():
        exponents = GAMMA_POSITIVE * targets + GAMMA_NEGATIVE * (1 - targets)
        weights = (1 - certainty).pow(exponents)
    return (-certainty.clip(min=_SMALLEST_PROBABILITY).log() * weights).sum(axis=1)


def make_optimizer(network: paddle.nn.Layer, weight_decay: float, gradient_clip: float = 0.0) -> Any:
    """Return an AdamW for the network's trained parameters, with paddle's betas; set its rate before each step.

    All but one-dimensional parameters decay, which are biases and the scales and shifts of norms (PaddleClas's
    `one_dim_param_no_weight_decay`).
    """
    import paddle

    # batch-norm statistics and the decoder's frozen queries are parameters for paddle, but have no gradient
    parameters = [parameter for parameter in network.parameters() if not parameter.stop_gradient]
    decayed = {parameter.name for parameter in parameters if len(parameter.shape) > 1}
    return paddle.optimizer.AdamW(
        learning_rate=0.0,
        parameters=parameters,
        weight_decay=weight_decay,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(gradient_clip) if gradient_clip else None,
        apply_decay_param_fun=lambda name: name in decayed,
    )


def cosine_rate(step: int, *, peak: float, total_steps: int, warmup_steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to almost zero (PaddleClas's `Cosine`).

    The step, counted from 0, is all that it depends on; a checkpoint needs nothing more. `peak` is the learning rate at
    the end of the warm-up.
    """
    if step < warmup_steps:
        start = min(WARMUP_START, peak)
        return start + (peak - start) * step / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    lowest = min(LOWEST, peak)
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


class WeightAverage:
    """The average of a network's parameters and batch-norm statistics, as a network of its own.

    With a fixed decay of 0.9997 the average of a run of a few hundred steps would still consist of its first weights.
    The ramp (1 + step) / (10 + step), that of TensorFlow's `ExponentialMovingAverage`, averages over about the last
    ninth of the steps so far; it reaches 0.9997 after 30,000 steps.

    Attributes:
        network: In evaluation mode, with the averaged weights; at first, the given network's.
    """

    def __init__(self, network: paddle.nn.Layer, decay: float) -> None:
        self.network: Any = copy.deepcopy(network)
        self.network.eval()
        self._decay = decay
        source = network.state_dict()
        self._pairs = [(tensor, source[name]) for name, tensor in self.network.state_dict().items()]

    def update(self, step: int) -> None:
        """Move the average towards the network's weights after a step, counted from 0."""
        import paddle

        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        with paddle.no_grad():
            for average, current in self._pairs:
                average.lerp_(current, weight)
