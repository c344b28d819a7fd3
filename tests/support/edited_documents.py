"""JSON documents with one wrong key."""

from __future__ import annotations

import json
from typing import Any


def edit_document(text: str, key: str, value: object) -> str:
    """Return a JSON text with another value at a key like `transform.height`; without the key for `...`."""
    document: dict[str, Any] = json.loads(text)
    *parents, last = key.split(".")
    target = document
    for parent in parents:
        target = target[parent]
    target[last] = value
    if value is ...:
        del target[last]
    return json.dumps(document)
