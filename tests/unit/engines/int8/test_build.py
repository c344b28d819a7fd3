"""The INT8 engine of a small graph: what passes, what goes back to FP32, what is rejected."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from mlcls.engines.gate import Limits
from mlcls.engines.int8.build import MAX_CALIBRATION_PHOTOS, MIN_PHOTOS, Int8Build, _divide_photos, build_int8
from mlcls.engines.int8.quantization import check_quantized, quantize_graph, split_graph
from mlcls.engines.openvino import OpenVinoEngine, open_core
from mlcls.engines.runners import OnnxRuntimeRunner, OpenVinoRunner
from mlcls.errors import ConversionError, ImageError, ParityError
from support.int8_graphs import NUM_LABELS, make_pixels, make_served, spec_of

# Wide enough for whatever a small random network does in INT8.
WIDE = Limits(1.0, 1.0, 1e-2, 1.0, 1.0)

# Labels of the photos.
TARGETS = np.random.default_rng(3).random((60, NUM_LABELS)) < 0.4


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return [cv2.imencode(".png", image[:, :, ::-1])[1].tobytes() for image in make_pixels(len(TARGETS))]


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    onnx.save(make_served(spec_of()), str(path))
    return path


@pytest.fixture(scope="module")
def built(fp32: Path, photos: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Int8Build:
    """All of it in INT8."""
    return build_int8(fp32, spec_of(), photos, tmp_path_factory.mktemp("int8"), limits=WIDE, targets=TARGETS)


def test_everything_in_int8(fp32: Path, built: Int8Build) -> None:
    assert [path.name for path in built.staged.parent.iterdir()] == [built.staged.name] == ["model.int8.onnx"]
    assert (built.kept, built.int8_share) == ((), 1.0)
    assert (built.report.reference, built.report.candidate) == ("FP32 on OpenVINO", "INT8 on OpenVINO")
    assert 1e-4 < built.report.mean_difference < 0.2
    assert (built.report.images, built.calibration_photos) == (20, 40)
    assert built.report.map_drop is not None and abs(built.report.map_drop) < 0.2


def test_int8_runs_in_int8_though_the_rest_is_in_float32(fp32: Path, built: Int8Build) -> None:
    """The engine asks OpenVINO for f32, which only rules out bf16: quantized operations keep their integers."""
    assert "INT8" in open_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def precisions(path: Path) -> dict[str, str]:
        engine: Any = OpenVinoEngine(path, spec_of(), threads=2)
        nodes = engine._lone_request.get_compiled_model().get_runtime_model().get_ordered_ops()
        found = [(node.get_friendly_name(), node.get_rt_info()) for node in nodes]
        return {
            name: str(info["runtimePrecision"].astype(str))
            for name, info in found
            if info["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")
        }

    in_fp32, in_int8 = precisions(fp32), precisions(built.staged)
    assert set(in_fp32.values()) == {"f32"}
    assert len(in_int8) >= 6
    assert {precision for name, precision in in_int8.items() if name.startswith("convolve")} <= {"i8", "u8"}


def test_both_runtimes_run_it(fp32: Path, built: Int8Build) -> None:
    pixels = make_pixels(8, seed=1)
    expected = OpenVinoRunner(fp32, spec_of()).scores(pixels)
    for runner in (OpenVinoRunner(built.staged, spec_of()), OnnxRuntimeRunner(built.staged, spec_of())):
        assert np.abs(runner.scores(pixels) - expected).mean() < 2 * built.report.mean_difference, runner.name


def test_what_int8_hurts_goes_back_to_fp32(fp32: Path, photos: list[bytes], tmp_path: Path, built: Int8Build) -> None:
    tight = dataclasses.replace(WIDE, max_mean_difference=0.85 * built.report.mean_difference)
    built = build_int8(fp32, spec_of(), photos, tmp_path, limits=tight)
    assert built.kept
    assert 0.5 <= built.int8_share < 1
    assert built.report.mean_difference <= tight.max_mean_difference
    assert split_graph(onnx.load(str(fp32))).keys() >= set(built.kept)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(str(built.staged)).graph.node}


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (
            dataclasses.replace(WIDE, max_mean_difference=1e-7),
            r"mean difference .* up to 50% of the network kept in FP32 \(here: .*\)\. Nothing was written",
        ),
        (dataclasses.replace(WIDE, max_map_drop=-1.0), "mAP falls by"),
    ],
)
def test_what_cannot_pass_leaves_nothing(
    fp32: Path, photos: list[bytes], tmp_path: Path, limits: Limits, text: str
) -> None:
    with pytest.raises(ParityError, match=text):
        build_int8(fp32, spec_of(), photos, tmp_path, limits=limits, targets=TARGETS)
    assert list(tmp_path.iterdir()) == []


def test_photos_that_the_model_cannot_tell_apart(fp32: Path, photos: list[bytes], tmp_path: Path) -> None:
    path = fp32.with_name("dull.onnx")
    onnx.save(make_served(spec_of(), scale=1e-4), str(path))
    with pytest.raises(ParityError, match="answers swapped between them would pass"):
        build_int8(path, spec_of(), photos, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_few_photos_and_what_is_no_photo(fp32: Path, photos: list[bytes], tmp_path: Path) -> None:
    few = photos[: MIN_PHOTOS - 1]
    with pytest.raises(ImageError, match=rf"at least {MIN_PHOTOS} different photos .* got {len(few)}: .*--photos"):
        build_int8(fp32, spec_of(), few * 3, tmp_path)
    with pytest.raises(ImageError):
        build_int8(fp32, spec_of(), [*photos, b"no photo", b"nor this"], tmp_path)


@pytest.mark.parametrize("count", [MIN_PHOTOS, 500])
def test_the_gate_sees_other_photos_than_the_calibration(count: int) -> None:
    photos = [bytes([index % 251, index // 251]) for index in range(count)]
    for_calibration, for_gate = _divide_photos([*photos, *photos[:7]])
    assert sorted(for_calibration + for_gate) == list(range(count))
    assert 32 <= len(for_calibration) <= MAX_CALIBRATION_PHOTOS
    assert len(for_gate) >= 16


def test_nncf_fails_and_draws_nothing_and_its_graph_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_served(spec_of())
    with pytest.raises(ConversionError, match=r"NNCF .* cannot quantize the graph \(.*\); serve it in FP32"):
        quantize_graph(model, make_pixels(40)[:, :20])
    quantized = quantize_graph(model, make_pixels(40))
    assert capsys.readouterr().out == ""
    quantized.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ConversionError, match="Expected the INT8 graph to be"):
        check_quantized(quantized, model)
