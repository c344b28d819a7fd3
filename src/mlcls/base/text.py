"""Foreign text (labels, paths, output of other programs) made safe for error messages, logs, terminals and CSV files.

The client has the same functions in `mlcls_client.base.text`, since it is installed without this library.
"""

from __future__ import annotations

import json
import re
import reprlib
from typing import Final

# What a terminal, an editor or a web page obeys instead of showing it: control characters, lone surrogates, line
# separators, and the marks that reverse text (Unicode's bidirectional embeddings, overrides and isolates).
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What a spreadsheet takes for the beginning of a formula.
_FORMULA: Final = re.compile("\\s*[=+\\-@|\uff1d\uff0b\uff0d\uff20]")
_SHORT_REPR: Final = reprlib.Repr()
_SHORT_REPR.maxlevel = 2


def clip(value: object, limit: int = 60) -> str:
    """Return a value for an error message: escaped, and cut to `limit` characters."""
    if isinstance(value, (list, tuple, dict, set)):
        # by reference, a YAML file can hold more than could ever be written out
        text = ascii(_SHORT_REPR.repr(value))[1:-1]
    else:
        try:
            text = ascii(value)
        except ValueError:  # an int of more digits than Python writes
            text = "a huge integer"
    return text if len(text) <= limit else text[:limit] + "..."


def one_line(value: object) -> str:
    """Return the text of a value, such as an exception, with each run of white space as one space."""
    return " ".join(str(value).split())


def has_control(text: str) -> bool:
    """Return whether a text has characters that are obeyed instead of shown."""
    return _CONTROL.search(text) is not None


def visible(text: str, keep: str = "\n") -> str:
    """Return a text with a backslash escape for each character, except those of `keep`, that would be obeyed."""
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else ascii(match[0])[1:-1], text)


def csv_cell(value: object) -> object:
    """Return a cell that no spreadsheet runs: a text that looks like a formula gets a leading `'` (OWASP's advice)."""
    if not isinstance(value, str):
        return value
    return f"'{visible(value, '')}" if _FORMULA.match(value) else visible(value, "")


def to_ascii_json(content: object) -> str:
    """Return JSON text in one line of printable ASCII."""
    return json.dumps(content, ensure_ascii=True).replace("\x7f", "\\u007f")
