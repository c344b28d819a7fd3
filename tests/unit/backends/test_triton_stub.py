"""What the backends share, with a stand-in for the module that exists inside Triton's stub process only."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from google.protobuf import json_format

from mlcls.backends.metric_sender import CounterGroup
from mlcls.backends.pulse import PULSE_FOLDER_VARIABLE
from mlcls.backends.triton_stub import RequestStep, StepArguments, decode_texts, encode_texts
from mlcls.errors import ImageError, RepositoryError, RequestError, ThresholdError
from mlcls.model.spec import ModelSpec
from mlcls.repository.manifest import EngineRecord
from mlcls.repository.models import Repository
from mlcls.repository.names import STEP_SUFFIXES
from mlcls.repository.publishing import add_model
from mlcls.repository.settings import Target
from mlcls.repository.staging import ConvertedVersion
from mlcls.repository.triton_config import ENGINE_TARGETS, ConfigBuilder
from support.fake_pb_utils import Error, FakePbUtils


@pytest.fixture
def pb_utils(monkeypatch: pytest.MonkeyPatch) -> FakePbUtils:
    fake = FakePbUtils()
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    return fake


class Counter(RequestStep):
    """A step whose requests are numbers, or errors to raise."""

    def prepare(self, arguments: StepArguments) -> list[CounterGroup]:
        self.group = CounterGroup("answers", "answers given", [{"version": arguments.version}])
        return [self.group]

    def answer(self, request: int | Exception) -> list[int]:
        if isinstance(request, Exception):
            raise request
        self.group.totals[0] += 1
        return [request]


@pytest.fixture
def step(pb_utils: FakePbUtils, imported: Path, custom_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Counter:
    monkeypatch.delenv(PULSE_FOLDER_VARIABLE, raising=False)
    step = Counter()
    step.initialize(arguments_for(imported, custom_spec, "_preprocess"))
    return step


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ImageError("bad image"), Error.INVALID_ARG),
        (ThresholdError("bad threshold"), Error.INVALID_ARG),
        (RequestError("bad shape"), Error.INVALID_ARG),
        (MemoryError("too large"), Error.INTERNAL),
        (ZeroDivisionError("a defect"), Error.INTERNAL),
        (CancelledError("the caller has left"), Error.CANCELLED),
    ],
)
def test_an_error_costs_its_own_request_alone(
    step: Counter, pb_utils: FakePbUtils, error: Exception, code: str
) -> None:
    responses = step.execute([0, error, 2])
    step.finalize()
    assert [response.tensors for response in responses] == [[0], None, [2]]
    assert [response.error is None for response in responses] == [True, False, True]
    assert responses[1].error.code == code
    assert str(error) in str(responses[1].error)
    assert len(pb_utils.log) == (code == Error.INTERNAL), "a defect is logged, a client's fault is not"


def test_a_text_that_is_not_utf_8_is_the_clients_fault(step: Counter, pb_utils: FakePbUtils) -> None:
    with pytest.raises(UnicodeDecodeError) as raised:
        decode_texts(np.array([[b"OK"], [b"a\xff\xfe"]], np.object_))
    (response,) = step.execute([raised.value])
    step.finalize()
    assert response.error.code == Error.INVALID_ARG
    assert str(response.error) == r"expected all texts of a request in UTF-8, got b'\xff'"
    assert not pb_utils.log


def test_a_step_knows_its_spec_and_sends_its_last_counts(
    step: Counter, pb_utils: FakePbUtils, custom_spec: ModelSpec
) -> None:
    assert step.spec == custom_spec
    step.execute([1, 2, 3])
    step.finalize()
    assert pb_utils.values == {("answers", "1"): 3}


def arguments_of(config: dict[str, Any]) -> StepArguments:
    return StepArguments("animals_engine", Path("1"), config)


@pytest.mark.parametrize("target", ["embedded", "int8"])
def test_the_engine_takes_the_file_that_its_configuration_names(custom_spec: ModelSpec, target: Target) -> None:
    config = json_format.MessageToJson(ConfigBuilder(custom_spec).engine(target), preserving_proto_field_name=True)
    assert arguments_of(json.loads(config)).engine_file() == ENGINE_TARGETS[target].model_file


@pytest.mark.parametrize("name", ["", "../2/model.onnx", "/etc/passwd", ".."])
def test_a_configuration_that_names_no_file_of_the_folder(name: str) -> None:
    with pytest.raises(RepositoryError, match="animals_engine: expected default_model_filename"):
        arguments_of({"default_model_filename": name}).engine_file()
    with pytest.raises(RepositoryError, match="expected default_model_filename"):
        arguments_of({}).engine_file()


def test_texts_go_through_a_tensor_and_back() -> None:
    texts = ["OK", "", "собака", "image: expected \\x00"]
    tensor = encode_texts(texts)
    assert (tensor.shape, tensor.dtype) == ((4, 1), np.dtype(object))
    assert decode_texts(tensor) == texts


def arguments_for(root: Path, spec: ModelSpec, suffix: str) -> dict[str, str]:
    """As Triton gives them to a step."""
    name = spec.name + suffix
    folder = {"model_repository": str(root / name), "model_version": "1"}
    return folder | {"model_name": name, "model_instance_name": f"{name}_0_0", "model_config": "{}"}


def load_spec(args: dict[str, str], *files: str) -> ModelSpec:
    return StepArguments.read(args).load_spec(*files)


def import_into(folder: Path, spec: ModelSpec) -> Path:
    """Return a repository with one model."""
    folder.mkdir()
    model = folder / "given.onnx"
    model.write_bytes(b"weights")
    record = EngineRecord("model.onnx", "fp32", {}, {})
    add_model(Repository(folder / "models"), ConvertedVersion(spec, model, record))
    return folder / "models"


@pytest.fixture
def imported(tmp_path: Path, custom_spec: ModelSpec) -> Path:
    return import_into(tmp_path / "given", custom_spec)


def edit_labels(imported: Path, suffix: str) -> None:
    """Exchange two labels in one step, by hand."""
    path = imported / f"animals-v2{suffix}" / "1" / "model_spec.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"cat"', '"cow"'), encoding="utf-8")


@pytest.mark.parametrize("suffix", STEP_SUFFIXES)
def test_the_spec_is_that_of_the_version_folder(imported: Path, custom_spec: ModelSpec, suffix: str) -> None:
    arguments = arguments_for(imported, custom_spec, suffix)
    assert load_spec(arguments) == custom_spec
    with pytest.raises(RepositoryError, match=r"2/manifest\.json does not exist"):
        load_spec({**arguments, "model_version": "2"})
    with pytest.raises(RepositoryError, match="expected the manifest of pets_preprocess, got that of animals-v2_"):
        load_spec({**arguments, "model_name": "pets_preprocess"})
    edit_labels(imported, suffix)
    with pytest.raises(RepositoryError, match=r"model_spec\.json is not the file that its manifest was written for"):
        load_spec(arguments)


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


def test_steps_of_different_imports_are_refused(imported: Path, tmp_path: Path, custom_spec: ModelSpec) -> None:
    """Each folder agrees with its own manifest; together they would name labels wrongly."""
    other = import_into(tmp_path / "other", msgspec.structs.replace(custom_spec, labels=("a", "b", "c")))
    shutil.rmtree(imported / "animals-v2_postprocess" / "1")
    shutil.copytree(other / "animals-v2_postprocess" / "1", imported / "animals-v2_postprocess" / "1")
    for suffix in STEP_SUFFIXES:
        with pytest.raises(RepositoryError, match="the folders come from different imports"):
            load_spec(arguments_for(imported, custom_spec, suffix))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, (0, "f32")),
        ({"other": {"string_value": "x"}}, (0, "f32")),
        ({"threads": {"string_value": "3"}, "precision": {"string_value": "bf16"}}, (3, "bf16")),
    ],
)
def test_parameters_of_an_engine(parameters: dict[str, Any], expected: tuple[int, str]) -> None:
    arguments = arguments_of({"parameters": parameters})
    assert (arguments.engine_threads(), arguments.engine_precision()) == expected


@pytest.mark.parametrize("wrong", [{"string_value": "fp8"}, {"string_value": ["f32"]}, {}, "bf16"])
def test_wrong_parameters_of_an_engine(wrong: object) -> None:
    with pytest.raises(RepositoryError, match="_engine: the parameter precision: expected one of f32, bf16"):
        arguments_of({"parameters": {"precision": wrong}}).engine_precision()
    with pytest.raises(RepositoryError, match="_engine: the parameter threads: expected a whole number, 0"):
        arguments_of({"parameters": {"threads": wrong}}).engine_threads()
