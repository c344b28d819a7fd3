"""What a server says to one request, whichever protocol brought it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

# The outputs that every request asks for; all that a client can see is checked.
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
    """No outputs.

    Attributes:
        code: gRPC's name of the status, `INVALID_ARGUMENT` for example; `NO_ANSWER` where the connection failed and
            `MALFORMED` where the answer is not what the protocol says.
        message: The server's words, or the library's.
    """

    code: str
    message: str


Reply = list[ImageReply] | Refusal


def assemble_reply(
    scores: npt.NDArray[np.float32], results: Sequence[bytes], statuses: Sequence[bytes], image_count: int
) -> Reply:
    """Put the outputs of a request together, one `ImageReply` for each image.

    Args:
        scores: (N, num_labels) float32.
        results: N JSON texts in UTF-8.
        statuses: N texts in UTF-8.
        image_count: Images that were sent.

    Returns:
        The replies, or a `MALFORMED` refusal where they are not N well-formed ones.
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
