"""Run a TensorRT plan or a TensorRT-RTX engine on a GPU, for the gate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlcls.engines.tensorrt.library import (
    Library,
    check_tensors,
    describe_engine,
    load_engine,
    load_library,
    make_logger,
    quote_errors,
)
from mlcls.errors import ConversionError, MissingExtraError
from mlcls.model.contract import TENSORS
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec


class TensorRtRunner:
    """Runs a plan on the current GPU, with NVIDIA's `cuda-bindings`; not thread-safe."""

    def __init__(self, plan: Path | bytes, spec: ModelSpec, library: Library = "tensorrt") -> None:
        """Load the plan, a file or its content, and allocate memory for its largest batch.

        Raises:
            ConversionError: There is no GPU, or the library cannot load the plan.
            ModelFormatError: The plan's tensors are not those of the spec.
            MissingExtraError: The library or cuda-bindings is not installed.
        """
        self.name: str = library
        module = load_library(library)
        self._logger = make_logger(module)
        content = plan if isinstance(plan, bytes) else plan.read_bytes()
        self._image_shape = (spec.transform.height, spec.transform.width, 3)
        self._num_labels = spec.num_labels
        self._cuda = _import_cuda()
        self._stream = self._call("cudaStreamCreate")
        self._buffers: list[int] = []
        try:
            # the engine must outlive its context
            self._engine = load_engine(module, content, self._logger)
            check_tensors(describe_engine(module, self._engine), spec)
            self.max_batch_size: int = self._engine.get_tensor_profile_shape(TENSORS.pixels, 0)[-1][0]
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise ConversionError(f"{library} cannot run the engine: {quote_errors(self._logger)}")
            for name, row_bytes in (
                (TENSORS.pixels, math.prod(self._image_shape)),
                (TENSORS.logits, spec.num_labels * 4),
            ):
                self._buffers.append(int(self._call("cudaMalloc", self.max_batch_size * row_bytes)))
                self._context.set_tensor_address(name, self._buffers[-1])
        except BaseException:
            self.close()
            raise

    def scores(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return scores (N, num_labels) float32 of `pixels` (N, H, W, 3) uint8 RGB.

        Raises:
            ValueError: `pixels` has another type or shape, or more rows than the plan takes.
            ConversionError: The GPU fails.
        """
        count = len(pixels)
        shape = (count, *self._image_shape)
        if pixels.dtype != np.uint8 or pixels.shape != shape or not 1 <= count <= self.max_batch_size:
            raise ValueError(
                f"pixels: expected uint8 {self._image_shape} and 1 to {self.max_batch_size} rows, got {pixels.dtype} "
                f"{pixels.shape}."
            )
        source = np.ascontiguousarray(pixels)
        logits = np.empty((count, self._num_labels), np.float32)
        device_pixels, device_logits = self._buffers
        kinds = self._cuda.cudaMemcpyKind
        # both arrays live until the stream has done everything
        self._copy(device_pixels, source.ctypes.data, source.nbytes, kinds.cudaMemcpyHostToDevice)
        if not self._context.set_input_shape(TENSORS.pixels, shape):
            raise ConversionError(f"{self.name} rejects a batch of {count}: {quote_errors(self._logger)}")
        if not self._context.execute_async_v3(int(self._stream)):
            raise ConversionError(f"{self.name} fails at a batch of {count}: {quote_errors(self._logger)}")
        self._copy(logits.ctypes.data, device_logits, logits.nbytes, kinds.cudaMemcpyDeviceToHost)
        self._call("cudaStreamSynchronize", self._stream)
        return apply_sigmoid(logits)

    def close(self) -> None:
        """Free the GPU's memory."""
        self._context = self._engine = None
        while self._buffers:
            self._cuda.cudaFree(self._buffers.pop())
        self._cuda.cudaStreamDestroy(self._stream)

    def __enter__(self) -> TensorRtRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any) -> None:
        self._call("cudaMemcpyAsync", target, source, size_bytes, kind, self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            status, *results = getattr(self._cuda, name)(*arguments)
        except RuntimeError as error:  # the driver's library is missing
            raise ConversionError(f"CUDA cannot be used: {error}") from error
        if status != self._cuda.cudaError_t.cudaSuccess:
            text = self._cuda.cudaGetErrorString(status)[1]
            words = text.decode() if isinstance(text, bytes) else str(text)
            raise ConversionError(f"CUDA cannot be used: {name}: {words}.")
        return results[0] if results else None


def _import_cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ModuleNotFoundError as error:
        raise MissingExtraError("tensorrt", "cuda-bindings") from error
    return runtime
