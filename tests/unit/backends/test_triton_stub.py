"""What the backends share, with a stand-in for the module that exists inside Triton's stub process only."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from mlcls.backends.triton_stub import (
    answer_each,
    decode_texts,
    encode_texts,
    engine_file,
    engine_precision,
    engine_threads,
    load_spec,
)
from mlcls.errors import ImageError, RepositoryError, ThresholdError
from mlcls.model.spec import ModelSpec
from mlcls.repository.manifest import EngineRecord
from mlcls.repository.models import Repository
from mlcls.repository.names import STEP_SUFFIXES
from mlcls.repository.publishing import add_model
from mlcls.repository.settings import Target
from mlcls.repository.staging import ConvertedVersion
from mlcls.repository.triton_config import ENGINE_TARGETS, build_engine


class Error(Exception):
    """As `TritonError`: a text and a code."""

    INVALID_ARG = "invalid argument"
    INTERNAL = "internal"

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


class Response:
    def __init__(self, tensors: list[Any] | None = None, error: Error | None = None) -> None:
        self.tensors = tensors
        self.error = error


@pytest.fixture
def pb_utils() -> Any:
    log: list[str] = []
    return SimpleNamespace(
        InferenceResponse=Response, TritonError=Error, Logger=SimpleNamespace(log_error=log.append), log=log
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImageError("bad image"), Error.INVALID_ARG),
        (ThresholdError("bad threshold"), Error.INVALID_ARG),
        (MemoryError("too large"), Error.INTERNAL),
        (ZeroDivisionError("a defect"), Error.INTERNAL),
    ],
)
def test_an_error_costs_its_own_request_alone(pb_utils: Any, error: Exception, code: str) -> None:
    def answer(request: int) -> list[int]:
        if request == 1:
            raise error
        return [request]

    responses = answer_each([0, 1, 2], answer, pb_utils)
    assert [response.tensors for response in responses] == [[0], None, [2]]
    assert [response.error is None for response in responses] == [True, False, True]
    assert responses[1].error.code == code
    assert str(error) in str(responses[1].error)
    assert len(pb_utils.log) == (code == Error.INTERNAL), "a defect is logged, a client's fault is not"


@pytest.mark.parametrize("target", ["embedded", "int8"])
def test_the_engine_takes_the_file_that_its_configuration_names(custom_spec: ModelSpec, target: Target) -> None:
    config = json_format.MessageToJson(build_engine(custom_spec, target), preserving_proto_field_name=True)
    arguments = {"model_name": "animals-v2_engine", "model_config": config}
    assert engine_file(arguments) == ENGINE_TARGETS[target].model_file


@pytest.mark.parametrize("name", ["", "../2/model.onnx", "/etc/passwd", ".."])
def test_a_configuration_that_names_no_file_of_the_folder(name: str) -> None:
    arguments = {"model_name": "animals-v2_engine", "model_config": json.dumps({"default_model_filename": name})}
    with pytest.raises(RepositoryError, match="animals-v2_engine: expected default_model_filename"):
        engine_file(arguments)
    with pytest.raises(RepositoryError, match="expected default_model_filename"):
        engine_file({"model_name": "animals-v2_engine", "model_config": "{}"})


def test_texts_go_through_a_tensor_and_back() -> None:
    texts = ["OK", "", "собака", "image: expected \\x00"]
    tensor = encode_texts(texts)
    assert (tensor.shape, tensor.dtype) == ((4, 1), np.dtype(object))
    assert decode_texts(tensor) == texts


def arguments_for(root: Path, spec: ModelSpec, suffix: str) -> dict[str, str]:
    """As Triton gives them to a step."""
    name = spec.name + suffix
    return {"model_repository": str(root / name), "model_version": "1", "model_name": name}


@pytest.fixture
def imported(tmp_path: Path, custom_spec: ModelSpec) -> Path:
    """A repository with one model."""
    root = tmp_path / "models"
    model = tmp_path / "given.onnx"
    model.write_bytes(b"weights")
    add_model(Repository(root), ConvertedVersion(custom_spec, model, EngineRecord("model.onnx", "fp32", {}, {})))
    return root


@pytest.mark.parametrize("suffix", STEP_SUFFIXES)
def test_the_spec_is_that_of_the_version_folder(imported: Path, custom_spec: ModelSpec, suffix: str) -> None:
    arguments = arguments_for(imported, custom_spec, suffix)
    assert load_spec(arguments) == custom_spec
    with pytest.raises(RepositoryError, match=r"2/manifest\.json does not exist"):
        load_spec({**arguments, "model_version": "2"})


def test_a_changed_model_file_is_refused(imported: Path, custom_spec: ModelSpec) -> None:
    arguments = arguments_for(imported, custom_spec, "_engine")
    assert load_spec(arguments, "model.onnx") == custom_spec
    model = imported / "animals-v2_engine" / "1" / "model.onnx"
    model.write_bytes(b"WEIGHTS")
    with pytest.raises(RepositoryError, match=f"{model} is not the file that its manifest was written for"):
        load_spec(arguments, "model.onnx")
    model.unlink()
    with pytest.raises(RepositoryError, match=f"{model} does not exist, but its manifest has it"):
        load_spec(arguments, "model.onnx")


@pytest.mark.parametrize("suffix", STEP_SUFFIXES)
def test_labels_that_were_exchanged_are_refused(imported: Path, custom_spec: ModelSpec, suffix: str) -> None:
    """A list of labels edited by hand, in one step."""
    path = imported / f"animals-v2{suffix}" / "1" / "model_spec.json"
    labels = (custom_spec.labels[1], custom_spec.labels[0], *custom_spec.labels[2:])
    path.write_text(dataclasses.replace(custom_spec, labels=labels).to_json(), encoding="utf-8")
    with pytest.raises(RepositoryError, match=f"{path} is not the file that its manifest was written for"):
        load_spec(arguments_for(imported, custom_spec, suffix))


def test_a_folder_of_another_step_or_model_is_refused(imported: Path, custom_spec: ModelSpec) -> None:
    arguments = arguments_for(imported, custom_spec, "_preprocess")
    with pytest.raises(RepositoryError, match="expected the manifest of pets_preprocess, got that of animals-v2_prep"):
        load_spec({**arguments, "model_name": "pets_preprocess"})


def test_steps_of_different_imports_are_refused(imported: Path, tmp_path: Path, custom_spec: ModelSpec) -> None:
    """Each folder agrees with its own manifest; together they would name labels wrongly."""
    other = dataclasses.replace(custom_spec, labels=("a", "b", "c"))
    model = tmp_path / "other.onnx"
    model.write_bytes(b"others")
    add_model(
        Repository(tmp_path / "other"), ConvertedVersion(other, model, EngineRecord("model.onnx", "fp32", {}, {}))
    )
    shutil.rmtree(imported / "animals-v2_postprocess" / "1")
    shutil.copytree(tmp_path / "other" / "animals-v2_postprocess" / "1", imported / "animals-v2_postprocess" / "1")
    for suffix in STEP_SUFFIXES:
        with pytest.raises(RepositoryError, match="the folders come from different imports"):
            load_spec(arguments_for(imported, custom_spec, suffix))


def arguments_with(parameters: object) -> dict[str, str]:
    return {"model_name": "animals_engine", "model_config": json.dumps({"parameters": parameters})}


def test_parameters_of_an_engine() -> None:
    for nothing in ({}, {"other": {"string_value": "x"}}):
        assert (engine_threads(arguments_with(nothing)), engine_precision(arguments_with(nothing))) == (0, "f32")
    given = arguments_with({"threads": {"string_value": "3"}, "precision": {"string_value": "bf16"}})
    assert (engine_threads(given), engine_precision(given)) == (3, "bf16")


@pytest.mark.parametrize("wrong", [{"string_value": "fp8"}, {"string_value": ["f32"]}, {}, "bf16"])
def test_wrong_parameters_of_an_engine(wrong: object) -> None:
    with pytest.raises(
        RepositoryError, match="animals_engine: expected the parameter precision to be one of f32, bf16"
    ):
        engine_precision(arguments_with({"precision": wrong}))
    with pytest.raises(RepositoryError, match="animals_engine: expected the parameter threads to be a whole number"):
        engine_threads(arguments_with({"threads": wrong}))
