"""Build a strongly typed TensorRT plan, or TensorRT-RTX engines for named architectures, from the FP16 ONNX graph."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Final

from mlcls.base.download import cache_dir
from mlcls.base.files import write_bytes
from mlcls.base.machine import read_gpus, read_tensorrt_version
from mlcls.engines.tensorrt.library import (
    QUOTED_MESSAGES,
    Library,
    check_tensors,
    load_library,
    make_logger,
    name_type,
    quote_errors,
)
from mlcls.errors import ConversionError
from mlcls.model.contract import TENSORS
from mlcls.model.spec import ModelSpec
from mlcls.repository.settings import MAX_BATCH_SIZE

# Batch sizes of the profile: the smallest, the one that kernels are optimized for, the largest.
PROFILE_BATCHES: Final = (1, 8, MAX_BATCH_SIZE)


@dataclasses.dataclass(frozen=True)
class BuiltEngine:
    """The result of a build.

    Attributes:
        plan: The serialized engine.
        layers: Number of the network's layers of each kind by the type of their first result:
            `{"CONVOLUTION": {"float16": 34}}`.
        library: The package that built it.
        version: The package's version.
        compute_capability: The architecture that was named, like `7.5`; empty if it was built for this machine's GPU.
        build_s: How long parsing and building took.
    """

    plan: bytes
    layers: Mapping[str, Mapping[str, int]]
    library: Library
    version: str
    compute_capability: str
    build_s: float


def build_engine(onnx_model: bytes, spec: ModelSpec, compute_capability: str | None = None) -> BuiltEngine:
    """Build one engine with one profile of `PROFILE_BATCHES`.

    Args:
        onnx_model: An explicitly typed graph, see `mlcls.engines.fp16.conversion`.
        spec: The model's spec.
        compute_capability: Architecture such as `7.5` or `SM75`, to build a TensorRT-RTX engine for it, which needs no
            GPU; by default a TensorRT plan is built for the GPU of this machine.

    Raises:
        ConversionError: The parser or the builder fails (the text quotes it), or the architecture is unknown.
        ModelFormatError: The graph's inputs and outputs are not those of the spec.
        MissingExtraError: The library is not installed.
        KeyboardInterrupt: The build was interrupted; the library ends it at its next step.
    """
    library: Library = "tensorrt" if compute_capability is None else "tensorrt_rtx"
    module = load_library(library)
    target = None if compute_capability is None else find_compute_capability(module, compute_capability)
    started = time.perf_counter()
    logger = make_logger(module)
    builder = _make_builder(module, logger)
    network = make_network(module, builder)
    _parse_onnx(module, network, onnx_model, logger)
    ports = [(True, network.get_input(index)) for index in range(network.num_inputs)]
    ports += [(False, network.get_output(index)) for index in range(network.num_outputs)]
    check_tensors(
        [(port.name, is_input, name_type(module, port.dtype), tuple(port.shape)) for is_input, port in ports], spec
    )
    config = builder.create_builder_config()
    # so that the inspector shows each layer's precision
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if hasattr(module.BuilderFlag, "TF32"):
        config.clear_flag(module.BuilderFlag.TF32)  # FP32 in the graph must be FP32
    profile = builder.create_optimization_profile()
    shapes = [(batch, spec.transform.height, spec.transform.width, 3) for batch in PROFILE_BATCHES]
    profile.set_shape(TENSORS.pixels, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise ConversionError(f"{library} rejects the optimization profile {shapes}.")
    if target is not None:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(target, 0):
            raise ConversionError(f"{library} rejects the compute capability {target.name}.")
    with _timing_cache(module, config), show_progress(module, config) as monitor:
        plan = builder.build_serialized_network(network, config)
        if monitor.interrupted:
            raise KeyboardInterrupt
        if plan is None:
            raise ConversionError(f"{library} {module.__version__} cannot build the engine: {quote_errors(logger)}")
    # a plan depends on the shared library's version; the Python package's may differ
    version = (library == "tensorrt" and read_tensorrt_version()) or str(module.__version__)
    architecture = f"{target.name[2:-1]}.{target.name[-1]}" if target is not None else ""
    layers = _count_layers(module, network)
    return BuiltEngine(bytes(plan), layers, library, version, architecture, time.perf_counter() - started)


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


def make_network(module: ModuleType, builder: Any) -> Any:
    """Return an empty strongly typed network.

    Without the flag, TensorRT 10 is weakly typed. TensorRT 11 and TensorRT-RTX know only strong typing; 11 accepts and
    ignores the flag ("Migrating from TensorRT 10.x to 11.x", docs.nvidia.com). A version without the flag needs none.
    """
    flag = getattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


@contextlib.contextmanager
def show_progress(module: ModuleType, config: Any) -> Iterator[Any]:
    """Show the progress of the outermost phase of a build (`IBuilderConfig`), and end it after Ctrl-C.

    The monitor that it yields has `interrupted`: whether Ctrl-C was pressed.
    """
    from tqdm import tqdm

    lock = threading.Lock()

    class Monitor(module.IProgressMonitor):  # type: ignore[misc, name-defined]
        """The library calls this from its own threads; an exception there would end the process."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._outermost = ""

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            with lock:
                if self._outermost:
                    bar.set_postfix_str(phase_name[:40])
                else:
                    self._outermost = phase_name
                    bar.reset(num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                if phase_name == self._outermost:
                    bar.update(max(0, step + 1 - bar.n))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            pass

        def interrupt(self, _signum: int, _frame: object) -> None:
            self.interrupted = True

    monitor = config.progress_monitor = Monitor()
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, monitor.interrupt) if in_main_thread else None
    with tqdm(desc="building", unit="step", leave=False, disable=None) as bar:  # on a terminal only
        try:
            yield monitor
        finally:
            if in_main_thread:
                signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _timing_cache(module: ModuleType, config: Any) -> Iterator[None]:
    """Give the build the timings of earlier builds, and keep new ones; TensorRT-RTX has none since 1.2.

    Those of a version on a GPU are in the cache folder: `timing-10.13.2.6-Tesla_T4.cache`.
    """
    if module.__name__ == "tensorrt_rtx":
        yield
        return
    name = re.sub(r"\W", "_", next((gpu.name for gpu in read_gpus()), "gpu"))
    path = cache_dir() / f"timing-{module.__version__}-{name}.cache"
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        # a damaged file, or another driver's: start with an empty one
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    yield
    try:
        write_bytes(path, bytes(config.get_timing_cache().serialize()))
    except OSError as error:  # the plan is built; only the next build is not faster
        warnings.warn(f"The timing cache {path} cannot be written: {error.strerror}.", stacklevel=2)


def _make_builder(module: ModuleType, logger: Any) -> Any:
    try:
        return module.Builder(logger)
    except (TypeError, RuntimeError) as error:  # pybind11: "factory function returned nullptr"
        raise ConversionError(
            f"{module.__name__} {module.__version__} cannot start its builder: {quote_errors(logger)} ({error}). It "
            f"needs an NVIDIA GPU and its driver: run this where the model will be served."
        ) from error


def _parse_onnx(module: ModuleType, network: Any, content: bytes, logger: Any) -> None:
    parser = module.OnnxParser(network, logger)
    if parser.parse(content):
        return
    reasons = []
    for error in map(parser.get_error, range(min(parser.num_errors, QUOTED_MESSAGES))):
        where = f"{error.node_operator()} {error.node_name()}: " if error.node_operator() else ""
        reasons.append(f"{where}{' '.join(error.desc().split())}")
    raise ConversionError(
        f"The ONNX parser of {module.__name__} {module.__version__} rejects the graph: "
        f"{' | '.join(reasons) or quote_errors(logger)}"
    )


def _count_layers(module: ModuleType, network: Any) -> dict[str, dict[str, int]]:
    layers: dict[str, Counter[str]] = defaultdict(Counter)
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.num_outputs:
            layers[layer.type.name][name_type(module, layer.get_output(0).dtype)] += 1
    return {kind: dict(counts) for kind, counts in sorted(layers.items())}
