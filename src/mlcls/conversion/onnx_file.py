"""The one place where ONNX files are read, with checks before a library sees them.

An ONNX file can ask for other files (`external_data`, a path with or without `..`), for custom operations, and for more
memory than it has bytes. The checks walk its messages without the package `onnx`, which a serving image does not have,
and without reading the weights, in a few milliseconds whatever the size. Field numbers are those of `onnx/onnx.proto`.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlcls.base.protobuf_fields import BYTES, VARINT, read_fields, read_varint
from mlcls.base.text import clip
from mlcls.errors import ModelFormatError

if TYPE_CHECKING:
    import onnx

# protobuf's own limit for one message.
MAX_FILE_BYTES: Final = 2**31 - 1
# The conversion writes 17; today's runtimes know up to 25.
MAX_OPSET: Final = 25
MAX_NODES: Final = 200_000
# Levels of graphs: the model's own, and those in attributes of nodes (If, Loop); no classifier nests them so deeply.
MAX_DEPTH: Final = 5

# Domains of operations that the runtimes have built in; others need a library to be loaded.
_DOMAINS: Final = frozenset((b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft"))

# What is inside of each message, by field number.
_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},  # values and indices
}
# The fields that are looked at, by number and wire type.
_VALUES: Final[dict[str, dict[tuple[int, int], str]]] = {
    "node": {(7, BYTES): "domain"},
    "opset": {(1, BYTES): "domain", (2, VARINT): "version"},
    "tensor": {(8, BYTES): "name", (13, BYTES): "external data", (14, VARINT): "data location"},
}
# Most bytes that are taken of a name.
_NAME_BYTES: Final = 80


def check_onnx_file(path: Path) -> None:
    """Check that an ONNX file is complete and self-contained.

    Raises:
        ModelFormatError: The file is missing, empty, too large, truncated or not an ONNX file; it has data in other
            files, operations of unknown domains, a newer opset, or more nodes or deeper graphs than any model here.
    """
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_FILE_BYTES:
            raise ValueError(f"a file of {size} bytes, expected 1 to {MAX_FILE_BYTES}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Walk(content).check("model", 0, size)
    except (OSError, ValueError) as error:
        raise ModelFormatError(
            f"{path}: expected a self-contained ONNX file written by mlcls, got {error}; import the model again."
        ) from None


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that passes `check_onnx_file`.

    Raises:
        ModelFormatError: The file does not, or it cannot be parsed.
    """
    import onnx

    check_onnx_file(path)
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's class differs between its implementations
        raise ModelFormatError(
            f"{path}: expected an ONNX file, got one that cannot be parsed ({clip(str(error), 120)}); import the "
            f"model again."
        ) from None


class _Walk:
    """Walks the messages of a model from field to field, skipping their data."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._nodes = 0

    def check(self, message: str, start: int, end: int, depth: int = 0) -> None:
        """Check a message and all that is inside; `depth` is that of the innermost graph, 1 for the model's own."""
        self._nodes += message == "node"
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} nodes, or graphs nested more than {MAX_DEPTH} levels deep")
        inside, wanted = _MESSAGES.get(message, {}), _VALUES.get(message, {})
        seen: set[str] = set()
        values: dict[str, Any] = {}
        for field, kind, first, last in read_fields(self._content, start, end):
            if kind == BYTES and field in inside:
                seen.add(inside[field])
                self.check(inside[field], first, last, depth + (inside[field] == "graph"))
            elif (field, kind) in wanted:
                number, name = kind == VARINT, self._content[first : min(last, first + _NAME_BYTES)]
                values[wanted[field, kind]] = read_varint(self._content, first, last)[0] if number else name
        domain, version = values.get("domain", b""), values.get("version", 0)
        if message == "model" and not {"graph", "opset"} <= seen:
            raise ValueError("a file without a graph or without an opset")
        if message == "training":
            raise ValueError("one with graphs for training")
        if domain not in _DOMAINS:
            raise ValueError(f"operations of the domain {clip(domain)}, which no runtime here has built in")
        if message == "opset" and domain in (b"", b"ai.onnx") and not 1 <= version <= MAX_OPSET:
            raise ValueError(f"the opset {version}, expected 1 to {MAX_OPSET}")
        if values.get("data location") or "external data" in values:
            raise ValueError(f"the tensor {clip(values.get('name', b''))} with its data in another file")
