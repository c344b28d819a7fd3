"""Read the text files of a dataset line by line, and report every byte that is not plain UTF-8 text."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Final

from mlcls.dataset.problems import Place, ProblemLog

_UTF16_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Control characters, some of which only some readers take for line ends; the tab has a meaning in annotation files.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufeff]")


def read_lines(path: Path, name: str, log: ProblemLog) -> list[tuple[int, str]] | None:
    """Read a UTF-8 file; log what is wrong with a line and leave the line out.

    Line ends may be LF or CRLF, as in PaddleX. The file is named `name` in problems.

    Returns:
        Number and text of each good line, without its line end; None if the file cannot be read at all.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        log.error("missing-file", Place(name), "expected this file, but it does not exist")
        return None
    except OSError as error:
        message = f"expected a text file, got one that cannot be read: {error.strerror}"
        log.error("unreadable-file", Place(name), message)
        return None
    if data.startswith(_UTF16_MARKS):
        log.error("encoding", Place(name), "expected UTF-8, got UTF-16; save it as UTF-8")
        return None
    if data.startswith(codecs.BOM_UTF8):
        message = "expected UTF-8 without a byte order mark, got one; save it without (PaddleX reads it as text)"
        log.error("byte-order-mark", Place(name, 1), message)
        data = data.removeprefix(codecs.BOM_UTF8)
    raw_lines = data.removesuffix(b"\n").split(b"\n") if data else []
    if any(line.endswith(b"\r") for line in raw_lines):
        log.warning("crlf", Place(name), "lines end with CRLF (Windows); they are read as if they ended with LF")
    lines = []
    for number, raw_line in enumerate(raw_lines, 1):
        place, raw_line = Place(name, number), raw_line.removesuffix(b"\r")
        try:
            text = raw_line.decode("utf-8")
        except UnicodeDecodeError as error:
            bad = raw_line[error.start : error.start + 4]
            log.error("encoding", place, f"expected UTF-8, got the bytes {bad!r} at byte {error.start + 1} of the line")
            continue
        found = _CONTROLS.search(text)
        if found:
            message = f"expected text, got the control character {found[0]!r} at position {found.start() + 1}"
            log.error("control-character", place, message)
        else:
            lines.append((number, text))
    return lines


def is_line_safe(text: str) -> bool:
    """Return whether a text can be written in one line and read again unchanged: it has no controls but tabs."""
    return _CONTROLS.search(text) is None
