"""Check that an `inference.pdiparams` is complete.

Neither Paddle nor paddle2onnx does: both read past the end of a truncated file and continue with whatever is in
memory. The format is Paddle's `save_combine`, one record per tensor (`dense_tensor_serialize` in
`paddle/phi/core/framework`): uint32 version; uint64 number of LoD levels, each with a uint64 size and as many bytes;
uint32 tensor version; int32 size of a `VarType.TensorDesc` protobuf (1: data type, 2: dims); that protobuf; the data.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

from mlcls.errors import ModelFormatError

# Bytes of one element by `VarType.Type` (bool, int16, int32, int64, fp16, fp32, fp64, uint8, int8, bf16).
_ELEMENT_BYTES: Final = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2}
_MAX_DESCRIPTION_BYTES: Final = 4096
_MAX_LOD_LEVELS: Final = 16


class _FormatError(Exception):
    """The bytes do not have the expected format."""


def check_parameters(graph: Path, parameters: Path) -> None:
    """Check that a parameter file has only complete tensors, as many as the graph has parameters.

    Args:
        graph: `inference.json`, whose parameters are counted, or `inference.pdmodel`, whose are not.
        parameters: `inference.pdiparams`.

    Raises:
        ModelFormatError: The file is truncated, of another format, or has another number of tensors.
    """
    try:
        found = count_tensors(parameters)
    except _FormatError as error:
        raise ModelFormatError(
            f"{parameters}: expected all parameters of a Paddle model, got a file that is truncated or damaged "
            f"({error}); copy or download it again."
        ) from None
    expected = _count_graph_parameters(graph) if graph.suffix == ".json" else found
    if found != expected:
        raise ModelFormatError(
            f"{parameters}: expected the {expected} parameters of {graph.name}, got {found}; the two files do not "
            f"belong together, or one is truncated. Copy or download the model again."
        )


def count_tensors(path: Path) -> int:
    """Return the number of tensors in a parameter file, all of which must be complete."""
    count = 0
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        while file.tell() < size:
            data_bytes = _read_record_head(file)
            if file.tell() + data_bytes > size:
                raise _FormatError(f"tensor {count + 1} needs {file.tell() + data_bytes - size} more bytes")
            file.seek(data_bytes, 1)
            count += 1
    return count


def _read_record_head(file: BinaryIO) -> int:
    """Read a record up to its data and return the size of the data in bytes."""
    version, lod_levels = _unpack(file, "<IQ")
    if version != 0 or lod_levels > _MAX_LOD_LEVELS:
        raise _FormatError(f"no tensor at byte {file.tell() - 12}")
    for _ in range(lod_levels):
        (level_bytes,) = _unpack(file, "<Q")
        file.seek(level_bytes, 1)
    tensor_version, description_bytes = _unpack(file, "<Ii")
    if tensor_version != 0 or not 0 < description_bytes <= _MAX_DESCRIPTION_BYTES:
        raise _FormatError(f"no tensor description at byte {file.tell() - 4}")
    return _data_bytes(_read(file, description_bytes))


def _data_bytes(description: bytes) -> int:
    """Return the size in bytes of the data that a `TensorDesc` describes."""
    position = 0
    element_bytes = 0
    elements = 1
    while position < len(description):
        key, position = _varint(description, position)
        if key == 0x08:
            data_type, position = _varint(description, position)
            element_bytes = _ELEMENT_BYTES.get(data_type, 0)
        elif key == 0x10:
            dim, position = _varint(description, position)
            elements *= dim
        elif key == 0x12:  # the same dims, packed
            length, position = _varint(description, position)
            end = position + length
            while position < end:
                dim, position = _varint(description, position)
                elements *= dim
        else:
            raise _FormatError(f"unknown field {key} in a tensor description")
    if not element_bytes:
        raise _FormatError("a tensor of an unknown data type")
    return elements * element_bytes


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if not byte & 0x80:
            return value, position
    raise _FormatError("a tensor description that ends early")


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, _read(file, struct.calcsize(layout)))


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise _FormatError(f"it ends within a tensor's description, at byte {file.tell()}")
    return data


def _count_graph_parameters(graph: Path) -> int:
    """Return the number of parameters of a graph in Paddle's PIR format: its operations named `p`."""
    try:
        document: Any = json.loads(graph.read_bytes())
        operations = document["program"]["regions"][0]["blocks"][0]["ops"]
        return sum(operation["#"] == "p" for operation in operations)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise ModelFormatError(
            f"{graph}: expected a graph in Paddle's PIR format, got a file that is truncated or something else "
            f"({error}); copy or download it again."
        ) from None
