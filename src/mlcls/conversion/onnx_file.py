"""The one place where ONNX files are read, with checks before a library sees them.

An ONNX file can ask for other files (`external_data`, a path with or without `..`), for custom operations, and for more
memory than it has bytes. The checks walk its messages without the package `onnx`, which a serving image does not have,
and without reading the weights, in a few milliseconds whatever the size. Field numbers are those of `onnx/onnx.proto`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlcls.base.text import clip
from mlcls.errors import ModelFormatError

if TYPE_CHECKING:
    import onnx

# protobuf's own limit for one message.
MAX_FILE_BYTES: Final = 2**31 - 1
# The conversion writes 17; today's runtimes know up to 25.
MAX_OPSET: Final = 25
MAX_NODES: Final = 200_000
# Levels of graphs in attributes of nodes (If, Loop); no classifier nests them so deeply.
MAX_DEPTH: Final = 4

# Domains of operations that the runtimes have built in; others need a library to be loaded.
_DOMAINS: Final = frozenset((b"", b"ai.onnx", b"ai.onnx.ml", b"com.microsoft"))

_GRAPH, _OPSET, _TRAINING, _FUNCTION = 7, 8, 20, 25
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15
_ATTRIBUTE, _NODE_DOMAIN = 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES = 22, 23
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 8, 13, 14
_FUNCTION_NODE, _FUNCTION_OPSET, _FUNCTION_ATTRIBUTE = 7, 9, 11

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _RefusedError(Exception):
    """The text says what the file is instead of a valid one."""


def check_onnx_file(path: Path) -> None:
    """Check that an ONNX file is complete and self-contained.

    Raises:
        ModelFormatError: The file is missing, empty, too large, truncated or not an ONNX file; it has data in other
            files, operations of unknown domains, a newer opset, or more nodes or deeper graphs than any model here.
    """
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_FILE_BYTES:
            raise _RefusedError(f"a file of {size} bytes, expected 1 to {MAX_FILE_BYTES}")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Walk(content).check_model(size)
    except OSError as error:
        raise ModelFormatError(
            f"{path}: expected an ONNX file, got one that cannot be read: {error.strerror}."
        ) from None
    except _RefusedError as error:
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

    def check_model(self, size: int) -> None:
        opsets = graphs = 0
        for field, kind, start, end in self._fields(0, size):
            if field == _GRAPH and kind == _BYTES:
                graphs += 1
                self._check_graph(start, end, 0)
            elif field == _OPSET and kind == _BYTES:
                opsets += 1
                self._check_opset(start, end)
            elif field == _FUNCTION and kind == _BYTES:
                self._check_function(start, end)
            elif field == _TRAINING:
                raise _RefusedError("one with graphs for training")
        if not graphs or not opsets:
            raise _RefusedError("a file without a graph or without an opset")

    def _check_function(self, start: int, end: int) -> None:
        self._check_nodes(start, end, _FUNCTION_NODE, 0)
        for field, kind, first, last in self._fields(start, end):
            if field == _FUNCTION_OPSET and kind == _BYTES:
                self._check_opset(first, last)
            elif field == _FUNCTION_ATTRIBUTE and kind == _BYTES:
                self._check_attribute(first, last, 0)

    def _check_opset(self, start: int, end: int) -> None:
        domain, version = b"", 0
        for field, kind, first, last in self._fields(start, end):
            if field == 1 and kind == _BYTES:
                domain = self._content[first:last]
            elif field == 2 and kind == _VARINT:
                version, _ = self._varint(first, last)
        if domain not in _DOMAINS:
            raise _RefusedError(f"operations of the domain {clip(domain)}, which no runtime here has built in")
        if domain in (b"", b"ai.onnx") and not 1 <= version <= MAX_OPSET:
            raise _RefusedError(f"the opset {version}, expected 1 to {MAX_OPSET}")

    def _check_graph(self, start: int, end: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _RefusedError(f"graphs nested more than {MAX_DEPTH} levels deep")
        self._check_nodes(start, end, _NODE, depth)
        for field, kind, first, last in self._fields(start, end):
            if field == _INITIALIZER and kind == _BYTES:
                self._check_tensor(first, last)
            elif field == _SPARSE_INITIALIZER and kind == _BYTES:
                self._check_sparse(first, last)

    def _check_nodes(self, start: int, end: int, node_field: int, depth: int) -> None:
        for field, kind, first, last in self._fields(start, end):
            if field != node_field or kind != _BYTES:
                continue
            self._nodes += 1
            if self._nodes > MAX_NODES:
                raise _RefusedError(f"more than {MAX_NODES} nodes")
            for part, part_kind, part_start, part_end in self._fields(first, last):
                if part == _NODE_DOMAIN and part_kind == _BYTES:
                    domain = self._content[part_start:part_end]
                    if domain not in _DOMAINS:
                        raise _RefusedError(f"an operation of the domain {clip(domain)}")
                elif part == _ATTRIBUTE and part_kind == _BYTES:
                    self._check_attribute(part_start, part_end, depth)

    def _check_attribute(self, start: int, end: int, depth: int) -> None:
        for field, kind, first, last in self._fields(start, end):
            if kind != _BYTES:
                continue
            if field in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                self._check_tensor(first, last)
            elif field in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                self._check_graph(first, last, depth + 1)
            elif field in (_ATTRIBUTE_SPARSE, _ATTRIBUTE_SPARSES):
                self._check_sparse(first, last)

    def _check_sparse(self, start: int, end: int) -> None:
        for field, kind, first, last in self._fields(start, end):
            if field in (1, 2) and kind == _BYTES:  # values and indices
                self._check_tensor(first, last)

    def _check_tensor(self, start: int, end: int) -> None:
        name, is_outside = b"", False
        for field, kind, first, last in self._fields(start, end):
            if field == _TENSOR_NAME and kind == _BYTES:
                name = self._content[first : min(last, first + 80)]
            elif field == _TENSOR_EXTERNAL_DATA:
                is_outside = True
            elif field == _TENSOR_DATA_LOCATION and kind == _VARINT:
                is_outside |= self._varint(first, last)[0] != 0
        if is_outside:
            raise _RefusedError(f"the tensor {clip(name)} with its data in another file")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the number, the wire type, and the start and end of the content of each field."""
        position = start
        while position < end:
            key, position = self._varint(position, end)
            kind = key & 7
            first = position
            if kind == _VARINT:
                _, position = self._varint(position, end)
            elif kind == _FIXED64:
                position += 8
            elif kind == _FIXED32:
                position += 4
            elif kind == _BYTES:
                length, first = self._varint(position, end)
                position = first + length
            else:
                raise _RefusedError(f"another kind of file or a damaged one (at byte {first})")
            if position > end or key >> 3 == 0:
                raise _RefusedError(f"another kind of file, or a truncated or damaged one (at byte {first})")
            yield key >> 3, kind, first, position

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 64:
            byte = self._content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise _RefusedError(f"another kind of file, or a truncated or damaged one (at byte {position})")
