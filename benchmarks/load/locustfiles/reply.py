"""A server's reply to one request, over either protocol."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

# The outputs of every request: everything that a client can see is checked.
OUTPUTS: Final = ("scores", "result", "status")


@dataclasses.dataclass(frozen=True)
class ImageReply:
    """The outputs of one image.

    Attributes:
        scores: (num_labels,) float32.
        result: The JSON object.
        status: `OK`, or why the image has no result.
    """

    scores: npt.NDArray[np.float32]
    result: dict[str, Any]
    status: str


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A reply without outputs.

    Attributes:
        code: gRPC's name of the status, for example `INVALID_ARGUMENT`; `NO_ANSWER` if the connection failed, and
            `MALFORMED` if the answer violates the protocol.
        message: Text from the server or the client library.
    """

    code: str
    message: str


Reply = list[ImageReply] | Refusal


def assemble_reply(
    scores: npt.NDArray[np.float32], results: Sequence[bytes], statuses: Sequence[bytes], image_count: int
) -> Reply:
    """Assemble the outputs of a request, one `ImageReply` for each image.

    Args:
        scores: (N, num_labels) float32.
        results: N JSON texts in UTF-8.
        statuses: N texts in UTF-8.
        image_count: Number of images sent.

    Returns:
        The replies, or a `MALFORMED` refusal if they are not N well-formed ones.
    """
    lengths = {len(scores), len(results), len(statuses), image_count}
    if scores.ndim != 2 or len(lengths) != 1:
        return Refusal(
            "MALFORMED",
            f"expected outputs for {image_count} images, got scores {scores.shape}, {len(results)} results and "
            f"{len(statuses)} statuses",
        )
    try:
        parsed = [json.loads(result) for result in results]
        texts = [status.decode() for status in statuses]
    except ValueError as error:
        return Refusal("MALFORMED", f"expected JSON results and UTF-8 statuses, got {error}")
    if not all(isinstance(result, dict) for result in parsed):
        return Refusal("MALFORMED", "expected results that are JSON objects, got something else")
    return [ImageReply(*row) for row in zip(scores, parsed, texts, strict=True)]
