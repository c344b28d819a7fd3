"""The served contract, as far as it is the same for every model: tensors, activation, threshold parameter, status."""

from __future__ import annotations

from typing import Final, NamedTuple


class TensorNames(NamedTuple):
    """Names of the tensors that a served model takes, gives and passes from step to step."""

    image: str = "image"
    pixels: str = "pixels"
    decode_status: str = "decode_status"
    logits: str = "logits"
    scores: str = "scores"
    result: str = "result"
    status: str = "status"


TENSORS: Final = TensorNames()

# What postprocess applies to `logits`, once.
ACTIVATION: Final = "sigmoid"

# Request parameter that sets the thresholds.
THRESHOLD_PARAMETER: Final = "threshold"

# Status of an image that has a result.
OK: Final = "OK"
