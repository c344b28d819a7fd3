"""Real engines of small graphs by the real TensorRT-RTX builder, which needs no GPU."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import helper

from mlcls.base.machine import Gpu
from mlcls.engines.fp16.conversion import convert_to_fp16
from mlcls.engines.tensorrt import builder
from mlcls.engines.tensorrt.builder import build_engine, find_compute_capability, make_network, show_progress
from mlcls.engines.tensorrt.library import load_library
from mlcls.errors import ConversionError, MissingExtraError, ModelFormatError
from mlcls.repository.settings import MAX_BATCH_SIZE
from support.served_graphs import SPEC, make_attention, make_served


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return load_library("tensorrt_rtx")


@pytest.fixture(scope="module")
def fp16() -> bytes:
    content: bytes = convert_to_fp16(make_attention()).SerializeToString()
    return content


@pytest.mark.parametrize(("text", "capability"), [("7.5", "7.5"), ("SM_89", "8.9"), ("120", "12.0")])
def test_an_engine_for_each_architecture(fp16: bytes, rtx: ModuleType, text: str, capability: str) -> None:
    built = build_engine(fp16, SPEC, text)
    assert (built.library, built.version) == ("tensorrt_rtx", rtx.__version__)
    assert built.compute_capability == capability
    assert len(built.plan) > 10_000 and built.build_s > 0
    assert (built.layers["CONVOLUTION"], built.layers["MATRIX_MULTIPLY"]) == ({"float16": 1}, {"float16": 6})
    assert built.layers["NORMALIZATION"] == built.layers["SOFTMAX"] == {"float32": 1}


def test_the_architecture_decides_what_can_be_built() -> None:
    single = make_attention().SerializeToString()
    build_engine(single, SPEC, "8.6")
    with pytest.raises(ConversionError, match=r"cannot build the engine: .*FP32 GEMM is not supported") as caught:
        build_engine(single, SPEC, "7.5")
    assert "Turing (SM75)" in str(caught.value)


def test_the_profile_is_the_one_that_triton_serves(
    fp16: bytes, rtx: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles: list[Any] = []

    class SpiedBuilder(rtx.Builder):  # type: ignore[misc, name-defined]
        def create_optimization_profile(self) -> Any:
            profiles.append(super().create_optimization_profile())
            return profiles[-1]

    monkeypatch.setattr(rtx, "Builder", SpiedBuilder)
    build_engine(fp16, SPEC, "7.5")
    (profile,) = profiles
    expected = [(batch, 16, 8, 3) for batch in (1, 8, MAX_BATCH_SIZE)]
    assert [tuple(shape) for shape in profile.get_shape("pixels")] == expected


def test_the_parser_is_quoted() -> None:
    model = make_served([("Mod", ["features", "features"], "mixed", {"fmod": 1})])
    model.graph.node[-4].op_type, model.graph.node[-4].domain = "NoSuchOperation", "nowhere"
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(ConversionError, match=r"^The ONNX parser of tensorrt_rtx .* rejects the graph: ") as caught:
        build_engine(model.SerializeToString(), SPEC, "7.5")
    assert "NoSuchOperation" in str(caught.value)
    with pytest.raises((ConversionError, ModelFormatError), match=r"rejects the graph: |got \[\]"):  # an empty graph
        build_engine(b"this is no ONNX file", SPEC, "7.5")


def test_another_models_graph_is_refused() -> None:
    model = make_served()
    model.graph.output[0].name = "scores"
    model.graph.node[-1].output[0] = "scores"
    onnx.checker.check_model(model)
    with pytest.raises(ModelFormatError, match=r"'logits', False, 'float32', .* the file belongs to another model"):
        build_engine(model.SerializeToString(), SPEC, "8.6")


@pytest.mark.parametrize("text", ["sm70", "T4", "7.5.1"])
def test_unknown_architectures(rtx: ModuleType, text: str) -> None:
    with pytest.raises(ConversionError, match=r"builds for \(7\.5, 8\.0, 8\.6, 8\.9, 12\.0.*got '"):
        find_compute_capability(rtx, text)


def test_tensorrt_must_be_installed_and_new(fp16: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def with_version(version: str) -> None:
        (tmp_path / "tensorrt.py").write_text(f"__version__ = {version!r}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    with_version("10.11.0.33")
    with pytest.raises(ConversionError, match=r"Expected TensorRT 10\.12 or newer, got 10\.11\.0\.33"):
        build_engine(fp16, SPEC)
    with_version("10.12.0.36")
    assert load_library("tensorrt").__version__ == "10.12.0.36"
    (tmp_path / "tensorrt.py").write_text("import ctypes\nctypes.CDLL('libnvinfer_of_nowhere.so')\n")
    monkeypatch.delitem(sys.modules, "tensorrt")
    with pytest.raises(ConversionError, match="tensorrt is installed but cannot be loaded: libnvinfer_of_nowhere"):
        build_engine(fp16, SPEC)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    (tmp_path / "tensorrt.py").write_text("raise ModuleNotFoundError('none', name='tensorrt')\n")
    with pytest.raises(MissingExtraError, match=r"extra 'tensorrt'"):
        build_engine(fp16, SPEC)
    # NVIDIA's image with PyPI's bindings
    (tmp_path / "tensorrt.py").unlink()
    (tmp_path / "tensorrt_bindings.py").write_text("__version__ = '11.4.0.106'\n")
    assert load_library("tensorrt").__version__ == "11.4.0.106"
    monkeypatch.delitem(sys.modules, "tensorrt_bindings")


def test_typing_is_strong_with_and_without_the_flag() -> None:
    """TensorRT 10 needs the flag; a version without it is always strongly typed."""
    network_builder = SimpleNamespace(create_network=lambda flags: flags)
    for flags, expected in ((SimpleNamespace(STRONGLY_TYPED=1), 2), (SimpleNamespace(), 0)):
        module: Any = SimpleNamespace(NetworkDefinitionCreationFlag=flags)
        assert make_network(module, network_builder) == expected


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

    @contextlib.contextmanager
    def show_interrupted(module: ModuleType, config: Any) -> Iterator[Any]:
        with show_progress(module, config) as monitor:
            monitor.interrupted = True
            yield monitor

    monkeypatch.setattr(builder, "show_progress", show_interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_engine(fp16, SPEC, "7.5")


def test_timings_are_kept_apart_by_version_and_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT-RTX has no timings, so this fakes TensorRT's configuration."""
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(builder, "read_gpus", lambda: (Gpu("Tesla T4", "7.5"),))

    class Config:
        def __init__(self) -> None:
            self.caches: list[bytes] = []

        def create_timing_cache(self, content: bytes) -> bytes:
            return content

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            self.caches.append(cache)
            return cache != b"damaged"

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: self.caches[-1] + b"+")

    module: Any = SimpleNamespace(__name__="tensorrt", __version__="10.13.2.6")
    path = tmp_path / "cache" / "timing-10.13.2.6-Tesla_T4.cache"
    for expected in (b"+", b"++"):
        with builder._timing_cache(module, Config()):
            pass
        assert path.read_bytes() == expected
    path.write_bytes(b"damaged")
    config = Config()
    with builder._timing_cache(module, config):
        pass
    assert config.caches == [b"damaged", b""]
    with pytest.raises(RuntimeError), builder._timing_cache(module, Config()):
        raise RuntimeError
    assert path.read_bytes() == b"+"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
