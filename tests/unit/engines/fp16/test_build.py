"""The least FP32 that passes the gate; more if less does not pass; an error that says what was tried."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from mlcls.engines.fp16.build import (
    ARITHMETIC,
    MAX_PHOTOS,
    STATISTICS,
    Fp16Build,
    Gate,
    RoundedFp16Runner,
    build_fp16,
    list_levels,
    sample_pixels,
)
from mlcls.engines.fp16.conversion import Protection, convert_to_fp16
from mlcls.engines.fp16.rounding import element_types
from mlcls.engines.fp16.sensitivity import measure_sensitivity
from mlcls.engines.gate import LIMITS, GateReport, Limits, run_gate
from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner, Runner
from mlcls.errors import ConversionError, ParityError
from mlcls.images.photos import photo_images
from support.served_graphs import SPEC, make_attention, make_cancelling, make_overflowing, make_pixels, make_served


def make_gate(path: Path, limits: Limits, seen: list[str] | None = None) -> Gate:
    """The gate, on real photos, against the FP32 graph."""
    reference = DecodingRunner(OnnxRuntimeRunner(path, SPEC, threads=1), SPEC)
    images = photo_images((), 8)

    def gate(candidate: Runner) -> GateReport:
        if seen is not None:
            seen.append(candidate.name)
        return run_gate(reference, DecodingRunner(candidate, SPEC), images, SPEC.thresholds, limits)

    return gate


def make(folder: Path, source: onnx.ModelProto, limits: Limits = LIMITS["fp16"]) -> Fp16Build:
    path = folder / "model.onnx"
    onnx.save(source, str(path))
    return build_fp16(path, SPEC, (), make_gate(path, limits))


def strict(max_difference: float) -> Limits:
    return dataclasses.replace(LIMITS["fp16"], max_difference=max_difference, max_flip_rate=1.0)


def test_the_least_level_is_enough_for_a_good_model(tmp_path: Path) -> None:
    built = make(tmp_path, make_attention())
    assert built.protection.name == "statistics"
    assert built.kept == 3  # LayerNormalization, Softmax, ReduceMean
    metadata = {entry.key: entry.value for entry in built.model.metadata_props}
    assert metadata == {"mlcls.fp32_level": "statistics", "mlcls.delicate_nodes": "0"}
    assert [report.candidate for report in built.reports] == ["fp16 rounded", "fp16 onnxruntime"]
    assert not any(report.failures or report.is_blind for report in built.reports)


def test_what_would_overflow_is_protected(tmp_path: Path) -> None:
    source = make_overflowing()
    built = make(tmp_path, source)
    assert "n.squares" in built.protection.nodes
    onnx.save(source, str(tmp_path / "model.onnx"))
    unprotected = RoundedFp16Runner(convert_to_fp16(source, Protection("norms", STATISTICS)), SPEC)
    with pytest.raises(ParityError, match="are not finite"):
        make_gate(tmp_path / "model.onnx", LIMITS["fp16"])(unprotected).require()


def test_a_level_that_fails_falls_back_to_more_fp32(tmp_path: Path) -> None:
    # an offset of 24 loses up to 8e-3, too little to count as sensitive
    source = make_cancelling(24.0)
    assert make(tmp_path, source).protection.name == "statistics"
    built = make(tmp_path, source, strict(3e-4))
    assert built.protection.name == "arithmetic"
    types = element_types(built.model)
    sums = [node for node in built.model.graph.node if node.op_type in ("Add", "Sub", "Mul")]
    assert len(sums) == 5
    assert {types[node.output[0]] for node in sums} == {onnx.TensorProto.FLOAT}
    assert built.reports[0].max_difference < 3e-4


def test_the_error_names_every_level_and_how_far_off_it_was(tmp_path: Path) -> None:
    with pytest.raises(ParityError) as caught:
        make(tmp_path, make_cancelling(24.0), strict(1e-7))
    text = str(caught.value)
    assert text.startswith("Expected an FP16 graph of tiny that gives the FP32 graph's answers, got none.")
    for level in ("statistics (1 of 12 operations in FP32)", "arithmetic (", "all but products ("):
        assert f"{level}" in text
    assert text.count("fp16 rounded: highest difference") == 3
    assert "(limit 1e-07)" in text
    assert "TensorRT-RTX has no FP32 ones for compute capability 7.5. Nothing was written; serve" in text


def test_a_product_beyond_fp16_is_refused_at_once(tmp_path: Path) -> None:
    weight = np.random.default_rng(3).normal(0, 3e4, (16, 16)).astype(np.float32)
    source = make_served(
        [("MatMul", ["features", "w"], "grown"), ("Mul", ["grown", "small"], "mixed")],
        {"w": weight, "small": np.array(1e-4, np.float32)},
    )
    with pytest.raises(
        ConversionError, match=r"^tiny cannot be served in FP16: 1 matrix products go beyond .*n\.grown"
    ):
        make(tmp_path, source)


def test_both_runs_must_pass(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(make_attention(), str(path))
    seen: list[str] = []
    real = make_gate(path, LIMITS["fp16"], seen)

    def gate(candidate: Runner) -> GateReport:
        report = real(candidate)
        return dataclasses.replace(report, faults=("planted",)) if candidate.name == "fp16 onnxruntime" else report

    with pytest.raises(ParityError, match="got none"):
        build_fp16(path, SPEC, (), gate)
    assert seen == ["fp16 rounded", "fp16 onnxruntime"] * 3


def test_sensitivity_is_measured_on_a_part_of_many_photos(tmp_path: Path) -> None:
    image = photo_images((), 1)[0]
    for index in range(2 * MAX_PHOTOS + 1):
        (tmp_path / f"{index:03}.png").write_bytes(image)
    assert len(sample_pixels([tmp_path], SPEC.transform)) == 22
    assert len(sample_pixels([tmp_path / "000.png"], SPEC.transform)) == 1
    pixels = sample_pixels([], SPEC.transform)
    assert pixels.shape == (4, 16, 8, 3)
    assert pixels.dtype == np.uint8


def test_levels_grow_and_never_name_a_product() -> None:
    source = make_attention()
    levels = list_levels(source, measure_sensitivity(source, make_pixels(2), threads=1))
    assert [level.name for level in levels] == ["statistics", "arithmetic", "all but products"]
    sizes = [sum(map(level.covers, source.graph.node)) for level in levels]
    assert sizes == sorted(set(sizes))
    assert not any(level.covers(node) for level in levels for node in source.graph.node if node.op_type == "MatMul")
    assert not STATISTICS & ARITHMETIC
