"""The six served models answer what PaddleX answers: same model folder, same images, same scores, labels and order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.model.metrics import smallest_spread
from mlcls.server.process import TritonServer
from support.processes import start_server
from support.triton_request import ask

MAX_DIFFERENCE = 1e-4
MIN_SPREAD = 0.05


@pytest.fixture(scope="module")
def paddlex_answers(
    official_models: list[Path],
    sample_images: list[Path],
    ask_paddlex: Callable[..., dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """By model and image: the raw scores and the result of PaddleX's own predictor."""
    return ask_paddlex("predict", sample_images[0].parent, *official_models)


@pytest.fixture(scope="module")
def six_model_server(official_repository: Path) -> Iterator[TritonServer]:
    """One server with all six."""
    with start_server(official_repository, *OFFICIAL_MODELS) as server:
        yield server


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OFFICIAL_MODELS)
def test_the_ensemble_answers_what_paddlex_answers(
    name: str,
    paddlex_answers: dict[str, dict[str, Any]],
    six_model_server: TritonServer,
    sample_images: list[Path],
    record_property: Callable[[str, object], None],
) -> None:
    assert len(sample_images) == 20
    expected = [paddlex_answers[name][path.name] for path in sample_images]
    expected_scores = np.array([answer["scores"] for answer in expected])
    spread = smallest_spread(expected_scores)
    assert spread >= MIN_SPREAD, "the images' scores are so alike that swapped answers would pass"

    answers = [ask(six_model_server, name, [path.read_bytes()]) for path in sample_images]
    scores = np.concatenate([answer.scores for answer in answers])
    difference = float(np.abs(scores - expected_scores).max())
    near_ties = 0
    for path, answer, reference in zip(sample_images, answers, expected, strict=True):
        assert answer.statuses == ["OK"], path.name
        scores_of_paddlex = np.array(reference["scores"])
        near_ties += _count_near_ties(
            answer.results[0], reference["result"], scores_of_paddlex, 2 * difference, path.name
        )
    record_property("parity", (name, difference, spread, near_ties))
    assert difference <= MAX_DIFFERENCE


def test_six_models_in_one_server(
    six_model_server: TritonServer, sample_images: list[Path], record_property: Callable[[str, object], None]
) -> None:
    images = [sample_images[0].read_bytes()]
    results = {name: json.dumps(ask(six_model_server, name, images).results) for name in OFFICIAL_MODELS}
    assert len(set(results.values())) == len(OFFICIAL_MODELS), "two models gave the same answer"
    server = psutil.Process(six_model_server.pid)
    pss_bytes = sum(process.memory_full_info().pss for process in (server, *server.children(recursive=True)))
    record_property("memory_mb", pss_bytes / 1e6)


def _count_near_ties(
    result: dict[str, Any], reference: dict[str, Any], scores: np.ndarray[Any, Any], tie: float, image: str
) -> int:
    """Asserts the same labels in the same order; gives the number of labels that are elsewhere by a near tie.

    Rounding alone may decide between two labels whose scores PaddleX itself has within `tie` of one another, or about a
    score that close to the threshold.
    """
    ids, expected_ids = result["class_ids"], reference["class_ids"]
    assert result["label_names"] == [_label_of(reference, result, index) for index in range(len(ids))], image
    if ids == expected_ids:
        np.testing.assert_allclose(result["scores"], reference["scores"], rtol=0, atol=MAX_DIFFERENCE)
        return 0
    flipped = sorted(set(ids) ^ set(expected_ids))
    assert (np.abs(scores[flipped] - 0.5) <= tie).all(), f"{image}: {flipped} flip"
    assert (np.diff(scores[ids]) <= tie).all(), f"{image}: {ids} instead of {expected_ids}"
    return sum(one != other for one, other in zip(ids, expected_ids, strict=False))


def _label_of(reference: dict[str, Any], result: dict[str, Any], index: int) -> str:
    """PaddleX's label of a predicted class id; of one that PaddleX does not predict, the result's own."""
    names = dict(zip(reference["class_ids"], reference["label_names"], strict=True))
    return str(names.get(result["class_ids"][index], result["label_names"][index]))
