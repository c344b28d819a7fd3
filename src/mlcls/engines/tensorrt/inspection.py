"""Describe a network before the build and an engine after it: names, types, shapes, profile, precisions."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mlcls.engines.tensorrt.library import Library, is_strongly_typed, load_library, make_logger, quote_errors
from mlcls.errors import ConversionError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """An input or output.

    Attributes:
        name: Its name.
        mode: `input` or `output`.
        data_type: NumPy's name of the element type.
        shape: Its dimensions; -1 is free.
        profile: Smallest, optimal and largest shape of the one optimization profile; empty for an output.
    """

    name: str
    mode: str
    data_type: str
    shape: Shape
    profile: tuple[Shape, ...] = ()


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
    """A parsed network, before it is built.

    Attributes:
        tensors: Inputs, then outputs.
        strongly_typed: Whether the engine keeps the graph's types.
        layers: Number of layers of each kind by the type of their result: `{"CONVOLUTION": {"float16": 34}}`.
    """

    tensors: tuple[TensorInfo, ...]
    strongly_typed: bool
    layers: Mapping[str, Mapping[str, int]]

    @property
    def precisions(self) -> dict[str, int]:
        """Number of layers by the type of their first result."""
        total: Counter[str] = Counter()
        for counts in self.layers.values():
            total.update(counts)
        return dict(total)


@dataclasses.dataclass(frozen=True)
class EngineInfo:
    """A loaded engine.

    Attributes:
        tensors: Inputs and outputs.
        size_bytes: Size of the serialized engine.
        device_memory_bytes: Memory that one execution context needs on the GPU.
        layers: What the library's inspector says about each layer, in its own keys.
    """

    tensors: tuple[TensorInfo, ...]
    size_bytes: int
    device_memory_bytes: int
    layers: tuple[Mapping[str, Any], ...]


def describe_network(module: ModuleType, network: Any) -> NetworkInfo:
    """Describe a parsed network; the profile is not part of it but of the build's configuration."""
    tensors = [
        TensorInfo(tensor.name, mode, name_type(module, tensor.dtype), tuple(tensor.shape))
        for mode, count, get in (
            ("input", network.num_inputs, network.get_input),
            ("output", network.num_outputs, network.get_output),
        )
        for tensor in map(get, range(count))
    ]
    layers: dict[str, Counter[str]] = {}
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.num_outputs:
            layers.setdefault(layer.type.name, Counter())[name_type(module, layer.get_output(0).dtype)] += 1
    strongly_typed = is_strongly_typed(module, network)
    return NetworkInfo(tuple(tensors), strongly_typed, {kind: dict(counts) for kind, counts in sorted(layers.items())})


def load_engine(module: ModuleType, plan: bytes, logger: Any) -> Any:
    """Load a serialized engine onto the GPU.

    Raises:
        ConversionError: The library cannot load it: no GPU, another version or architecture, a damaged file.
    """
    try:
        engine = module.Runtime(logger).deserialize_cuda_engine(plan)
    except (RuntimeError, TypeError) as error:
        raise ConversionError(
            f"{module.__name__} {module.__version__} cannot load the engine: {quote_errors(module, logger)} ({error})"
        ) from error
    if engine is None:
        raise ConversionError(
            f"{module.__name__} {module.__version__} cannot load the engine: {quote_errors(module, logger)}"
        )
    return engine


def describe_tensors(module: ModuleType, engine: Any) -> tuple[TensorInfo, ...]:
    """Return the inputs and outputs of a loaded engine."""
    tensors = []
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        is_input = engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
        profile = tuple(map(tuple, engine.get_tensor_profile_shape(name, 0))) if is_input else ()
        data_type = name_type(module, engine.get_tensor_dtype(name))
        shape = tuple(engine.get_tensor_shape(name))
        tensors.append(TensorInfo(name, "input" if is_input else "output", data_type, shape, profile))
    return tuple(tensors)


def inspect_engine(path: Path, library: Library = "tensorrt") -> EngineInfo:
    """Load and describe an engine; needs a GPU that the engine was built for.

    Raises:
        ConversionError: The library cannot load it, because there is no GPU for example.
        MissingExtraError: The library is not installed.
    """
    module = load_library(library)
    logger = make_logger(module)
    plan = path.read_bytes()
    engine = load_engine(module, plan, logger)
    text = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    # without detailed verbosity at build time the inspector knows only names
    described = tuple(layer if isinstance(layer, dict) else {"Name": layer} for layer in layers)
    return EngineInfo(describe_tensors(module, engine), len(plan), int(engine.device_memory_size_v2), described)


def name_type(module: ModuleType, data_type: Any) -> str:
    """Return NumPy's name of a library's element type, or the library's name if NumPy has none."""
    import numpy as np

    try:
        return np.dtype(module.nptype(data_type)).name
    except TypeError:
        return str(data_type.name).lower()
