"""Run a TensorRT plan or a TensorRT-RTX engine on a GPU, for the gate."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlcls.engines.tensorrt.inspection import TensorInfo, describe_tensors, load_engine
from mlcls.engines.tensorrt.library import Library, load_library, make_logger, quote_errors
from mlcls.errors import ConversionError, MissingExtraError, ModelFormatError
from mlcls.model.contract import TENSORS
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec


class CudaDevice:
    """Memory and a stream of the current GPU, with NVIDIA's `cuda-bindings`."""

    def __init__(self) -> None:
        """Create a stream.

        Raises:
            MissingExtraError: cuda-bindings is not installed.
            ConversionError: CUDA cannot be used: no GPU, or no driver.
        """
        try:
            from cuda.bindings import runtime
        except ModuleNotFoundError as error:
            raise MissingExtraError("tensorrt", "cuda-bindings") from error
        self._runtime: Any = runtime
        self._stream = self._call(runtime.cudaStreamCreate)
        self._buffers: list[int] = []
        self._close = weakref.finalize(self, _release, runtime, self._stream, self._buffers)

    @property
    def stream(self) -> int:
        """The stream's handle for TensorRT."""
        return int(self._stream)

    def allocate(self, size_bytes: int) -> int:
        """Allocate memory on the GPU, freed with the device, and return its address."""
        self._buffers.append(int(self._call(self._runtime.cudaMalloc, size_bytes)))
        return self._buffers[-1]

    def copy_in(self, address: int, array: npt.NDArray[Any]) -> None:
        """Queue a copy of a contiguous array to the GPU; the array must live until `synchronize`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._runtime.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, self._stream)

    def copy_out(self, array: npt.NDArray[Any], address: int) -> None:
        """Queue a copy from the GPU to a contiguous array, which is filled after `synchronize`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._runtime.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, kind, self._stream)

    def synchronize(self) -> None:
        """Wait until the stream has done everything."""
        self._call(self._runtime.cudaStreamSynchronize, self._stream)

    def close(self) -> None:
        """Free the memory and the stream."""
        self._close()

    def _call(self, function: Any, *arguments: Any) -> Any:
        """Call a CUDA function and return its result.

        Raises:
            ConversionError: CUDA reports an error.
        """
        try:
            status, *results = function(*arguments)
        except RuntimeError as error:  # the driver's library is missing
            raise ConversionError(f"CUDA cannot be used: {error}") from error
        if status != self._runtime.cudaError_t.cudaSuccess:
            text = self._runtime.cudaGetErrorString(status)[1]
            words = text.decode() if isinstance(text, bytes) else str(text)
            raise ConversionError(f"CUDA cannot be used: {getattr(function, '__name__', function)}: {words}.")
        return results[0] if results else None


class TensorRtRunner:
    """Runs a plan on the current GPU; not thread-safe."""

    def __init__(
        self, plan: Path | bytes, spec: ModelSpec, library: Library = "tensorrt", device: CudaDevice | None = None
    ) -> None:
        """Load the plan and allocate memory for its largest batch.

        Args:
            plan: The file, or its content.
            spec: The model's spec.
            library: `tensorrt` or `tensorrt_rtx`, whichever built it.
            device: The GPU's memory; by default that of the current GPU.

        Raises:
            ConversionError: There is no GPU, or the library cannot load the plan.
            ModelFormatError: The plan's tensors are not those of the spec.
            MissingExtraError: The library or cuda-bindings is not installed.
        """
        self.name: str = library
        self._module = load_library(library)
        self._logger = make_logger(self._module)
        content = plan if isinstance(plan, bytes) else plan.read_bytes()
        self._device = device or CudaDevice()
        try:
            # the engine must outlive its context
            self._engine = load_engine(self._module, content, self._logger)
            pixels, logits = _check_tensors(describe_tensors(self._module, self._engine), spec)
            self._pixels, self._logits = pixels, logits
            self.max_batch_size = pixels.profile[-1][0]
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise ConversionError(f"{library} cannot run the engine: {quote_errors(self._module, self._logger)}")
            self._input_address = self._device.allocate(self.max_batch_size * int(np.prod(pixels.shape[1:])))
            self._output_address = self._device.allocate(self.max_batch_size * logits.shape[1] * 4)
            self._context.set_tensor_address(pixels.name, self._input_address)
            self._context.set_tensor_address(logits.name, self._output_address)
        except BaseException:
            self.close()
            raise

    def scores(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return scores (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB.

        Raises:
            ValueError: `pixels` has another type or shape, or more rows than the plan takes.
            ConversionError: The GPU fails.
        """
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self._pixels.shape[1:]:
            raise ValueError(
                f"pixels: expected uint8 (N, {', '.join(map(str, self._pixels.shape[1:]))}), got {pixels.dtype} "
                f"{pixels.shape}."
            )
        if not 1 <= len(pixels) <= self.max_batch_size:
            raise ValueError(f"pixels: expected 1 to {self.max_batch_size} rows, got {len(pixels)}.")
        source = np.ascontiguousarray(pixels)
        logits = np.empty((len(pixels), self._logits.shape[1]), np.float32)
        self._device.copy_in(self._input_address, source)
        if not self._context.set_input_shape(self._pixels.name, source.shape):
            raise ConversionError(f"{self.name} rejects a batch of {len(pixels)}: {self._explain()}")
        if not self._context.execute_async_v3(self._device.stream):
            raise ConversionError(f"{self.name} fails at a batch of {len(pixels)}: {self._explain()}")
        self._device.copy_out(logits, self._output_address)
        self._device.synchronize()
        return apply_sigmoid(logits)

    def close(self) -> None:
        """Free the GPU's memory."""
        self._context = None
        self._engine = None
        self._device.close()

    def __enter__(self) -> TensorRtRunner:
        """Return the runner itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the GPU's memory."""
        self.close()

    def _explain(self) -> str:
        return quote_errors(self._module, self._logger)


def _check_tensors(tensors: tuple[TensorInfo, ...], spec: ModelSpec) -> tuple[TensorInfo, TensorInfo]:
    """Compare the tensors with the spec and return the input and the output."""
    transform, names = spec.transform, TENSORS
    expected = [
        (names.logits, "output", "float32", (-1, spec.num_labels)),
        (names.pixels, "input", "uint8", (-1, transform.height, transform.width, 3)),
    ]
    found = sorted(tensors, key=lambda tensor: tensor.mode, reverse=True)
    if [(tensor.name, tensor.mode, tensor.data_type, tensor.shape) for tensor in found] != expected:
        raise ModelFormatError(
            f"Expected a plan of {expected}, got {tensors}; it belongs to another model, build this one's again."
        )
    return found[1], found[0]


def _release(runtime: Any, stream: Any, buffers: list[int]) -> None:
    for address in buffers:
        runtime.cudaFree(address)
    buffers.clear()
    runtime.cudaStreamDestroy(stream)
