"""One interface to NVIDIA's two builders: `tensorrt` (plans for Triton) and `tensorrt_rtx` (engines for RTX GPUs).

Both have the same Python API. This module handles the differences between TensorRT 10.12, TensorRT 11 and TensorRT-RTX.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final, Literal

from mlcls.errors import ConversionError, MissingExtraError

Library = Literal["tensorrt", "tensorrt_rtx"]

# The first version that deprecates weak typing.
MIN_TENSORRT: Final = (10, 12)

# The first TensorRT without weak typing.
_STRONG_TYPING_ONLY: Final = 11

# PyPI also has TensorRT's Python part alone, under another name, for images that already have the libraries.
_MODULES: Final[Mapping[Library, tuple[str, ...]]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx",),
}

# How many of the library's messages an error quotes.
_QUOTED_MESSAGES: Final = 3


def load_library(library: Library) -> ModuleType:
    """Import a library.

    Raises:
        MissingExtraError: It is not installed.
        ConversionError: It cannot be loaded, or is too old.
    """
    try:
        module = _import_first(_MODULES[library])
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


def _import_first(names: tuple[str, ...]) -> ModuleType:
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    return importlib.import_module(names[-1])


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version: `10.12.0.36` gives (10, 12, 0, 36)."""
    return tuple(int(number) for number in re.findall(r"\d+", text.split("+")[0]))


def make_logger(module: ModuleType) -> Any:
    """Return a logger that keeps warnings and errors in `messages` (severity, text) and prints nothing."""

    class KeepingLogger(module.ILogger):  # type: ignore[misc, name-defined]
        """See `make_logger`."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.messages: list[tuple[int, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(module.ILogger.Severity.WARNING):
                self.messages.append((int(severity), message))

    return KeepingLogger()


def quote_errors(module: ModuleType, logger: Any) -> str:
    """Return the library's last different error messages."""
    worst = int(module.ILogger.Severity.ERROR)
    errors = dict.fromkeys(" ".join(text.split()) for severity, text in logger.messages if severity <= worst)
    return " | ".join(list(errors)[-_QUOTED_MESSAGES:]) or "it gave no reason"


def make_builder(module: ModuleType, logger: Any) -> Any:
    """Return a builder.

    Raises:
        ConversionError: The library cannot make one; `tensorrt` needs a GPU, `tensorrt_rtx` does not.
    """
    try:
        builder = module.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11: "factory function returned nullptr"
        raise ConversionError(
            f"{module.__name__} {module.__version__} cannot start its builder: {quote_errors(module, logger)} "
            f"({error}). It needs an NVIDIA GPU and its driver: run this where the model will be served."
        ) from error
    return builder


def make_network(module: ModuleType, builder: Any) -> Any:
    """Return an empty strongly typed network.

    Without the flag, TensorRT 10 is weakly typed. TensorRT 11 and TensorRT-RTX know only strong typing; 11 accepts and
    ignores the flag ("Migrating from TensorRT 10.x to 11.x", docs.nvidia.com). A version without the flag needs none.
    """
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def is_strongly_typed(module: ModuleType, network: Any) -> bool:
    """Return whether a network keeps its graph's types; TensorRT 11 always does, whatever its flag says."""
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    always = module.__name__ != "tensorrt_rtx" and parse_version(module.__version__)[0] >= _STRONG_TYPING_ONLY
    return always or flag is None or bool(network.get_flag(flag))


def parse_onnx(module: ModuleType, network: Any, content: bytes, logger: Any) -> None:
    """Read an ONNX graph into a network.

    Raises:
        ConversionError: The parser rejects it; the text quotes the parser.
    """
    parser = module.OnnxParser(network, logger)
    if parser.parse(content):
        return
    reasons = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()}: " if error.node_operator() else ""
        reasons.append(f"{where}{' '.join(error.desc().split())}")
    text = " | ".join(reasons[:_QUOTED_MESSAGES]) or quote_errors(module, logger)
    raise ConversionError(f"The ONNX parser of {module.__name__} {module.__version__} rejects the graph: {text}")


def find_compute_capability(module: ModuleType, text: str) -> Any:
    """Return the library's value for an architecture that a user names: `7.5`, `75`, `sm75` or `SM75`.

    Raises:
        ConversionError: The library does not build for this architecture.
    """
    known = module.ComputeCapability.__members__
    digits = re.fullmatch(r"(?i)(?:sm_?)?(\d{1,2})\.?(\d)", text.strip())
    name = f"SM{digits[1]}{digits[2]}" if digits else ""
    if name not in known:
        named = sorted((each for each in known if each.startswith("SM")), key=lambda each: int(each[2:]))
        raise ConversionError(
            f"Expected a compute capability that {module.__name__} {module.__version__} builds for "
            f"({', '.join(f'{each[2:-1]}.{each[-1]}' for each in named)}), got {text!r}."
        )
    return known[name]


def format_compute_capability(capability: Any) -> str:
    """Return `7.5` for the library's `ComputeCapability.SM75`."""
    return f"{capability.name[2:-1]}.{capability.name[-1]}"
