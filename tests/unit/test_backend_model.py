"""What the backends share, with a stand-in for the module that exists inside Triton's stub process only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlcls.backend_model import answer_each, decode_texts, encode_texts, load_spec, verify_file
from mlcls.errors import ImageError, RepositoryError, SpecError, ThresholdError
from mlcls.model_spec import ModelSpec


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


def test_texts_go_through_a_tensor_and_back() -> None:
    texts = ["OK", "", "собака", "image: expected \\x00"]
    tensor = encode_texts(texts)
    assert (tensor.shape, tensor.dtype) == ((4, 1), np.dtype(object))
    assert decode_texts(tensor) == texts


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(RepositoryError, match="does not exist; import the model"):
        verify_file(path, "0" * 64)
    path.write_bytes(b"weights")
    verify_file(path, hashlib.sha256(b"weights").hexdigest())
    for digest in ("0" * 64, None):
        with pytest.raises(RepositoryError, match="is not the file that the spec beside it was written for"):
            verify_file(path, digest)


def test_the_spec_is_that_of_the_version_folder(tmp_path: Path, custom_spec: ModelSpec) -> None:
    arguments = {"model_repository": str(tmp_path), "model_version": "3"}
    with pytest.raises(SpecError, match="does not exist"):
        load_spec(arguments)
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "model_spec.json").write_text(custom_spec.to_json(), encoding="utf-8")
    assert load_spec(arguments) == custom_spec
