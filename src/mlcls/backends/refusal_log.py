"""Lines in the server's log about refused requests, safe for any bytes and ids that a client sends.

A line is a prefix and a JSON object of ASCII characters without control characters, so that no content of a request can
end a line, forge one, or move a terminal's cursor. The lines are limited in number and say how many were left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from mlcls.base.text import to_ascii_json
from mlcls.errors import MlclsError

# Prefix of a line's message; a JSON object follows.
REFUSED: Final = "refused: "

# Source of such a line in Triton's log: the file that calls the logger.
REFUSED_SOURCE: Final = "refusal_log.py"

# Lines at once, and lines per second in the long run, of one process.
BURST_LINES: Final = 20
LINES_PER_S: Final = 2.0

MAX_ID_CHARACTERS: Final = 128
MAX_ERROR_CHARACTERS: Final = 400


class RefusalLog:
    """Writes the lines of one step of one version of a model; the clock gives seconds."""

    def __init__(
        self, model: str, version: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._labels = {"model": model, "version": version}
        self._write, self._clock = write, clock
        self._allowance = float(BURST_LINES)
        self._counted_s = clock()
        self._left_out = 0

    def note(self, request_id: str, images: int, refused: Sequence[tuple[int, MlclsError, str]]) -> None:
        """Write a line about a request.

        Args:
            request_id: The client's id, empty if it sent none.
            images: Number of images in the request.
            refused: Index, error and reason of each image without result.
        """
        if not refused:
            return
        now_s = self._clock()
        self._allowance = min(float(BURST_LINES), self._allowance + (now_s - self._counted_s) * LINES_PER_S)
        self._counted_s = now_s
        if self._allowance < 1:
            self._left_out += 1
            return
        self._allowance -= 1
        index, error, reason = refused[0]
        content: dict[str, Any] = {
            **self._labels,
            "request_id": _clip(request_id, MAX_ID_CHARACTERS),
            "images": images,
            "refused": len(refused),
            "image": index,
            "reason": reason,
            "error": _clip(str(error), MAX_ERROR_CHARACTERS),
        }
        if self._left_out:
            content["left_out"] = self._left_out
            self._left_out = 0
        self._write(REFUSED + to_ascii_json(content))


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
