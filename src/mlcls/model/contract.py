"""The served contract, as far as it is the same for every model: tensors, activation, threshold parameter, status."""

from __future__ import annotations

from typing import Final, Literal

from mlcls.base.documents import Document


class TensorNames(Document, frozen=True):
    """Names of the tensors that a served model takes, gives and passes from step to step."""

    image: Literal["image"] = "image"
    pixels: Literal["pixels"] = "pixels"
    decode_status: Literal["decode_status"] = "decode_status"
    logits: Literal["logits"] = "logits"
    scores: Literal["scores"] = "scores"
    result: Literal["result"] = "result"
    status: Literal["status"] = "status"


TENSORS: Final = TensorNames()

# Request parameter that sets the thresholds.
THRESHOLD_PARAMETER: Final = "threshold"

# Status of an image that has a result.
OK: Final = "OK"

# Each of the scores of an image that has none: below every score, and unlike NaN a number that JSON can carry.
NO_SCORE: Final = -1.0
