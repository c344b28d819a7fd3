"""What FP16 cannot hold, or not precisely enough, stays in FP32 or is refused; nothing else stays."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto

from mlcls.engines import building
from mlcls.engines.building import BuildRequest
from mlcls.engines.fp16 import build as fp16_engine
from mlcls.engines.fp16.build import MAX_PHOTOS, build, sample_pixels
from mlcls.engines.fp16.conversion import convert_to_fp16, element_types
from mlcls.engines.fp16.sensitivity import MAX_FP16, find_sensitive, measure_nodes
from mlcls.engines.gate import LIMITS
from mlcls.errors import ConversionError, ParityError, RepositoryError
from mlcls.images.photos import photo_images
from mlcls.repository.manifest import EngineRecord, Manifest
from mlcls.repository.models import Repository
from mlcls.repository.publishing import add_model
from mlcls.repository.staging import ConvertedVersion
from support.onnx_graphs import run
from support.served_graphs import (
    SPEC,
    Steps,
    make_attention,
    make_cancelling,
    make_overflowing,
    make_pixels,
    make_served,
)

PIXELS = make_pixels(5)


def scalars(**values: float) -> dict[str, npt.NDArray[np.float32]]:
    return {name: np.array(value, np.float32) for name, value in values.items()}


def show_peaks(model: onnx.ModelProto) -> dict[str, float]:
    """The highest value of every tensor that is FP16, which ONNX Runtime computes in float32."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    tensors = [name for name, found in element_types(model).items() if found == TensorProto.FLOAT16]
    outputs = {name for node in model.graph.node for name in node.output}
    peaks = {}
    for name in outputs.intersection(tensors):
        shown.graph.node.append(onnx.helper.make_node("Cast", [name], ["shown"], to=TensorProto.DOUBLE))
        shown.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("shown", TensorProto.DOUBLE, None))
        peaks[name] = float(np.abs(run(shown, pixels=PIXELS)).max())
        del shown.graph.node[-1]
    return peaks


def test_nothing_is_sensitive_in_a_good_model() -> None:
    source = make_attention()
    before = source.SerializeToString()
    figures = measure_nodes(source, PIXELS)
    assert source.SerializeToString() == before
    assert set(figures) == {node.name for node in source.graph.node}
    assert find_sensitive(source, PIXELS) == frozenset()
    # one rounding of the inputs and one of the result
    assert 1e-5 < figures["n.query"].relative_error < 2e-3
    expected = max(np.abs(run(source, pixels=PIXELS[i : i + 1])).max() for i in range(5))
    assert figures["n.logits"].highest == pytest.approx(expected, rel=1e-5)


def test_what_overflows_stays_in_fp32() -> None:
    source = make_overflowing()
    assert measure_nodes(source, PIXELS)["n.squares"].relative_error == np.inf
    sensitive = find_sensitive(source, PIXELS)
    assert {"n.squares", "n.roots"} <= sensitive
    assert not sensitive & {"n.normalized", "n.features", "n.conv", "n.pooled", "n.logits"}


def test_numbers_near_the_end_of_the_range_before_they_overflow() -> None:
    steps: Steps = [
        ("Tanh", ["features"], "bounded"),
        ("Mul", ["bounded", "far"], "grown"),
        ("Relu", ["grown"], "positive"),
        ("Mul", ["positive", "back"], "mixed"),
    ]
    found = find_sensitive(make_served(steps, scalars(far=3e4, back=1 / 3e4)), PIXELS)
    assert {"n.grown", "n.positive", "n.mixed"} <= found
    assert "n.bounded" not in found


def test_constants_near_the_end_of_the_range() -> None:
    steps: Steps = [("Less", ["features", "bounds"], "mask"), ("Where", ["mask", "features", "zero"], "mixed")]
    found = find_sensitive(make_served(steps, scalars(bounds=1e6, zero=0)), PIXELS)
    assert found & {"n.mask", "n.mixed"} == {"n.mask"}
    # as attention masks have it
    source = make_served([("Max", ["features", "bounds"], "mixed")], scalars(bounds=-np.inf))
    assert find_sensitive(source, PIXELS) == frozenset()


def test_cancellation_keeps_the_operation_and_what_gives_its_inputs() -> None:
    source = make_cancelling(300.0)
    figures = measure_nodes(source, PIXELS)
    assert figures["n.mixed"].relative_error > 0.01
    assert figures["n.moved"].relative_error < 1e-3
    assert find_sensitive(source, PIXELS) == {"n.moved", "n.mixed"}


def make_product(weight: float = 1.0, grow: float = 1.0) -> onnx.ModelProto:
    weights = np.random.default_rng(3).normal(0, weight, (16, 16)).astype(np.float32)
    steps: Steps = [
        ("Mul", ["features", "grow"], "taken"),
        ("MatMul", ["taken", "w"], "given"),
        ("Mul", ["given", "small"], "mixed"),
    ]
    return make_served(steps, {"w": weights, **scalars(grow=grow, small=1e-4)})


@pytest.mark.parametrize(("weight", "grow"), [(3e4, 1.0), (1e-5, 1e6), (7e5, 1e-9)])
def test_a_product_beyond_fp16_is_refused(weight: float, grow: float) -> None:
    """Its result, its input, or its weights."""
    assert not find_sensitive(make_product(), PIXELS) & {"n.given"}
    with pytest.raises(ConversionError, match=r"range of 65504, got 1 that .*n\.given: .*Nothing was written; serve"):
        find_sensitive(make_product(weight, grow), PIXELS)


def make_request(folder: Path, source: onnx.ModelProto) -> BuildRequest:
    """A repository with the graph."""
    staged = folder / "model.onnx"
    onnx.save(source, str(staged))
    repository = Repository(folder / "model_repository")
    add_model(repository, ConvertedVersion(SPEC, staged, EngineRecord("model.onnx", "fp32", {}, {})))
    return BuildRequest(repository.active(SPEC.name))


def test_the_file_overflows_nowhere(tmp_path: Path) -> None:
    assert max(show_peaks(convert_to_fp16(make_overflowing())).values()) > MAX_FP16, "without the measurement it would"
    request = make_request(tmp_path, make_overflowing())
    lines = list(build(request))
    path = request.version.engine_folder / "model.fp16.onnx"
    assert lines[0] == f"{path}: 0.0 MB, 4 of 14 operations in FP32 (3 of them sensitive on the photos)"
    assert max(show_peaks(onnx.load(str(path))).values()) < MAX_FP16
    (report,) = Manifest.read(path.parent).engine(path.name).gate
    assert (report["candidate"], report["failures"]) == ("fp16 onnxruntime", [])
    assert lines[1].startswith("fp16 onnxruntime against onnxruntime on 8 images: highest difference")


def test_what_does_not_pass_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = make_request(tmp_path, make_product(3e4))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConversionError, match="Expected matrix products within FP16's range"):
        list(build(request))
    strict = dataclasses.replace(LIMITS["fp16"], max_difference=1e-9)
    monkeypatch.setattr(building, "LIMITS", {"fp16": strict})
    monkeypatch.setattr(fp16_engine, "find_sensitive", lambda model, pixels: frozenset())
    with pytest.raises(ParityError, match=r"^Expected fp16 onnxruntime to give .*serve this model in FP32"):
        list(build(request))
    assert sorted(tmp_path.rglob("*")) == before
    model = request.version.engine_folder / "model.onnx"
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(RepositoryError, match=rf"^{model} is not the file that its manifest was written for"):
        list(build(request))


def test_a_part_of_many_photos_is_measured(tmp_path: Path) -> None:
    image = photo_images((), 1)[0]
    for index in range(2 * MAX_PHOTOS + 1):
        (tmp_path / f"{index:03}.png").write_bytes(image)
    assert len(sample_pixels([tmp_path], SPEC.transform)) == 22
    assert len(sample_pixels([tmp_path / "000.png"], SPEC.transform)) == 1
    pixels = sample_pixels([], SPEC.transform)
    assert pixels.shape == (4, 16, 8, 3)
