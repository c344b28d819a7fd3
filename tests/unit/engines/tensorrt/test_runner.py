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
from mlcls.engines.fp16.conversion import convert_to_fp16
from mlcls.engines.tensorrt import runner as tensorrt_runner
from mlcls.engines.tensorrt.builder import build_engine
from mlcls.engines.tensorrt.runner import TensorRtRunner
from mlcls.errors import ConversionError, ModelFormatError
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec
from support.served_graphs import HEIGHT, LABELS, SPEC, WIDTH, make_attention, make_pixels

MAX_BATCH = 4
TENSORS = [("logits", False, "float32", (-1, len(LABELS))), ("pixels", True, "uint8", (-1, HEIGHT, WIDTH, 3))]


class PlayedGpu:
    """Memory of this process in place of a GPU's, and an engine that gives the mean of each channel as a logit.

    What is queued on the stream happens when it is synchronized.
    """

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.queue: list[Callable[[], object]] = []
        self.addresses: dict[str, int] = {}
        self.shapes: list[tuple[int, ...]] = []
        self.accepts = self.runs = self.has_room = True
        self.runtime = SimpleNamespace(
            cudaError_t=SimpleNamespace(cudaSuccess=0),
            cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out"),
            cudaGetErrorString=lambda status: (0, b"out of memory"),
            cudaStreamCreate=lambda: (0, 77),
            cudaStreamDestroy=lambda stream: (0,),
            cudaStreamSynchronize=lambda stream: ([self.queue.pop(0)() for _ in list(self.queue)], (0,))[1],
            cudaMalloc=self.allocate,
            cudaFree=self.memory.pop,
            cudaMemcpyAsync=self.copy,
        )
        shapes = [(batch, HEIGHT, WIDTH, 3) for batch in (1, 2, MAX_BATCH)]
        self.engine = SimpleNamespace(
            create_execution_context=lambda: self, get_tensor_profile_shape=lambda name, index: shapes
        )

    def allocate(self, size_bytes: int) -> tuple[int, int]:
        memory = ctypes.create_string_buffer(size_bytes)
        self.memory[ctypes.addressof(memory)] = memory
        return 0 if self.has_room else 2, ctypes.addressof(memory)

    def copy(self, target: int, source: int, size_bytes: int, kind: str, stream: int) -> tuple[int]:
        assert stream == 77
        assert size_bytes <= ctypes.sizeof(self.memory[target if kind == "in" else source])
        self.queue.append(lambda: ctypes.memmove(target, source, size_bytes))
        return (0,)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "pixels"
        self.shapes.append(shape)
        return self.accepts

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        shape = self.shapes[-1]

        def compute() -> None:
            pixels = np.frombuffer(self.memory[self.addresses["pixels"]], np.uint8)
            logits = np.frombuffer(self.memory[self.addresses["logits"]], np.float32)
            logits[: shape[0] * 3] = expected_logits(pixels[: int(np.prod(shape))].reshape(shape)).ravel()

        self.queue.append(compute)
        return self.runs


def expected_logits(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = ((pixels.mean((1, 2)) - 128) / 64).astype(np.float32)
    return logits


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PlayedGpu:
    gpu = PlayedGpu()
    monkeypatch.setattr(tensorrt_runner, "_import_cuda", lambda: gpu.runtime)
    monkeypatch.setattr(tensorrt_runner, "load_engine", lambda module, plan, logger: gpu.engine)
    monkeypatch.setattr(tensorrt_runner, "describe_engine", lambda module, engine: TENSORS)
    return gpu


def test_each_batch_gets_its_own_scores(gpu: PlayedGpu) -> None:
    pixels = make_pixels(MAX_BATCH)
    with TensorRtRunner(b"plan", SPEC, "tensorrt_rtx") as runner:
        assert runner.max_batch_size == MAX_BATCH
        for batch in (MAX_BATCH, 1, 3, 2):
            scores = runner.scores(pixels[:batch])
            assert scores.dtype == np.float32
            np.testing.assert_array_equal(scores, apply_sigmoid(expected_logits(pixels[:batch])))
        # mirrored pictures are views that are not contiguous
        np.testing.assert_array_equal(runner.scores(pixels[:, :, ::-1]), runner.scores(pixels[:, :, ::-1].copy()))
        assert gpu.shapes[:4] == [(batch, HEIGHT, WIDTH, 3) for batch in (4, 1, 3, 2)]
        sizes = sorted(ctypes.sizeof(memory) for memory in gpu.memory.values())
        assert sizes == [MAX_BATCH * 3 * 4, MAX_BATCH * HEIGHT * WIDTH * 3]
    assert not gpu.memory


def test_other_pixels_are_refused(gpu: PlayedGpu) -> None:
    runner = TensorRtRunner(b"plan", SPEC, "tensorrt_rtx")
    pixels = make_pixels(MAX_BATCH + 1)
    wrong: Any
    for wrong, got in (
        (pixels[:1].astype(np.float32), r"float32 \(1, 16, 8, 3\)"),
        (pixels[:1].transpose(0, 2, 1, 3), r"uint8 \(1, 8, 16, 3\)"),
        (pixels[:0], r"uint8 \(0, 16, 8, 3\)"),
        (pixels, r"uint8 \(5, 16, 8, 3\)"),
    ):
        with pytest.raises(ValueError, match=rf"expected uint8 \(16, 8, 3\) and 1 to 4 rows, got {got}"):
            runner.scores(wrong)
    assert not gpu.queue


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("accepts", "rejects a batch of 2"),
        ("runs", "fails at a batch of 2"),
        ("has_room", r"^CUDA cannot be used: cudaMalloc: out of memory\."),
    ],
)
def test_a_gpu_that_fails(gpu: PlayedGpu, fault: str, text: str) -> None:
    setattr(gpu, fault, False)
    with pytest.raises(ConversionError, match=text):
        TensorRtRunner(b"plan", SPEC, "tensorrt_rtx").scores(make_pixels(2))


def test_another_models_plan(gpu: PlayedGpu, custom_spec: ModelSpec) -> None:
    with pytest.raises(ModelFormatError, match="the file belongs to another model"):
        TensorRtRunner(b"plan", custom_spec, "tensorrt_rtx")
    assert not gpu.memory


@pytest.mark.skipif(bool(read_gpus()), reason="this machine has a GPU")
def test_without_a_gpu_cuda_and_tensorrt_are_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fp16 = convert_to_fp16(make_attention()).SerializeToString()
    path = tmp_path / "tiny.engine"
    path.write_bytes(build_engine(fp16, SPEC, "7.5").plan)
    with pytest.raises(ConversionError, match=r"^CUDA cannot be used: .*driver"):
        TensorRtRunner(path, SPEC, "tensorrt_rtx")
    monkeypatch.setattr(tensorrt_runner, "_import_cuda", lambda: PlayedGpu().runtime)
    with pytest.raises(ConversionError, match=r"^tensorrt_rtx .* cannot load the engine: .*CUDA driver"):
        TensorRtRunner(path, SPEC, "tensorrt_rtx")
