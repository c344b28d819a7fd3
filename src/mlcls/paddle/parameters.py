"""Check that an `inference.pdiparams` is complete.

Neither Paddle nor paddle2onnx does: both read past the end of a truncated file and continue with whatever is in
memory. The format is Paddle's `save_combine`, one record per tensor (`dense_tensor_serialize` in
`paddle/phi/core/framework`): uint32 version; uint64 number of LoD levels, each with a uint64 size and as many bytes;
uint32 tensor version; int32 size of a `VarType.TensorDesc` protobuf (1: data type, 2: dims); that protobuf; the data.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any, Final

from mlcls.base.protobuf_fields import VARINT, read_fields, read_varint
from mlcls.errors import ModelFormatError

# Bytes of one element by `VarType.Type` (bool, int16, int32, int64, fp16, fp32, fp64, uint8, int8, bf16).
_ELEMENT_BYTES: Final = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2}
_MAX_LOD_LEVELS: Final = 16
_MAX_DESCRIPTION_BYTES: Final = 4096


def check_parameters(graph: Path, parameters: Path) -> None:
    """Check that a parameter file has only complete tensors, as many as an `inference.json` has parameters.

    Those of an `inference.pdmodel` are not counted.

    Raises:
        ModelFormatError: The file is truncated, of another format, or has another number of tensors.
    """
    try:
        found = _count_tensors(parameters)
    except (ValueError, OverflowError, struct.error) as error:
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


def _count_tensors(path: Path) -> int:
    """Return the number of tensors in a parameter file, all of which must be complete."""
    count = position = 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while position < len(content):
            version, lod_levels = struct.unpack_from("<IQ", content, position)
            if version != 0 or lod_levels > _MAX_LOD_LEVELS:
                raise ValueError(f"no tensor at byte {position}")
            position += 12
            for _ in range(lod_levels):
                position += 8 + struct.unpack_from("<Q", content, position)[0]
            tensor_version, description_bytes = struct.unpack_from("<Ii", content, position)
            if tensor_version != 0 or not 0 < description_bytes <= _MAX_DESCRIPTION_BYTES:
                raise ValueError(f"no tensor description at byte {position}")
            position += 8 + description_bytes
            position += _data_bytes(content[position - description_bytes : position])
            count += 1
        if position > len(content):
            raise ValueError(f"tensor {count} needs {position - len(content)} more bytes")
    return count


def _data_bytes(description: bytes) -> int:
    """Return the size in bytes of the data that a `TensorDesc` describes."""
    size = 0
    dims: list[int] = []
    for field, kind, position, end in read_fields(description, 0, len(description)):
        if (field, kind) == (1, VARINT):
            size = _ELEMENT_BYTES.get(read_varint(description, position, end)[0], 0)
        elif field == 2:  # each by itself, or all in one packed field
            while position < end:
                dim, position = read_varint(description, position, end)
                dims.append(dim)
    if not size:
        raise ValueError("a tensor of an unknown data type")
    return math.prod(dims, start=size)


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
