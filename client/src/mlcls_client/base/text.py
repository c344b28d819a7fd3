"""Untrusted texts (labels, file names, addresses) made harmless for a terminal, a CSV file and a file name.

A terminal obeys control characters: a label could move the cursor, rename the window or forge a line. A spreadsheet
runs a cell that begins with `=`, and Unicode has marks that reverse text.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_FILE_NAME_BYTES: Final = 120

# Control characters (C0, DEL, C1), line separators, and the embeddings, overrides and isolates of bidirectional text.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# What a spreadsheet takes for the beginning of a formula, even after spaces.
_FORMULA: Final = re.compile("\\s*[=+\\-@|\uff1d\uff0b\uff0d\uff20]")


def visible(text: str) -> str:
    """Return a text on one line, with its control characters as backslash escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def visible_json(text: str) -> str:
    """Return an equal JSON text without the control characters that JSON allows in strings (DEL, C1, U+2028, ...)."""
    return _CONTROL.sub(lambda match: match[0] if match[0] in "\n\r\t" else f"\\u{ord(match[0]):04x}", text)


def csv_cell(value: object) -> object:
    """Return a cell that no spreadsheet runs: text that looks like a formula gets a leading `'` (OWASP's advice)."""
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if _FORMULA.match(value) else visible(value)


def safe_file_name(name: str) -> str:
    """Return a safe name for a file, of the same suffix: no separators, no control characters, not too long."""
    name = re.sub(r'[/\\:*?"<>|]', "_", _CONTROL.sub("_", name))
    name = "".join("_" if unicodedata.category(c) in ("Cs", "Cn") else c for c in name).strip(" ")
    stem, dot, suffix = name.rpartition(".")
    if not dot or not stem or len(suffix) > 10:
        stem, dot, suffix = name, "", ""
    kept = stem.encode("utf-8", "replace")[:MAX_FILE_NAME_BYTES].decode("utf-8", "ignore")
    return f"{kept.lstrip('-')}{dot}{suffix}"


def end_sentence(text: str) -> str:
    """Return a text with one period at its end."""
    return f"{text.rstrip('.')}."
