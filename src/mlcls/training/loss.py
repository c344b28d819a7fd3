"""Asymmetric loss (Ben-Baruch et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import paddle

# PaddleClas's multi-label recipes (`MultiLabelAsymmetricLoss`).
GAMMA_NEGATIVE: Final = 4.0
GAMMA_POSITIVE: Final = 0.0
CLIP: Final = 0.05
_SMALLEST_PROBABILITY: Final = 1e-8


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
    costs nothing. No gradient flows through the two powers, which only weigh.

    Args:
        logits: (N, num_labels); computed in float32 whatever the type.
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
