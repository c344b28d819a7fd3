"""AdamW as PaddleClas's multi-label recipes set it up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mlcls.errors import TrainingError

if TYPE_CHECKING:
    import paddle

BETA1: Final = 0.9
BETA2: Final = 0.999
EPSILON: Final = 1e-8


def decayed_parameter_names(network: paddle.nn.Layer) -> frozenset[str]:
    """Return paddle's own names of the trained parameters that decay: all but one-dimensional ones.

    Those are biases and the scales and shifts of norms (PaddleClas's `one_dim_param_no_weight_decay`).
    """
    return frozenset(parameter.name for parameter in _trained(network) if len(parameter.shape) > 1)


def make_optimizer(network: paddle.nn.Layer, weight_decay: float, gradient_clip: float = 0.0) -> Any:
    """Return an AdamW for the network's trained parameters; its learning rate is to be set before each step.

    Args:
        network: What is trained.
        weight_decay: See `TrainSettings`.
        gradient_clip: See `TrainSettings`.

    Raises:
        TrainingError: The network has nothing to train.
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


def _trained(network: paddle.nn.Layer) -> list[Any]:
    # batch-norm statistics and the decoder's frozen queries are parameters to paddle, without gradient
    return [parameter for parameter in network.parameters() if not parameter.stop_gradient]
