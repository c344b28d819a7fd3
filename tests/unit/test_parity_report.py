"""`compare_runners` finds what can go wrong in a conversion, planted here into fake runners."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from mlcls.errors import ConversionError, ParityError
from mlcls.parity import MAX_DIFFERENCE, ParityReport, compare_runners
from mlcls.postprocess import apply_sigmoid

Scores = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Edit = Callable[[Scores], Scores]

#: Ten images whose scores differ by far more than the limit.
PIXELS: Pixels = np.random.default_rng(11).integers(0, 256, (10, 4, 6, 3), dtype=np.uint8)
THRESHOLDS = (0.5, 0.3, 0.6)


class FakeRunner:
    """Scores that depend on the picture, with an edit planted into each batch; notes the batch sizes."""

    def __init__(self, name: str, edit: Edit = lambda scores: scores) -> None:
        self.name = name
        self.batch_sizes: list[int] = []
        self._edit = edit

    def scores(self, pixels: Pixels) -> Scores:
        self.batch_sizes.append(len(pixels))
        features = pixels.reshape(len(pixels), -1).astype(np.float64) / 255 - 0.5
        mixing = np.random.default_rng(5).normal(size=(features.shape[1], 3))
        return self._edit(apply_sigmoid((features @ mixing).astype(np.float32)))


def compare(edit: Edit, **options: tuple[int, ...]) -> ParityReport:
    return compare_runners(FakeRunner("paddle"), FakeRunner("other", edit), PIXELS, THRESHOLDS, **options)


def fails(report: ParityReport) -> bool:
    try:
        report.require()
    except ParityError:
        return True
    return False


def test_images_differ() -> None:
    """Otherwise rows could be swapped without a difference."""
    scores = FakeRunner("paddle").scores(PIXELS)
    for index in range(len(scores)):
        others = np.delete(scores, index, axis=0)
        assert np.abs(others - scores[index]).max(axis=1).min() > 0.05


def test_equal_runners() -> None:
    report = compare(lambda scores: scores)
    assert report == ParityReport("paddle", "other", 10, 0.0, 0.0, 0, report.spread)
    report.require()


def test_batches() -> None:
    reference, candidate = FakeRunner("paddle"), FakeRunner("other")
    compare_runners(reference, candidate, PIXELS, THRESHOLDS)
    assert reference.batch_sizes == [1] * 10
    assert candidate.batch_sizes == [1] * 10 + [4, 4, 2]


def test_batch_sizes_are_those_that_are_asked_for() -> None:
    candidate = FakeRunner("other")
    compare_runners(FakeRunner("paddle"), candidate, PIXELS, THRESHOLDS, batch_sizes=(3, 10, 32))
    assert candidate.batch_sizes == [3, 3, 3, 1, 10, 10]


def swap_rows(scores: Scores) -> Scores:
    return scores[[1, 0, *range(2, len(scores))]] if len(scores) > 1 else scores


def only_at_batch(size: int, edit: Edit) -> Edit:
    return lambda scores: edit(scores) if len(scores) == size else scores


def set_one(value: float) -> Edit:
    def edit(scores: Scores) -> Scores:
        scores = scores.copy()
        scores[-1, 1] = value
        return scores

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        swap_rows,
        only_at_batch(4, swap_rows),
        only_at_batch(4, lambda scores: scores[::-1]),
        lambda scores: np.repeat(scores[:1], len(scores), axis=0),
        apply_sigmoid,
        lambda scores: scores + np.float32(2e-4),
        lambda scores: scores - np.float32(2e-4),
        only_at_batch(4, lambda scores: scores + np.float32(2e-4)),
        only_at_batch(1, lambda scores: scores + np.float32(2e-4)),
        only_at_batch(2, lambda scores: scores + np.float32(2e-4)),
        set_one(float("nan")),
        only_at_batch(4, set_one(float("nan"))),
        set_one(float("inf")),
        lambda scores: scores[:, ::-1],
        lambda scores: np.zeros_like(scores),
        lambda scores: np.full_like(scores, np.nan),
        lambda scores: 1 - scores,
    ],
    ids=[
        *("two rows swapped", "two rows swapped at batch 4", "batch 4 turned round", "first row for all"),
        *("second sigmoid", "too high", "too low", "only at batch 4", "only at batch 1", "only in the rest"),
        *("one NaN", "one NaN at batch 4", "one infinity", "labels turned round", "all zero", "all NaN", "complement"),
    ],
)
def test_planted_fault(edit: Edit) -> None:
    report = compare(edit)
    assert not report.max_difference <= MAX_DIFFERENCE
    assert fails(report)


def test_difference_is_measured() -> None:
    def edit(scores: Scores) -> Scores:
        scores = scores.copy()
        scores[:, 2] += np.float32(0.25)
        return scores

    report = compare(edit)
    assert report.max_difference == pytest.approx(0.25, abs=1e-6)
    assert report.mean_difference == pytest.approx(0.25 / 3, abs=1e-6)


@pytest.mark.parametrize(("offset", "passes"), [(5e-5, True), (9e-5, True), (1.2e-4, False), (-9e-5, True)])
def test_limit(offset: float, passes: bool) -> None:
    report = compare(lambda scores: (scores.astype(np.float64) + offset).astype(np.float32))
    assert report.max_difference == pytest.approx(abs(offset), rel=0.01)
    assert report.flips == 0
    assert fails(report) is not passes


def test_nan_alone_is_a_fault() -> None:
    """Where no label flips either: NaN is above no threshold."""
    report = ParityReport("paddle", "other", 8, float("nan"), float("nan"), 0, 0.5)
    with pytest.raises(ParityError, match="highest difference nan"):
        report.require()
    reference = FakeRunner("paddle", lambda scores: np.full_like(scores, 0.1))
    candidate = FakeRunner("other", lambda scores: np.full_like(scores, np.nan))
    assert fails(compare_runners(reference, candidate, PIXELS, THRESHOLDS))


def test_limit_of_the_caller() -> None:
    report = compare(lambda scores: scores + np.float32(2e-4))
    report.require(max_difference=1e-3)
    with pytest.raises(ParityError, match="within 1e-05 "):
        compare(lambda scores: scores + np.float32(2e-5)).require(max_difference=1e-5)


@pytest.mark.parametrize("batch_sizes", [(1, 4), (1,), (4,)])
def test_flip_at_the_threshold(batch_sizes: tuple[int, ...]) -> None:
    """One score at its threshold, one step of float32 above it for the other: another label for the user."""
    reference = FakeRunner("paddle", lambda scores: np.full_like(scores, 0.5))
    above = np.nextafter(np.float32(0.5), np.float32(1))
    candidate = FakeRunner("other", lambda scores: np.full_like(scores, above))
    report = compare_runners(reference, candidate, PIXELS, (0.5, 0.4, 0.6), batch_sizes)
    assert report.max_difference < 1e-7
    assert report.flips == 10
    assert fails(report)
    report = compare_runners(candidate, reference, PIXELS, (0.5, 0.4, 0.6), batch_sizes)
    assert report.flips == 10


def test_thresholds_are_float32() -> None:
    """As in postprocess: a score of 0.3 as float32 is above 0.3 as float64, but not above the threshold 0.3."""
    score = np.float32(0.3)
    reference = FakeRunner("paddle", lambda scores: np.full_like(scores, score))
    below = np.nextafter(score, np.float32(0))
    candidate = FakeRunner("other", lambda scores: np.full_like(scores, below))
    assert float(below) < 0.3 < float(score)
    report = compare_runners(reference, candidate, PIXELS, (0.3, 0.3, 0.3))
    assert report.flips == 0
    report.require()


def test_flips_of_the_worst_batch_size() -> None:
    report = compare(only_at_batch(4, lambda scores: 1 - scores))
    assert report.flips > 0
    assert report.flips == compare(only_at_batch(4, lambda scores: 1 - scores), batch_sizes=(4,)).flips


def test_text_of_report() -> None:
    report = ParityReport("paddle", "onnxruntime", 8, 1.2e-5, 3e-7, 2, 0.5)
    assert str(report) == (
        "onnxruntime against paddle on 8 images: highest difference 1.2e-05, mean 3.0e-07, 2 flipped labels"
    )
    with pytest.raises(ParityError) as caught:
        report.require()
    assert str(report) in str(caught.value)
    assert "within 1e-04 and the same labels" in str(caught.value)
    assert isinstance(caught.value, ConversionError)


@pytest.mark.parametrize("count", [8, 4])
def test_rows_missing(count: int) -> None:
    """A runner that gives one row for a batch: an error in plain words, however many images there are."""
    reference = FakeRunner("paddle", lambda scores: np.full_like(scores, 0.1))
    candidate = FakeRunner("other", lambda scores: np.full_like(scores[:1], 0.1))
    with pytest.raises(ParityError):
        compare_runners(reference, candidate, PIXELS[:count], THRESHOLDS).require()


@pytest.mark.parametrize(("scale", "blind"), [(1.0, False), (1e-4, True)])
def test_a_model_that_ignores_its_input_is_noticed(scale: float, blind: bool) -> None:
    def edit(scores: Scores) -> Scores:
        return (0.3 + scale * scores).astype(np.float32)

    report = compare_runners(FakeRunner("paddle", edit), FakeRunner("other", edit), PIXELS, THRESHOLDS)
    expected = edit(FakeRunner("any").scores(PIXELS))
    assert report.spread == pytest.approx(float((expected.max(axis=0) - expected.min(axis=0)).max()))
    assert report.is_blind is blind
