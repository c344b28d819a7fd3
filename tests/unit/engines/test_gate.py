"""The gate finds the faults that these tests plant into fake runners."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from mlcls.engines.gate import BATCH_SIZES, LIMITS, Differences, GateReport, Limits, run_gate
from mlcls.errors import ConversionError, ParityError
from mlcls.model.metrics import mean_average_precision, smallest_spread
from mlcls.model.postprocess import apply_sigmoid

Scores = npt.NDArray[np.float32]
Edit = Callable[[Scores], Scores]

LOCK = threading.Lock()
LABELS = ("cat", "dog", "fox")
THRESHOLDS = (0.5, 0.3, 0.6)
# Eleven "images" whose scores differ by far more than the limits; a fake runner takes their bytes for pixels.
IMAGES = [np.random.default_rng(seed).integers(0, 256, 72, dtype=np.uint8).tobytes() for seed in range(11)]


@dataclasses.dataclass
class FakeRunner:
    """Scores that depend on the picture, with an edit planted into each batch; notes the batch sizes."""

    edit: Edit = lambda scores: scores
    name: str = "other"
    labels: tuple[str, ...] = LABELS
    concurrency: int = 1
    batch_sizes: list[int] = dataclasses.field(default_factory=list)

    def scores(self, images: Sequence[bytes]) -> Scores:
        self.batch_sizes.append(len(images))
        pixels = np.stack([np.frombuffer(image, np.uint8) for image in images])
        mixing = np.random.default_rng(5).normal(size=(pixels.shape[1], len(LABELS)))
        return self.edit(apply_sigmoid(((pixels / 255 - 0.5) @ mixing).astype(np.float32)))


def compare(
    edit: Edit = lambda scores: scores,
    images: Sequence[bytes] = IMAGES,
    limits: Limits = LIMITS["fp32"],
    batch_sizes: Sequence[int] = BATCH_SIZES,
) -> GateReport:
    return run_gate(FakeRunner(name="paddle"), FakeRunner(edit), images, THRESHOLDS, limits, batch_sizes=batch_sizes)


def test_equal_runners() -> None:
    assert smallest_spread(FakeRunner().scores(IMAGES)) > 0.05, "rows could be swapped without a difference"
    report = compare()
    assert report.failures == ()
    assert (report.max_difference, report.mean_difference, report.flips, report.is_blind) == (0, 0, 0, False)
    report.require()
    ways = [*(f"batch {size}" for size in BATCH_SIZES), "repeated rows", "permuted rows", "all images"]
    assert [figure.way for figure in report.figures] == ways
    candidate = FakeRunner()
    run_gate(FakeRunner(), candidate, IMAGES, THRESHOLDS)
    assert candidate.batch_sizes == [1] * 8 + [2] * 4 + [7] * 2 + [8] + [32] + [8] + [8] + [3], "batches are whole"


@pytest.mark.parametrize("count", [1, 3])
def test_few_images(count: int) -> None:
    for images in (IMAGES[:count], [IMAGES[0]] * 3 + IMAGES[1:count]):  # a repeated one is probed once
        report = compare(images=images)
        assert report.failures == ()
        assert report.is_blind is (count == 1), "one image alone says nothing about swapped answers"
    with pytest.raises(ParityError, match="at least one image"):
        compare(images=[])


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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (swap_rows, "batch 2: highest difference"),
        (lambda scores: np.roll(scores, 1, axis=0), "with its neighbors or its slot"),
        (only_at_batch(7, swap_rows), "batch 7: "),
        (only_at_batch(32, lambda scores: scores[::-1]), "batch 32: an image's answer changes by"),
        (lambda scores: np.repeat(scores[:1], len(scores), axis=0), "batch 2: highest difference"),
        (apply_sigmoid, "batch 1: highest difference"),
        (lambda scores: scores - np.float32(6e-2), "batch 1: mean difference"),
        (only_at_batch(1, lambda scores: scores + np.float32(6e-2)), "batch 1: highest difference"),
        (only_at_batch(3, lambda scores: scores + np.float32(6e-2)), "all images: highest difference"),
        (only_at_batch(32, set_one(float("nan"))), "batch 32: 1 of 96 scores are not finite"),
        (set_one(float("inf")), "batch 1: 8 of 24 scores are not finite"),
        (lambda scores: scores[:, ::-1], "batch 1: highest difference"),
        (lambda scores: 1 - scores, "label decisions flip"),
    ],
)
def test_planted_fault(edit: Edit, words: str, precision: str) -> None:
    report = compare(edit, limits=LIMITS[precision])  # type: ignore[index]
    assert any(words in failure for failure in report.failures), report.failures
    with pytest.raises(ParityError, match="Expected other to give the answers of paddle, got: "):
        report.require()


def test_rows_that_depend_on_their_neighbors() -> None:
    """A little of the row before is in each: too little for FP16's limits, but the image's own answer changes."""

    def leak_neighbor(scores: Scores) -> Scores:
        mixed = scores.copy()
        mixed[1:] += np.float32(5e-3) * (scores[:-1] - scores[1:])
        return mixed

    limits = dataclasses.replace(LIMITS["fp16"], max_row_difference=1e-3)
    failures = compare(leak_neighbor, limits=limits).failures
    assert failures
    assert all("with its neighbors or its slot" in failure for failure in failures)


class LaggingRunner(FakeRunner):
    """Answers single requests correctly, but concurrent ones with the answer to the request before."""

    last: Scores | None = None

    def scores(self, images: Sequence[bytes]) -> Scores:
        own = super().scores(images)
        if threading.current_thread() is threading.main_thread():
            return own
        with LOCK:
            answer, self.last = own if self.last is None else self.last, own
        return answer


def test_swapped_answers_of_concurrent_requests() -> None:
    report = run_gate(FakeRunner(), LaggingRunner(concurrency=8), IMAGES[:8], THRESHOLDS)
    assert {failure.split(":")[0] for failure in report.failures} == {"8 requests at once"}
    assert run_gate(FakeRunner(), FakeRunner(concurrency=8), IMAGES[:8], THRESHOLDS).failures == ()


def test_swapped_labels() -> None:
    """The scores agree; only the names differ."""
    for labels, text in (
        (("cat", "fox", "dog"), "2 labels differ, the first is class 1: 'fox' instead of 'dog'"),
        (LABELS[:2], "1 labels differ, the first is class 2: None instead of 'fox'"),
    ):
        assert run_gate(FakeRunner(), FakeRunner(labels=labels), IMAGES, THRESHOLDS).failures == (text,)


def test_difference_is_measured() -> None:
    report = compare(lambda scores: scores + np.array([0, 0, 0.25], np.float32))
    assert report.max_difference == pytest.approx(0.25, abs=1e-6)
    assert report.mean_difference == pytest.approx(0.25 / 3, abs=1e-6)
    assert all(figure.row_difference == 0 for figure in report.figures)


@pytest.mark.parametrize(("offset", "passes"), [(1.2e-4, False), (-9e-5, True)])
def test_limit(offset: float, passes: bool) -> None:
    limits = dataclasses.replace(LIMITS["fp32"], max_mean_difference=1)
    report = compare(lambda scores: (scores.astype(np.float64) + offset).astype(np.float32), limits=limits)
    assert report.max_difference == pytest.approx(abs(offset), rel=0.01)
    assert (report.failures == ()) is passes


def test_rounding_at_the_threshold_is_no_flip() -> None:
    """One score at its threshold, the other one float32 step above: counted, but no failure."""
    above = np.nextafter(np.float32(0.5), np.float32(1))
    reference = FakeRunner(lambda scores: np.full_like(scores, 0.5))
    candidate = FakeRunner(lambda scores: np.full_like(scores, above))
    report = run_gate(reference, candidate, IMAGES[:8], (0.5, 0.4, 0.6), batch_sizes=[1])
    assert (report.figures[0].flips, report.figures[0].near_ties) == (0, 8)
    assert report.failures == ()


def test_flips_are_a_rate() -> None:
    """One decision in three of each image, far from rounding."""
    reference = FakeRunner(lambda scores: np.full_like(scores, 0.45))
    candidate = FakeRunner(lambda scores: np.full_like(scores, 0.55))
    limits = Limits(1, 1, 1, 1 / 3, 1)
    report = run_gate(reference, candidate, IMAGES[:8], (0.5, 0.4, 0.6), limits, batch_sizes=[1])
    assert report.flips == 8
    assert report.flip_rate == pytest.approx(1 / 3)
    assert report.failures == ()
    strict = dataclasses.replace(limits, max_flip_rate=0.3)
    report = run_gate(reference, candidate, IMAGES[:8], (0.5, 0.4, 0.6), strict, batch_sizes=[1])
    assert report.failures == ("batch 1: 8 of 24 label decisions flip > 30.0%",)


def flip_first_image(scores: Scores) -> Scores:
    """Flip one of the first image's three decisions by 0.02, whatever its neighbors."""
    own = FakeRunner().scores(IMAGES[:1])[0]
    flipped = scores.copy()
    flipped[(scores == own).all(1), 0] += np.float32(0.02)
    return flipped


def test_the_flips_of_one_image_are_not_counted_seven_times() -> None:
    thresholds = (float(FakeRunner().scores(IMAGES[:1])[0, 0]) + 0.01, 0.3, 0.6)
    limits = Limits(0.1, 0.1, 1e-2, 1 / 20, 1)
    report = run_gate(FakeRunner(), FakeRunner(flip_first_image), IMAGES[:8], thresholds, limits, batch_sizes=[1, 8])
    ways = {figure.way: figure for figure in report.figures}
    assert {way for way, figure in ways.items() if figure.is_partial} == {"repeated rows"}
    assert ways["batch 8"].flips == 1
    assert ways["repeated rows"].flips == 7
    assert report.flip_rate == pytest.approx(1 / 24)
    assert report.failures == ()
    none = dataclasses.replace(limits, max_flip_rate=0.0)
    report = run_gate(FakeRunner(), FakeRunner(flip_first_image), IMAGES[:8], thresholds, none, batch_sizes=[1, 8])
    assert "repeated rows: 7 of 24 label decisions flip > 0.0%" in report.failures


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_fault_in_repeated_rows_alone_is_refused(precision: str) -> None:
    def edit(scores: Scores) -> Scores:
        has_one_answer_seven_times = len(scores) == 8 and (scores[1:7] == scores[0]).all()
        return scores + np.float32(0.02) if has_one_answer_seven_times else scores

    report = compare(edit, limits=LIMITS[precision])  # type: ignore[index]
    words = "repeated rows: an image's answer changes by 2.0e-02 with its neighbors or its slot"
    assert any(failure.startswith(words) for failure in report.failures)
    assert all(failure.startswith("repeated rows: ") for failure in report.failures)


def test_map_drop() -> None:
    """The candidate ranks one label the wrong way round."""
    targets = FakeRunner().scores(IMAGES) > 0.5
    limits = Limits(2, 2, 2, 1, 0.1)

    def edit(scores: Scores) -> Scores:
        scores = scores.copy()
        scores[:, 0] = 1 - scores[:, 0]
        return scores

    report = run_gate(FakeRunner(), FakeRunner(edit), IMAGES, THRESHOLDS, limits, targets)
    assert report.reference_map == 1.0
    assert report.candidate_map == pytest.approx(mean_average_precision(edit(FakeRunner().scores(IMAGES)), targets))
    assert report.map_drop is not None and report.map_drop > 0.1
    assert report.failures == (f"mAP falls by {report.map_drop:.4f} > 0.1",)
    assert ", mAP 0." in str(report)


def test_images_that_look_alike_are_noticed() -> None:
    dull = FakeRunner(lambda scores: (0.3 + 1e-4 * scores).astype(np.float32))
    report = run_gate(dull, dull, IMAGES, THRESHOLDS)
    assert report.failures == ()
    assert report.is_blind


def test_rows_missing() -> None:
    with pytest.raises(ParityError, match=r"Expected scores \(2, 3\) of other, got \(1, 3\)"):
        compare(lambda scores: scores[:1])


FIGURES = (Differences("batch 1", 8, 1.2e-5, 3e-7, 0, 1, 0.0), Differences("batch 8", 8, 9e-6, 1e-7, 2, 0, 1e-6))
REPORT = GateReport("paddle", "onnxruntime", 8, 80, LIMITS["fp32"], FIGURES, 0.5)


def test_nan_alone_is_a_failure() -> None:
    """Even if no label flips: NaN is above no threshold."""
    nothing = Differences("batch 1", 8, math.nan, math.nan, 0, 0, math.nan)
    report = dataclasses.replace(REPORT, figures=(FIGURES[0], nothing))
    assert len(report.failures) == 3
    assert math.isnan(report.max_difference)


def test_texts_of_report() -> None:
    assert str(REPORT) == (
        "onnxruntime against paddle on 8 images: highest difference 1.2e-05, mean 2.0e-07, 2 flipped labels"
    )
    with pytest.raises(ParityError) as caught:
        REPORT.require("Nothing was written.")
    assert isinstance(caught.value, ConversionError)
    assert str(caught.value) == (
        "Expected onnxruntime to give the answers of paddle, got: batch 8: 2 of 640 label decisions flip > 0.0%. "
        "Nothing was written."
    )
    lines = REPORT.to_table().splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [["batch", "1", "8", "1.2e-05"], ["batch", "8", "8", "9.0e-06"]]
    document = json.loads(json.dumps(REPORT.to_dict()))
    assert document["figures"][1]["way"] == "batch 8"
    assert document["limits"]["max_difference"] == 1e-4
    assert document["failures"] == ["batch 8: 2 of 640 label decisions flip > 0.0%"]
    assert (document["max_difference"], document["map_drop"]) == (1.2e-5, None)
