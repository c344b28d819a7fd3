"""Lines in the server's log about requests that were refused, whatever bytes and ids a client sends.

A line is a few words and a JSON object of ASCII characters without control characters, so that no content of a request
can end a line, forge one, or move a terminal's cursor. The lines are limited in number, and say how many were left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from mlcls.base.text import to_ascii_json
from mlcls.errors import MlclsError

# Begins the message of a line; what follows is a JSON object.
REFUSED: Final = "refused: "

# Where such a line comes from, as Triton's log has it: the file that calls its logger.
REFUSED_SOURCE: Final = "refusal_log.py"

# So many lines at once, and so many a second in the long run, of one process.
BURST_LINES: Final = 20
LINES_PER_S: Final = 2.0

MAX_ID_CHARACTERS: Final = 128
MAX_ERROR_CHARACTERS: Final = 400


class RefusalLog:
    """Writes the lines of one step of one version of a model."""

    def __init__(
        self, model: str, version: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is written yet.

        Args:
            model: Name of the ensemble.
            version: Of the model.
            write: Takes a line.
            clock: Seconds.
        """
        self._model = model
        self._version = version
        self._write = write
        self._clock = clock
        self._allowance = float(BURST_LINES)
        self._counted_s = clock()
        self._left_out = 0

    def note(self, request_id: str, images: int, refused: Sequence[tuple[int, MlclsError, str]]) -> None:
        """Write a line about a request.

        Args:
            request_id: The client's, empty where it gave none.
            images: In the request.
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
            "model": self._model,
            "version": self._version,
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
