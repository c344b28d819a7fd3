"""All edits together: the served graph computes what the Paddle graph does, from `pixels` to `logits`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from mlcls.conversion import to_onnx
from mlcls.conversion.onnx_edits import describe_interface
from mlcls.conversion.to_onnx import ExportedGraph
from mlcls.errors import ConversionError, ModelFormatError
from mlcls.images.transforms import normalize
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec
from support.onnx_graphs import list_operations, make_decoder, make_scorer, run

SIZE = (96, 64)
MAKERS = pytest.mark.parametrize("make", [make_scorer, make_decoder])


def export(monkeypatch: pytest.MonkeyPatch, source: onnx.ModelProto, spec: ModelSpec) -> ExportedGraph:
    """Exports a graph as if paddle2onnx had given it."""
    given: list[tuple[Path, Path]] = []

    def convert(graph: Path, parameters: Path) -> onnx.ModelProto:
        given.append((graph, parameters))
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return copy

    monkeypatch.setattr(to_onnx, "convert_paddle_graph", convert)
    exported = to_onnx.export_onnx(Path("inference.json"), Path("inference.pdiparams"), spec)
    assert given == [(Path("inference.json"), Path("inference.pdiparams"))]
    return exported


def make_pixels(count: int) -> npt.NDArray[np.uint8]:
    """Different pictures: flat colors under noise."""
    generator = np.random.default_rng(count)
    colors = generator.integers(0, 206, (count, 1, 1, 3))
    return (colors + generator.integers(0, 50, (count, *SIZE, 3))).astype(np.uint8)


@pytest.mark.parametrize(
    "endings", [("Identity", "Sigmoid"), ("Sigmoid", "Identity", "Cast"), (), ("Cast", "Identity")]
)
@MAKERS
def test_same_scores(
    monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec, make: Any, endings: tuple[str, ...]
) -> None:
    source = make(3, SIZE, endings)
    exported = export(monkeypatch, source, custom_spec)
    assert exported.source_activation == ("sigmoid" if "Sigmoid" in endings else "none")
    for batch in (1, 3, 5):
        pixels = make_pixels(batch)
        output = run(source, x=normalize(pixels, custom_spec.transform))
        expected = output if "Sigmoid" in endings else apply_sigmoid(output)
        logits = run(exported.model, pixels=pixels)
        assert logits.shape == (batch, 3)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(apply_sigmoid(logits), expected, rtol=0, atol=2e-6)
        if batch > 1:
            assert np.ptp(expected, axis=0).max() > 0.05


@MAKERS
def test_rows_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec, make: Any) -> None:
    model = export(monkeypatch, make(3, SIZE), custom_spec).model
    pixels = make_pixels(4)
    order = [2, 0, 3, 2, 1]
    expected = np.concatenate([run(model, pixels=pixels[row : row + 1]) for row in order])
    np.testing.assert_allclose(run(model, pixels=pixels[order]), expected, rtol=0, atol=1e-5)


@MAKERS
def test_form_of_served_graph(monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec, make: Any) -> None:
    exported = export(monkeypatch, make(3, SIZE), custom_spec)
    assert describe_interface(exported.model) == (
        ("pixels", "UINT8", ("batch", 96, 64, 3)),
        ("logits", "FLOAT", ("batch", 3)),
    )
    operations = set(list_operations(exported.model))
    assert not operations & {"Sigmoid", "Tile", "Shape", "Slice", "Identity"}
    assert {"Cast", "Mul", "Add", "Transpose", "Conv"} <= operations
    assert exported.model.producer_name == "mlcls"
    assert exported.untiled_queries is (make is make_decoder)
    onnx.checker.check_model(exported.model, full_check=True)


def test_projection_of_queries_is_folded(monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec) -> None:
    source = make_decoder(3, SIZE)
    served = export(monkeypatch, source, custom_spec).model
    assert list_operations(served).count("MatMul") == list_operations(source).count("MatMul") - 1


@MAKERS
def test_edits_do_not_need_the_simplifier(monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec, make: Any) -> None:
    """It may do some of them itself, in some versions and on some graphs."""
    monkeypatch.setattr(to_onnx, "_simplify", lambda model: model)
    source = make(3, SIZE)
    exported = export(monkeypatch, source, custom_spec)
    constants = {item.name: onnx.numpy_helper.to_array(item).tolist() for item in exported.model.graph.initializer}
    flatten = next(node for node in exported.model.graph.node if node.name.startswith("flatten."))
    assert constants[flatten.input[1]] == [0, -1]
    assert "Tile" not in list_operations(exported.model)
    for batch in (1, 3):
        pixels = make_pixels(batch)
        expected = run(source, x=normalize(pixels, custom_spec.transform))
        np.testing.assert_allclose(apply_sigmoid(run(exported.model, pixels=pixels)), expected, rtol=0, atol=2e-6)


# --- what cannot be served


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (make_scorer(3, SIZE, batch=1), "which is a free batch size"),
        (make_decoder(4, SIZE), r"one output, float32 \(N, 3\), .*; got .* FLOAT \('N', 4\)"),
        (make_scorer(3, SIZE, ("Softmax",)), "ends in Softmax"),
    ],
)
def test_graph_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec, source: onnx.ModelProto, words: str
) -> None:
    with pytest.raises(ModelFormatError, match=words):
        export(monkeypatch, source, custom_spec)


def test_name_that_is_taken(monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec) -> None:
    source = make_scorer(3, SIZE)
    for node in source.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == "features":
                    names[index] = "logits"
    with pytest.raises(ConversionError, match="Expected no tensor named 'logits' in the Paddle graph"):
        export(monkeypatch, source, custom_spec)


def test_input_with_the_name_of_the_new_one(monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec) -> None:
    source = make_scorer(3, SIZE, input_name="pixels")
    pixels = make_pixels(2)
    expected = run(source, pixels=normalize(pixels, custom_spec.transform))
    model = export(monkeypatch, source, custom_spec).model
    np.testing.assert_allclose(apply_sigmoid(run(model, pixels=pixels)), expected, rtol=0, atol=2e-6)


def test_output_with_the_right_name(monkeypatch: pytest.MonkeyPatch, custom_spec: ModelSpec) -> None:
    source = make_scorer(3, SIZE, ())
    source.graph.node[-1].output[0] = source.graph.output[0].name = "logits"
    assert export(monkeypatch, source, custom_spec).source_activation == "none"
