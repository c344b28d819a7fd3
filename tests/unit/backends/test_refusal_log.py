"""No byte of a request ends or forges a line of the log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlcls.backends.refusal_log import BURST_LINES, LINES_PER_S, REFUSED, RefusalLog
from mlcls.errors import ImageError


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now_s = 100.0
        self.refusals = RefusalLog("demo", "2", self.lines.append, lambda: self.now_s)

    def note(self, request_id: str = "r-1", text: str = "image: expected one.", images: int = 1) -> None:
        error = ImageError(text, "corrupt")
        self.refusals.note(request_id, images, [(0, error, error.reason)])

    def contents(self) -> list[dict[str, Any]]:
        assert all(line.startswith(REFUSED) for line in self.lines)
        return [json.loads(line.removeprefix(REFUSED)) for line in self.lines]


def test_content() -> None:
    log = Log()
    first, second = ImageError("image: expected one.", "empty"), ImageError("image: expected two.", "corrupt")
    log.refusals.note("r-7", 5, [(1, first, "empty"), (4, second, "corrupt")])
    log.refusals.note("r-8", 5, [])
    assert log.contents() == [
        {
            "model": "demo",
            "version": "2",
            "request_id": "r-7",
            "images": 5,
            "refused": 2,
            "image": 1,
            "reason": "empty",
            "error": "image: expected one.",
        }
    ]


@pytest.mark.parametrize(
    "hostile", ["a\nrefused: {}", "a\r\x0b\x0c\x1b[2J\x00\x7f\x85", "\u2028\u2029\u202e", '"}\\', "犬\ud800", "\x9b31m"]
)
def test_hostile_text(hostile: str) -> None:
    log = Log()
    log.note(hostile, f"image: got {hostile}")
    (line,) = log.lines
    assert all(" " <= character <= "~" for character in line)
    (content,) = log.contents()
    assert (content["request_id"], content["error"]) == (hostile, f"image: got {hostile}")


def test_long_text_is_cut() -> None:
    log = Log()
    log.note("i" * 10_000, "e" * 10_000_000)
    assert len(log.lines[0]) < 800


def test_lines_are_limited_and_what_is_left_out_is_told() -> None:
    log = Log()
    for _ in range(BURST_LINES + 50):
        log.note()
    assert len(log.lines) == BURST_LINES
    log.now_s += 3 / LINES_PER_S
    for _ in range(10):
        log.note()
    assert [content.get("left_out") for content in log.contents()[BURST_LINES:]] == [50, None, None]
    log.now_s += 1e6
    for _ in range(BURST_LINES + 1):
        log.note()
    assert len(log.lines) == 2 * BURST_LINES + 3, "a long pause allows no longer burst"
    assert log.contents()[BURST_LINES + 3]["left_out"] == 7
