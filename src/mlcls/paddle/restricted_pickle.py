"""Read paddle's `.pdparams`, `.pdopt` and `.pdstates` without running what is in them.

These files are pickles, and reading a pickle runs whatever it names: `paddle.load` of a stranger's file runs the
stranger's program. Here a pickle can name only the few things that paddle's own files name, and each of these is a
stand-in: numpy's code never sees a forged state, since its `__setstate__` trusts what it gets.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from mlcls.base.text import clip
from mlcls.errors import ModelFormatError

# Largest file that is read; CLIP's checkpoint with the optimizer's two moments has about 1.2 GB.
MAX_FILE_BYTES: Final = 8 * 1024**3
# Levels of nested containers; paddle's own states have three.
MAX_DEPTH: Final = 32
MAX_VALUES: Final = 5_000_000
MAX_DIMS: Final = 32

# Kind and item size of numpy's types that hold plain numbers.
_PLAIN_TYPES: Final = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))
_PLAIN_VALUES: Final = (str, bytes, bool, int, float, complex, type(None))


class _RefusedError(Exception):
    """The file names or contains something that no file of parameters has; the text says what."""


class _Code:
    """Stand-in for `numpy.dtype`: a type name until its byte order is set."""

    __slots__ = ("name", "order")

    def __init__(self, name: object, align: object = False, copy: object = True) -> None:
        text = name.decode("latin1") if isinstance(name, bytes) else name
        if not isinstance(text, str) or text not in _PLAIN_TYPES:
            raise _RefusedError(f"an array of the type {clip(name)}, expected plain numbers")
        self.name, self.order = text, "="

    def __setstate__(self, state: object) -> None:
        # (version, byte order, no sub-array, no names, no fields, size, alignment, flags[, metadata])
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise _RefusedError(f"an array of a structured type {clip(state)}")
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise _RefusedError(f"the byte order {clip(order)}")
        self.order = order


class _Array:
    """Stand-in for `numpy.ndarray`: empty until shape, type and bytes are set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: npt.NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        # (version, shape, type, Fortran order, bytes)
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise _RefusedError(f"an array of the state {clip(state)}")
        shape, code, is_fortran, content = state[-4:]
        self.value = _read_array(shape, code, content, "F" if is_fortran is True else "C")


def _read_array(shape: object, code: object, content: object, order: Literal["C", "F"] = "C") -> npt.NDArray[Any]:
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMS or not isinstance(code, _Code):
        raise _RefusedError(f"an array of the shape {clip(shape)} and the type {clip(code)}")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise _RefusedError(f"an array of the shape {clip(shape)}")
    dtype = np.dtype(code.order + code.name)
    if not isinstance(content, bytes) or math.prod(shape) * dtype.itemsize != len(content):
        size = len(content) if isinstance(content, bytes) else f"a {type(content).__name__} instead of"
        raise _RefusedError(f"{size} bytes for an array of the shape {list(shape)}, {dtype}")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


class _Marker:
    """Stand-in for a class that is named only as an argument."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("a changed class")


class _Call(_Marker):
    """Stand-in for a function; unlike a function, it cannot be changed from inside a pickle."""

    __slots__ = ("__function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self.__function = function

    def __call__(self, *arguments: object) -> object:
        return self.__function(*arguments)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not _NDARRAY:
        raise _RefusedError("an array of a class that is not numpy.ndarray")
    return _Array()


def _scalar(code: object, content: object = b"") -> object:
    return _read_array((), code, content)[()]


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """Stand in for `_codecs.encode`, with which pickles of protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError("an encoding other than latin1")
    return text.encode("latin1")


def _eval(text: object, names: object = None) -> object:
    """Stand in for `eval("data", {"data": array})`, as paddle writes a tensor of a static graph; evaluate nothing."""
    array = names.get("data") if text == "data" and isinstance(names, dict) and len(names) == 1 else None
    if not isinstance(array, _Array):
        raise _RefusedError("a call of eval")
    return array


_NDARRAY: Final = _Marker()
# By the names of numpy 1 and Python 3.
_ALLOWED: Final[dict[str, object]] = {
    "numpy.core.multiarray._reconstruct": _Call(_reconstruct),
    "numpy.core.multiarray.scalar": _Call(_scalar),
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _Call(_Code),
    "_codecs.encode": _Call(_encode),
    "builtins.bytes": _Call(lambda: b""),  # with which protocols 0 to 2 write empty bytes
    "builtins.eval": _Call(_eval),
    "builtins.tuple": _Call(tuple),
    "collections.OrderedDict": _Call(dict),  # keeps the order, and has no attributes that could be set
}


class _Reader(pickle.Unpickler):
    """An unpickler that finds stand-ins and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        path = re.sub("^__builtin__", "builtins", re.sub(r"^numpy\._core", "numpy.core", f"{module}.{name}"))
        if path not in _ALLOWED:
            raise _RefusedError(f"the name {clip(f'{module}.{name}')}, which reading the file would run")
        return _ALLOWED[path]

    def persistent_load(self, identifier: object) -> object:
        raise _RefusedError("a reference to something outside the file")


def read_values(path: Path) -> Any:
    """Return what `paddle.save` saved, as plain dicts, lists and tuples with numpy's arrays and numbers.

    Raises:
        ModelFormatError: The file cannot be read, is too large, damaged or of another format, or contains anything but
            numbers, strings and containers of these, which the text names; nothing in it was run.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _RefusedError(f"{size} bytes, at most {MAX_FILE_BYTES} are read")
        with path.open("rb") as file:
            document = _Reader(file, encoding="latin1").load()
        return _Plain().value(document)
    except _RefusedError as error:
        raise ModelFormatError(
            f"{path}: expected a file of parameters, numbers by name, as paddle.save writes it, got one with something "
            f"else in it: {error}. Nothing in it was run; get the file from whoever trained the model."
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise ModelFormatError(
            f"{path}: expected a file that paddle.save wrote, got another or a damaged one ({type(error).__name__}: "
            f"{clip(str(error), 120)}); copy or download it again."
        ) from None


class _Plain:
    """Replaces the stand-ins of arrays with the arrays, within limits of depth and number."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def value(self, value: object, depth: int = 0) -> Any:
        self._left -= 1
        # this also stops at a container that holds itself, and at ten that each hold the next one ten times
        if depth > MAX_DEPTH or self._left < 0:
            raise _RefusedError(f"containers more than {MAX_DEPTH} deep, or more than {MAX_VALUES} values")
        if isinstance(value, _Array):
            if value.value is None:
                raise _RefusedError("an array without content")
            return value.value
        if isinstance(value, dict):
            if not all(isinstance(key, (str, int, float)) for key in value):
                raise _RefusedError("keys that are neither strings nor numbers")
            return {key: self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.value(item, depth + 1) for item in value)
        if type(value) in _PLAIN_VALUES or isinstance(value, np.generic):
            return value
        raise _RefusedError(f"a {type(value).__name__.lstrip('_').lower()} on its own")
