"""Build a strongly typed TensorRT plan, or TensorRT-RTX engines for named architectures, from the FP16 ONNX graph."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from mlcls.base.download import cache_dir
from mlcls.base.files import write_bytes
from mlcls.base.machine import read_gpus, read_tensorrt_version
from mlcls.engines.tensorrt.inspection import NetworkInfo, describe_network
from mlcls.engines.tensorrt.library import (
    Library,
    find_compute_capability,
    format_compute_capability,
    load_library,
    make_builder,
    make_logger,
    make_network,
    parse_onnx,
    quote_errors,
)
from mlcls.errors import ConversionError
from mlcls.model.contract import TENSORS
from mlcls.model.spec import ModelSpec
from mlcls.repository.settings import MAX_BATCH_SIZE

# The batch size that kernels are optimized for.
OPTIMAL_BATCH_SIZE: Final = 8


@dataclasses.dataclass(frozen=True)
class BuiltEngine:
    """The result of a build.

    Attributes:
        plan: The serialized engine.
        network: The network that it was built from.
        library: The package that built it.
        version: The package's version.
        compute_capabilities: The architectures that were named; empty if it was built for this machine's GPU.
        build_s: How long parsing and building took.
    """

    plan: bytes
    network: NetworkInfo
    library: Library
    version: str
    compute_capabilities: tuple[str, ...]
    build_s: float


def build_engine(
    onnx_model: bytes,
    spec: ModelSpec,
    library: Library = "tensorrt",
    compute_capabilities: Sequence[str] = (),
    max_batch_size: int = MAX_BATCH_SIZE,
) -> BuiltEngine:
    """Build one engine with one profile: batch 1 to `max_batch_size`, best at `OPTIMAL_BATCH_SIZE`.

    Args:
        onnx_model: An explicitly typed graph, see `mlcls.engines.fp16.conversion`.
        spec: The model's spec.
        library: `tensorrt` builds a plan for the GPU of this machine; `tensorrt_rtx` needs no GPU.
        compute_capabilities: Architectures such as `7.5` or `SM75`, only for `tensorrt_rtx`; by default all that its
            portable engines support (compute capability 8.0 and later).
        max_batch_size: The largest batch.

    Raises:
        ConversionError: The parser or the builder fails (the text quotes it), or an architecture is unknown.
        MissingExtraError: The library is not installed.
        KeyboardInterrupt: The build was interrupted; the library ends it at its next step.
    """
    module = load_library(library)
    if compute_capabilities and library != "tensorrt_rtx":
        raise ConversionError(
            "TensorRT builds for the GPU of this machine; expected no compute capability (or --engine tensorrt-rtx), "
            f"got {', '.join(compute_capabilities)}."
        )
    # `7.5` and `SM75` are the same
    targets = list(dict.fromkeys(find_compute_capability(module, text) for text in compute_capabilities))
    started = time.perf_counter()
    logger = make_logger(module)
    builder = make_builder(module, logger)
    network = make_network(module, builder)
    parse_onnx(module, network, onnx_model, logger)
    described = describe_network(module, network)
    _check_network(described, spec)
    config = builder.create_builder_config()
    # so that the inspector shows each layer's precision
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    if hasattr(module.BuilderFlag, "TF32"):
        config.clear_flag(module.BuilderFlag.TF32)  # FP32 in the graph must be FP32
    _add_profile(builder, config, spec, max_batch_size)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(target, index):
                raise ConversionError(f"{library} rejects the compute capability {target.name}.")
    with _timing_cache(module, config), show_progress(module, config) as monitor:
        plan = builder.build_serialized_network(network, config)
        if monitor.interrupted:
            raise KeyboardInterrupt
        if plan is None:
            raise ConversionError(
                f"{library} {module.__version__} cannot build the engine: {quote_errors(module, logger)}"
            )
    return BuiltEngine(
        bytes(plan),
        described,
        library,
        _library_version(module),
        tuple(map(format_compute_capability, targets)),
        time.perf_counter() - started,
    )


@contextlib.contextmanager
def show_progress(module: ModuleType, config: Any) -> Iterator[Any]:
    """Show the library's outermost phase, and end the build at its next step after Ctrl-C.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        config: The build's `IBuilderConfig`.

    Yields:
        The monitor; its `interrupted` tells whether Ctrl-C was pressed.
    """
    monitor = _make_monitor(module)
    config.progress_monitor = monitor
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, monitor.interrupt) if in_main_thread else None
    try:
        yield monitor
    finally:
        monitor.close()
        if in_main_thread:
            signal.signal(signal.SIGINT, previous)


def timing_cache_path(module: ModuleType, gpu_name: str) -> Path:
    """Return where a version's timings on a GPU are kept: `timing-10.13.2.6-Tesla_T4.cache` in the cache folder."""
    gpu = "".join(letter if letter.isalnum() else "_" for letter in gpu_name) or "gpu"
    return cache_dir() / f"timing-{module.__version__}-{gpu}.cache"


def _check_network(network: NetworkInfo, spec: ModelSpec) -> None:
    """Check that the network's inputs and outputs are those of Triton's configuration."""
    transform, names = spec.transform, TENSORS
    expected = (
        (names.pixels, "input", "uint8", (-1, transform.height, transform.width, 3)),
        (names.logits, "output", "float32", (-1, spec.num_labels)),
    )
    got = tuple((tensor.name, tensor.mode, tensor.data_type, tensor.shape) for tensor in network.tensors)
    if got != expected:
        raise ConversionError(f"Expected a graph of {expected}, got {got}; the file belongs to another model.")
    if not network.strongly_typed:
        raise ConversionError("Expected a strongly typed network, got one whose types TensorRT may change.")


def _add_profile(builder: Any, config: Any, spec: ModelSpec, max_batch_size: int) -> None:
    transform = spec.transform
    profile = builder.create_optimization_profile()
    batches = (1, min(OPTIMAL_BATCH_SIZE, max_batch_size), max_batch_size)
    profile.set_shape(TENSORS.pixels, *((batch, transform.height, transform.width, 3) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        raise ConversionError(f"TensorRT rejects the optimization profile of batches {batches}.")


def _library_version(module: ModuleType) -> str:
    """Return the version that a plan depends on: the shared library's; the Python package's may differ."""
    return (module.__name__ != "tensorrt_rtx" and read_tensorrt_version()) or str(module.__version__)


@contextlib.contextmanager
def _timing_cache(module: ModuleType, config: Any) -> Iterator[None]:
    """Give the build the timings of earlier builds, and keep new ones; TensorRT-RTX has none since 1.2."""
    if module.__name__ == "tensorrt_rtx":
        yield
        return
    gpus = read_gpus()
    path = timing_cache_path(module, gpus[0].name if gpus else "")
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        # a damaged file, or another driver's: start with an empty one
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    yield
    try:
        write_bytes(path, bytes(config.get_timing_cache().serialize()))
    except OSError as error:  # the plan is built; only the next build is not faster
        warnings.warn(f"The timing cache {path} cannot be written: {error.strerror}.", stacklevel=2)


def _make_monitor(module: ModuleType) -> Any:
    from tqdm import tqdm

    class Monitor(module.IProgressMonitor):  # type: ignore[misc, name-defined]
        """The library calls this from its own threads; an exception there would end the process."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._bar: Any = None
            self._outermost = ""
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                if self._bar is None:
                    self._outermost = phase_name
                    # on a terminal only
                    self._bar = tqdm(total=num_steps, desc="building", unit="step", leave=False, disable=None)
                else:
                    self._bar.set_postfix_str(phase_name[:40])

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if self._bar is not None and phase_name == self._outermost:
                    self._bar.update(max(0, step + 1 - self._bar.n))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outermost:
                self.close()

        def close(self) -> None:
            with self._lock:
                if self._bar is not None:
                    self._bar.close()

        def interrupt(self, _signum: int, _frame: object) -> None:
            self.interrupted = True

    return Monitor()
