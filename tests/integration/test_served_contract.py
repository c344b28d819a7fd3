"""The served contract, asked of the real tritonserver over gRPC and HTTP."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from mlcls.engines.runners import OpenVinoRunner
from mlcls.images.transforms import preprocess
from mlcls.model.contract import NO_SCORE
from mlcls.model.metrics import smallest_spread
from mlcls.model.spec import ModelSpec
from mlcls.server.process import TritonServer
from support.served_models import SMALL_LABELS, SmallModels
from support.triton_request import ask, ask_outputs, make_input

MODEL = "small_with_sigmoid"
Protocol = Literal["grpc", "http"]


@pytest.fixture(scope="module")
def images(sample_images: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in sample_images]


@pytest.fixture(scope="module")
def expected_scores(small_models: SmallModels, images: list[bytes]) -> np.ndarray[Any, Any]:
    """Scores (20, 5) of the samples, by OpenVINO without Triton, one image at a time."""
    version = small_models.repository / f"{MODEL}_engine" / "1"
    spec = ModelSpec.read(version / "model_spec.json")
    runner = OpenVinoRunner(version / "model.onnx", spec)
    scores = np.concatenate([runner.scores(preprocess(image, spec.transform)[None]) for image in images])
    assert smallest_spread(scores) > 0.01, "the images' scores are so alike that swapped answers would pass"
    return scores


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_every_image_gets_its_own_scores(
    small_server: TritonServer,
    images: list[bytes],
    expected_scores: np.ndarray[Any, Any],
    batch_size: int,
    protocol: Protocol,
) -> None:
    for start in range(0, len(images), batch_size):
        answer = ask(small_server, MODEL, images[start : start + batch_size], protocol)
        np.testing.assert_allclose(answer.scores, expected_scores[start : start + batch_size], rtol=0, atol=2e-5)


def test_answers_are_not_crossed_when_requests_are_batched(
    small_server: TritonServer, images: list[bytes], expected_scores: np.ndarray[Any, Any]
) -> None:
    order = np.random.default_rng(0).integers(0, len(images), 300)
    thresholds = [0.2, 0.5, 0.8]

    def request(index: int) -> tuple[int, float, Any]:
        threshold = thresholds[index % 3]
        return index, threshold, ask(small_server, MODEL, [images[order[index]]], threshold=str(threshold))

    with ThreadPoolExecutor(16) as pool:
        for index, threshold, answer in pool.map(request, range(len(order))):
            scores = expected_scores[order[index]]
            np.testing.assert_allclose(answer.scores[0], scores, rtol=0, atol=2e-5)
            clear = np.abs(scores - threshold) > 1e-4
            predicted = np.isin(np.arange(len(scores)), answer.results[0]["class_ids"])
            np.testing.assert_array_equal(predicted[clear], (scores > threshold)[clear])


def check_result(scores: np.ndarray[Any, Any], result: dict[str, Any], limits: list[float]) -> None:
    """A result has the labels above their limits and their rounded scores, the highest first."""
    expected = sorted(np.flatnonzero(scores > np.array(limits, np.float32)), key=lambda index: -scores[index])
    assert result["class_ids"] == expected
    assert result["label_names"] == [SMALL_LABELS[index] for index in expected]
    assert result["scores"] == [round(float(scores[index]), 5) for index in expected]


def test_a_model_with_and_one_without_its_sigmoid_answer_the_same(
    small_server: TritonServer, images: list[bytes]
) -> None:
    with_sigmoid = ask(small_server, "small_with_sigmoid", images)
    with_logits = ask(small_server, "small_with_logits", images)
    np.testing.assert_allclose(with_logits.scores, with_sigmoid.scores, rtol=0, atol=1e-6)
    for answer in (with_sigmoid, with_logits):
        for scores, result in zip(answer.scores, answer.results, strict=True):
            check_result(scores, result, [0.5] * 5)
    assert float(np.ptp(with_sigmoid.scores)) > 0.05, "a second sigmoid would squeeze all scores together"
    assert with_sigmoid.scores.min() < 0.5, "scores of a second sigmoid are all above 0.5"


@pytest.mark.parametrize(
    ("threshold", "limits"),
    [
        (None, [0.5] * 5),
        (0, [0.0] * 5),
        (1, [1.0] * 5),
        ("0.3", [0.3] * 5),
        ('{"default": 0.9, "0": 0.1, "собака": 0.2}', [0.1, 0.9, 0.2, 0.9, 0.9]),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_thresholds(
    small_server: TritonServer, images: list[bytes], threshold: object, limits: list[float], protocol: Protocol
) -> None:
    parameters = {} if threshold is None else {"threshold": threshold}
    answer = ask(small_server, MODEL, images, protocol, **parameters)
    for scores, result in zip(answer.scores, answer.results, strict=True):
        check_result(scores, result, limits)


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        ("high", "expected JSON text of a number"),
        ('{"default": 0.5, "horse": 0.1}', "got the key 'horse'"),
        ("[0.1]", "expected a list of 5 numbers"),
        (True, "got True"),
    ],
)
def test_a_bad_threshold_is_an_invalid_argument(
    small_server: TritonServer, images: list[bytes], threshold: object, words: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        ask(small_server, MODEL, images[:1], threshold=threshold)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert words in caught.value.message()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_request_of_one_bad_image_is_an_invalid_argument(small_server: TritonServer, protocol: Protocol) -> None:
    for data, words in ((b"", "got 0 bytes"), (b"just a text\n", "got text (12 bytes"), (b"\xff\xd8\xff\xe0", "JPEG")):
        with pytest.raises(InferenceServerException) as caught:
            ask(small_server, MODEL, [data], protocol)
        assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
        assert words in caught.value.message()
        assert "expected" in caught.value.message()


def test_a_bad_image_costs_itself_alone(
    small_server: TritonServer, images: list[bytes], expected_scores: np.ndarray[Any, Any]
) -> None:
    batch = [*images[:3], b"no image", *images[3:7]]
    answer = ask(small_server, MODEL, batch)
    good = [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_allclose(answer.scores[good], expected_scores[:7], rtol=0, atol=2e-5)
    assert [answer.statuses[index] for index in good] == ["OK"] * 7
    assert (answer.scores[3] == NO_SCORE).all()
    assert "got text (8 bytes" in answer.statuses[3]
    assert answer.results[3] == {"error": answer.statuses[3]}
    words = "none of the 3 images can be decoded; the first: image: expected"
    with pytest.raises(InferenceServerException, match=words):
        ask(small_server, MODEL, [b"a", b"b", b""])


def test_scores_in_json_are_numbers_for_every_parser(small_server: TritonServer, images: list[bytes]) -> None:
    """RFC 8259 has no NaN; a strict parser would lose the good image too."""
    http = tritonclient.http
    body, header_length = http.InferenceServerClient.generate_request_body(
        [make_input([images[0], b"no image"], http)], [http.InferRequestedOutput("scores", binary_data=False)]
    )
    request = urllib.request.Request(f"http://{small_server.http_url}/v2/models/{MODEL}/infer", body)
    request.add_header("Inference-Header-Content-Length", str(header_length))
    with urllib.request.urlopen(request) as response:
        (scores,) = json.loads(response.read(), parse_constant=pytest.fail)["outputs"]
    assert scores["data"][5:] == [NO_SCORE] * 5
    assert min(scores["data"][:5]) >= 0


def test_any_output_can_be_asked_for_alone(small_server: TritonServer, images: list[bytes]) -> None:
    for output, width in (("scores", 5), ("result", 1), ("status", 1)):
        assert ask_outputs(small_server, MODEL, images[:2], [output])[output].shape == (2, width)


def test_the_classification_extension_answers_the_top_labels(small_server: TritonServer, images: list[bytes]) -> None:
    scores = ask_outputs(small_server, MODEL, images[:1], ["scores"])["scores"][0]
    top = ask_outputs(small_server, MODEL, images[:1], ["scores"], class_count=2)["scores"].ravel()
    expected = np.argsort(-scores)[:2]
    found = [item.decode().split(":", 2) for item in top]
    assert [int(index) for _, index, _ in found] == expected.tolist()
    assert [label for _, _, label in found] == [SMALL_LABELS[index] for index in expected]


def test_results_are_json_in_utf_8(small_server: TritonServer, images: list[bytes]) -> None:
    text = ask_outputs(small_server, MODEL, images[:1], ["result"], threshold="0")["result"].ravel()[0]
    assert "собака".encode() in text
    assert set(json.loads(text)["label_names"]) == set(SMALL_LABELS)
