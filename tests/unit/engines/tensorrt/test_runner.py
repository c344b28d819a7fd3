"""The runner of TensorRT engines: for real as far as it goes without a GPU, then with a fake one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlcls.base.machine import read_gpus
from mlcls.engines.fp16.build import STATISTICS
from mlcls.engines.fp16.conversion import Protection, convert_to_fp16
from mlcls.engines.tensorrt import runner as tensorrt_runner
from mlcls.engines.tensorrt.builder import build_engine
from mlcls.engines.tensorrt.inspection import TensorInfo
from mlcls.engines.tensorrt.runner import CudaDevice, TensorRtRunner
from mlcls.errors import ConversionError, ModelFormatError
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec
from support.served_graphs import HEIGHT, LABELS, SPEC, WIDTH, make_attention, make_pixels

MAX_BATCH = 4
TENSORS = (
    TensorInfo("logits", "output", "float32", (-1, len(LABELS))),
    TensorInfo(
        "pixels",
        "input",
        "uint8",
        (-1, HEIGHT, WIDTH, 3),
        tuple((batch, HEIGHT, WIDTH, 3) for batch in (1, 2, MAX_BATCH)),
    ),
)


class PlayedDevice(CudaDevice):
    """Memory of this process in place of a GPU's; copies happen at `synchronize`, in order, as on a stream."""

    def __init__(self) -> None:
        self.allocations: dict[int, Any] = {}
        self.queue: list[Callable[[], object]] = []
        self.closed = False

    @property
    def stream(self) -> int:
        return 77

    def allocate(self, size_bytes: int) -> int:
        memory = ctypes.create_string_buffer(size_bytes)
        self.allocations[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def copy_in(self, address: int, array: npt.NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes <= ctypes.sizeof(self.allocations[address])
        self.queue.append(lambda: ctypes.memmove(address, array.ctypes.data, array.nbytes))

    def copy_out(self, array: npt.NDArray[Any], address: int) -> None:
        assert array.nbytes <= ctypes.sizeof(self.allocations[address])
        self.queue.append(lambda: ctypes.memmove(array.ctypes.data, address, array.nbytes))

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()

    def close(self) -> None:
        self.closed = True
        self.allocations.clear()


class PlayedContext:
    """An execution context whose engine gives the mean of each channel as that label's logit."""

    def __init__(self, device: PlayedDevice) -> None:
        self._device = device
        self._addresses: dict[str, int] = {}
        self.shapes: list[tuple[int, ...]] = []
        self.accepts = self.runs = True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "pixels"
        self.shapes.append(shape)
        return self.accepts

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        shape = self.shapes[-1]

        def compute() -> None:
            pixels = np.frombuffer(self._device.allocations[self._addresses["pixels"]], np.uint8)
            pixels = pixels[: int(np.prod(shape))].reshape(shape)
            logits = np.frombuffer(self._device.allocations[self._addresses["logits"]], np.float32)
            logits[: shape[0] * 3] = expected_logits(pixels).ravel()

        self._device.queue.append(compute)
        return self.runs


def expected_logits(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = ((pixels.mean((1, 2)) - 128) / 64).astype(np.float32)
    return logits


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> tuple[TensorRtRunner, PlayedDevice, PlayedContext]:
    device = PlayedDevice()
    context = PlayedContext(device)
    engine = SimpleNamespace(create_execution_context=lambda: context)
    monkeypatch.setattr(tensorrt_runner, "load_engine", lambda module, plan, logger: engine)
    monkeypatch.setattr(tensorrt_runner, "describe_tensors", lambda module, engine: TENSORS)
    return TensorRtRunner(b"plan", SPEC, "tensorrt_rtx", device), device, context


def test_each_batch_gets_its_own_scores(played: tuple[TensorRtRunner, PlayedDevice, PlayedContext]) -> None:
    runner, device, context = played
    pixels = make_pixels(MAX_BATCH)
    assert runner.max_batch_size == MAX_BATCH
    for batch in (MAX_BATCH, 1, 3, 2):
        scores = runner.scores(pixels[:batch])
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(scores, apply_sigmoid(expected_logits(pixels[:batch])))
    # mirrored pictures are views that are not contiguous
    np.testing.assert_array_equal(runner.scores(pixels[:, :, ::-1]), runner.scores(pixels[:, :, ::-1].copy()))
    assert context.shapes[:4] == [(batch, HEIGHT, WIDTH, 3) for batch in (4, 1, 3, 2)]
    sizes = sorted(ctypes.sizeof(memory) for memory in device.allocations.values())
    assert sizes == [MAX_BATCH * 3 * 4, MAX_BATCH * HEIGHT * WIDTH * 3]
    with runner:
        pass
    assert device.closed


def test_other_pixels_are_refused(played: tuple[TensorRtRunner, PlayedDevice, PlayedContext]) -> None:
    runner, device, _ = played
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 16, 8, 3\), got float32"):
        runner.scores(make_pixels(1).astype(np.float32))
    with pytest.raises(ValueError, match=r"got uint8 \(1, 8, 16, 3\)"):
        runner.scores(make_pixels(1).transpose(0, 2, 1, 3))
    for count in (0, MAX_BATCH + 1):
        with pytest.raises(ValueError, match=rf"expected 1 to 4 rows, got {count}"):
            runner.scores(make_pixels(MAX_BATCH + 1)[:count])
    assert not device.queue


@pytest.mark.parametrize(("fault", "text"), [("accepts", "rejects a batch of 2"), ("runs", "fails at a batch of 2")])
def test_a_gpu_that_fails(played: tuple[TensorRtRunner, PlayedDevice, PlayedContext], fault: str, text: str) -> None:
    runner, _, context = played
    setattr(context, fault, False)
    with pytest.raises(ConversionError, match=text):
        runner.scores(make_pixels(2))


def test_another_models_plan(monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec) -> None:
    device = PlayedDevice()
    monkeypatch.setattr(tensorrt_runner, "load_engine", lambda module, plan, logger: SimpleNamespace())
    monkeypatch.setattr(tensorrt_runner, "describe_tensors", lambda module, engine: TENSORS)
    with pytest.raises(ModelFormatError, match="it belongs to another model"):
        TensorRtRunner(b"plan", custom_spec, "tensorrt_rtx", device)
    assert device.closed


@pytest.mark.skipif(bool(read_gpus()), reason="this machine has a GPU")
def test_without_a_gpu_cuda_and_tensorrt_are_quoted(tmp_path: Path) -> None:
    fp16 = convert_to_fp16(make_attention(), Protection("statistics", STATISTICS)).SerializeToString()
    path = tmp_path / "tiny.engine"
    path.write_bytes(build_engine(fp16, SPEC, "tensorrt_rtx", ["7.5"]).plan)
    with pytest.raises(ConversionError, match=r"^CUDA cannot be used: .*driver"):
        TensorRtRunner(path, SPEC, "tensorrt_rtx")
    with pytest.raises(ConversionError, match=r"^tensorrt_rtx .* cannot load the engine: .*CUDA driver"):
        TensorRtRunner(path, SPEC, "tensorrt_rtx", PlayedDevice())
