"""Real engines of small graphs by the real TensorRT-RTX builder, which needs no GPU."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import helper

from mlcls.base.machine import Gpu, read_gpus
from mlcls.engines.fp16.build import STATISTICS
from mlcls.engines.fp16.conversion import Protection, convert_to_fp16
from mlcls.engines.tensorrt import builder as tensorrt_build
from mlcls.engines.tensorrt import builder as tensorrt_progress
from mlcls.engines.tensorrt.builder import build_engine, show_progress, timing_cache_path
from mlcls.engines.tensorrt.inspection import TensorInfo, inspect_engine
from mlcls.engines.tensorrt.library import (
    find_compute_capability,
    is_strongly_typed,
    load_library,
    make_network,
    parse_version,
)
from mlcls.errors import ConversionError, MissingExtraError
from mlcls.repository.settings import MAX_BATCH_SIZE
from support.served_graphs import SPEC, make_attention, make_served


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return load_library("tensorrt_rtx")


@pytest.fixture(scope="module")
def fp16() -> bytes:
    content: bytes = convert_to_fp16(make_attention(), Protection("statistics", STATISTICS)).SerializeToString()
    return content


@pytest.mark.parametrize("capability", ["7.5", "sm86", "SM_89", "120"])
def test_an_engine_for_each_architecture(fp16: bytes, rtx: ModuleType, capability: str) -> None:
    built = build_engine(fp16, SPEC, "tensorrt_rtx", [capability])
    assert built.compute_capabilities == ({"7.5": "7.5", "sm86": "8.6", "SM_89": "8.9", "120": "12.0"}[capability],)
    assert (built.library, built.version) == ("tensorrt_rtx", rtx.__version__)
    assert len(built.plan) > 10_000
    assert built.build_s > 0


def test_the_network_is_what_the_graph_says(fp16: bytes) -> None:
    network = build_engine(fp16, SPEC, "tensorrt_rtx", ["7.5"]).network
    assert network.strongly_typed
    assert network.tensors == (
        TensorInfo("pixels", "input", "uint8", (-1, 16, 8, 3)),
        TensorInfo("logits", "output", "float32", (-1, 3)),
    )
    assert network.layers["CONVOLUTION"] == {"float16": 1}
    assert network.layers["MATRIX_MULTIPLY"] == {"float16": 6}
    assert network.layers["NORMALIZATION"] == {"float32": 1}
    assert network.layers["SOFTMAX"] == {"float32": 1}
    assert network.precisions["float16"] > network.precisions["float32"] > 2


def test_the_architecture_decides_what_can_be_built() -> None:
    single = make_attention().SerializeToString()
    build_engine(single, SPEC, "tensorrt_rtx", ["8.6"])
    with pytest.raises(ConversionError, match=r"cannot build the engine: .*FP32 GEMM is not supported") as caught:
        build_engine(single, SPEC, "tensorrt_rtx", ["7.5"])
    assert "Turing (SM75)" in str(caught.value)


def test_several_architectures_and_none(fp16: bytes) -> None:
    two = build_engine(fp16, SPEC, "tensorrt_rtx", ["7.5", "8.6", "SM75"])
    assert two.compute_capabilities == ("7.5", "8.6")
    assert build_engine(fp16, SPEC, "tensorrt_rtx").compute_capabilities == ()


def test_the_profile_is_the_one_that_triton_serves(fp16: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[Any] = []
    real = tensorrt_build._add_profile

    def spy(builder: Any, *arguments: Any) -> None:
        class Builder:
            def create_optimization_profile(self) -> Any:
                shapes.append(builder.create_optimization_profile())
                return shapes[-1]

        real(Builder(), *arguments)

    monkeypatch.setattr(tensorrt_build, "_add_profile", spy)
    build_engine(fp16, SPEC, "tensorrt_rtx", ["7.5"])
    (profile,) = shapes
    expected = [(batch, 16, 8, 3) for batch in (1, 8, MAX_BATCH_SIZE)]
    assert [tuple(shape) for shape in profile.get_shape("pixels")] == expected


def test_the_parser_is_quoted() -> None:
    model = make_served([("Mod", ["features", "features"], "mixed", {"fmod": 1})])
    model.graph.node[-4].op_type, model.graph.node[-4].domain = "NoSuchOperation", "nowhere"
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(ConversionError, match=r"^The ONNX parser of tensorrt_rtx .* rejects the graph: ") as caught:
        build_engine(model.SerializeToString(), SPEC, "tensorrt_rtx", ["7.5"])
    assert "NoSuchOperation" in str(caught.value)
    with pytest.raises(ConversionError, match=r"rejects the graph: |got \(\)"):  # the parser takes it for an empty one
        build_engine(b"this is no ONNX file", SPEC, "tensorrt_rtx", ["7.5"])


def test_another_models_graph_is_refused() -> None:
    model = make_served()
    model.graph.output[0].name = "scores"
    model.graph.node[-1].output[0] = "scores"
    onnx.checker.check_model(model)
    with pytest.raises(ConversionError, match=r"'logits', 'output', 'float32', .* the file belongs to another model"):
        build_engine(model.SerializeToString(), SPEC, "tensorrt_rtx", ["8.6"])


@pytest.mark.parametrize("text", ["9.0", "sm70", "T4", "", "7.5.1"])
def test_unknown_architectures(rtx: ModuleType, text: str) -> None:
    with pytest.raises(ConversionError, match=r"builds for \(7\.5, 8\.0, 8\.6, 8\.9, 12\.0.*got '"):
        find_compute_capability(rtx, text)


def test_tensorrt_takes_no_architecture_and_must_be_installed_and_new(
    fp16: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def with_version(version: str) -> None:
        (tmp_path / "tensorrt.py").write_text(f"__version__ = {version!r}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    with_version("10.11.0.33")
    with pytest.raises(ConversionError, match=r"Expected TensorRT 10\.12 or newer, got 10\.11\.0\.33"):
        build_engine(fp16, SPEC, "tensorrt")
    with_version("10.12.0.36")
    with pytest.raises(ConversionError, match=r"TensorRT builds for the GPU of this machine; .* got 7.5"):
        build_engine(fp16, SPEC, "tensorrt", ["7.5"])
    (tmp_path / "tensorrt.py").write_text("import ctypes\nctypes.CDLL('libnvinfer_of_nowhere.so')\n")
    monkeypatch.delitem(sys.modules, "tensorrt")
    with pytest.raises(ConversionError, match="tensorrt is installed but cannot be loaded: libnvinfer_of_nowhere"):
        build_engine(fp16, SPEC, "tensorrt")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (tmp_path / "tensorrt.py").write_text("raise ModuleNotFoundError('none', name='tensorrt')\n")
    with pytest.raises(MissingExtraError, match=r"extra 'tensorrt'"):
        build_engine(fp16, SPEC, "tensorrt")
    # NVIDIA's image with PyPI's bindings
    (tmp_path / "tensorrt_bindings.py").write_text("__version__ = '11.4.0.106'\n")
    assert load_library("tensorrt").__version__ == "11.4.0.106"
    monkeypatch.delitem(sys.modules, "tensorrt_bindings")


def test_typing_is_strong_with_and_without_the_flag() -> None:
    """TensorRT 10 needs the flag; a version without it is always strongly typed."""

    class Flags:
        STRONGLY_TYPED = 1

    class Builder:
        def create_network(self, flags: int) -> int:
            return flags

    class Network:
        def get_flag(self, flag: int) -> bool:
            return False

    class Module:
        __name__ = "tensorrt"
        __version__ = "10.13.2.6"
        NetworkDefinitionCreationFlag: type = Flags

    module: Any = Module()
    assert make_network(module, Builder()) == 2
    assert not is_strongly_typed(module, Network())
    module.__version__ = "11.4.0.106"
    assert is_strongly_typed(module, Network())
    module.__version__ = "10.13.2.6"
    module.NetworkDefinitionCreationFlag = object
    assert make_network(module, Builder()) == 0
    assert is_strongly_typed(module, Network())


def test_an_interrupted_build_ends_and_gives_nothing(
    fp16: bytes, rtx: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = type("Config", (), {})()
    before = signal.getsignal(signal.SIGINT)
    with show_progress(rtx, config) as monitor:
        assert config.progress_monitor is monitor
        assert monitor.step_complete("anything", 0) is True
        os.kill(os.getpid(), signal.SIGINT)
        assert monitor.interrupted
        assert monitor.step_complete("anything", 1) is False
    assert signal.getsignal(signal.SIGINT) is before

    make_monitor = tensorrt_progress._make_monitor

    def make_interrupted(module: ModuleType) -> Any:
        monitor = make_monitor(module)
        monitor.interrupted = True
        return monitor

    monkeypatch.setattr(tensorrt_progress, "_make_monitor", make_interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(fp16, SPEC, "tensorrt_rtx", ["7.5"])


def test_timings_are_kept_apart_by_version_and_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT-RTX has no timings, so this fakes TensorRT's configuration."""
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tensorrt_build, "read_gpus", lambda: (Gpu("Tesla T4", "7.5"),))

    class Cache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content + b"+"

    class Config:
        def __init__(self) -> None:
            self.caches: list[Cache] = []

        def create_timing_cache(self, content: bytes) -> Cache:
            return Cache(content)

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self.caches.append(cache)
            return cache.content != b"damaged"

        def get_timing_cache(self) -> Cache:
            return self.caches[-1]

    class Module:
        __name__ = "tensorrt"
        __version__ = "10.13.2.6"

    module: Any = Module()
    path = timing_cache_path(module, "Tesla T4")
    assert path == tmp_path / "cache" / "timing-10.13.2.6-Tesla_T4.cache"
    for expected in (b"+", b"++"):
        config = Config()
        with tensorrt_build._timing_cache(module, config):
            pass
        assert path.read_bytes() == expected
    path.write_bytes(b"damaged")
    config = Config()
    with tensorrt_build._timing_cache(module, config):
        pass
    assert [cache.content for cache in config.caches] == [b"damaged", b""]
    assert path.read_bytes() == b"+"
    with pytest.raises(RuntimeError), tensorrt_build._timing_cache(module, Config()):
        raise RuntimeError
    assert path.read_bytes() == b"+"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_inspection_needs_a_gpu_and_says_so(fp16: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tiny.engine"
    path.write_bytes(build_engine(fp16, SPEC, "tensorrt_rtx", ["7.5"]).plan)
    if read_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConversionError, match=r"^tensorrt_rtx .* cannot load the engine: .*CUDA driver"):
        inspect_engine(path, "tensorrt_rtx")


@pytest.mark.parametrize(("text", "expected"), [("10.12.0.36", (10, 12, 0, 36)), ("11.4.0+cuda13", (11, 4, 0))])
def test_versions(text: str, expected: tuple[int, ...]) -> None:
    assert parse_version(text) == expected
