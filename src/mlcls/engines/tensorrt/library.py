"""One interface to NVIDIA's two builders: `tensorrt` (plans for Triton) and `tensorrt_rtx` (engines for RTX GPUs).

Both have the same Python API. This module handles the differences between TensorRT 10.12, TensorRT 11 and TensorRT-RTX.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np

from mlcls.errors import ConversionError, MissingExtraError, ModelFormatError
from mlcls.model.contract import TENSORS
from mlcls.model.spec import ModelSpec

Library = Literal["tensorrt", "tensorrt_rtx"]

# An input or output: its name, whether it is an input, NumPy's name of its type, its dims with -1 for a free one.
TensorInfo = tuple[str, bool, str, tuple[int, ...]]

# The first version that deprecates weak typing.
MIN_TENSORRT: Final = (10, 12)

# PyPI also has TensorRT's Python part alone, under another name, for images that already have the libraries.
_MODULES: Final[Mapping[Library, tuple[str, ...]]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx",),
}

# How many messages of a library an error quotes.
QUOTED_MESSAGES: Final = 3


def load_library(library: Library) -> ModuleType:
    """Import a library.

    Raises:
        MissingExtraError: It is not installed.
        ConversionError: It cannot be loaded, or is too old.
    """
    names = _MODULES[library]
    try:
        module = importlib.import_module(next((name for name in names if find_spec(name)), library))
    except ModuleNotFoundError as error:
        raise MissingExtraError(library.replace("_", "-"), library) from error
    except (ImportError, OSError) as error:  # a shared library that it needs is missing
        raise ConversionError(f"The Python package {library} is installed but cannot be loaded: {error}.") from error
    if library == "tensorrt" and parse_version(module.__version__)[:2] < MIN_TENSORRT:
        raise ConversionError(
            f"Expected TensorRT {'.'.join(map(str, MIN_TENSORRT))} or newer, got {module.__version__}; build in the "
            f"image that serves."
        )
    return module


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version: `10.12.0.36` gives (10, 12, 0, 36)."""
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0]))


def make_logger(module: ModuleType) -> Any:
    """Return a logger that keeps errors in `errors` and prints nothing."""

    class KeepingLogger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(module.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split()))

    return KeepingLogger()


def quote_errors(logger: Any) -> str:
    """Return the library's last different error messages."""
    return " | ".join(list(dict.fromkeys(logger.errors))[-QUOTED_MESSAGES:]) or "it gave no reason"


def load_engine(module: ModuleType, plan: bytes, logger: Any) -> Any:
    """Load a serialized engine onto the GPU.

    Raises:
        ConversionError: The library cannot load it: no GPU, another version or architecture, a damaged file.
    """
    reason = ""
    try:
        engine = module.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is not None:
            return engine
    except (RuntimeError, TypeError) as error:
        reason = f" ({error})"
    text = f"{module.__name__} {module.__version__} cannot load the engine: {quote_errors(logger)}{reason}"
    raise ConversionError(text)


def describe_engine(module: ModuleType, engine: Any) -> list[TensorInfo]:
    """Return the inputs and outputs of a loaded engine."""
    return [
        (
            name,
            engine.get_tensor_mode(name) == module.TensorIOMode.INPUT,
            name_type(module, engine.get_tensor_dtype(name)),
            tuple(engine.get_tensor_shape(name)),
        )
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
    ]


def check_tensors(found: Iterable[TensorInfo], spec: ModelSpec) -> None:
    """Check that the inputs and outputs of a network or an engine are those of Triton's configuration.

    Raises:
        ModelFormatError: They are others.
    """
    expected = [
        (TENSORS.logits, False, "float32", (-1, spec.num_labels)),
        (TENSORS.pixels, True, "uint8", (-1, spec.transform.height, spec.transform.width, 3)),
    ]
    got = sorted(found)
    if got != expected:
        raise ModelFormatError(
            f"Expected the tensors (name, input, type, dims) {expected}, got {got}; the file belongs to another model, "
            f"build this one's again."
        )


def name_type(module: ModuleType, data_type: Any) -> str:
    """Return NumPy's name of a library's element type, or the library's name if NumPy has none."""
    try:
        return np.dtype(module.nptype(data_type)).name
    except TypeError:
        return str(data_type.name).lower()
