"""What the steps count."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from mlcls.backends.steps import postprocess_logits, preprocess_images
from mlcls.backends.tallies import SCORE_BOUNDS, DecodeTally, ScoreTally, _Tally, read_label_limit
from mlcls.errors import IMAGE_REASONS, ConfigError, ImageError
from mlcls.model.postprocess import apply_sigmoid
from mlcls.model.spec import ModelSpec
from support.image_samples import encode

GOOD = encode(np.full((30, 40, 3), 99, np.uint8), "PNG")


def values(tally: _Tally) -> dict[str, float]:
    """What /metrics would show, without what is 0, model and version."""
    found: dict[str, float] = {}
    for group in tally.groups:
        assert len(group.labels) == len(group.totals)
        for labels, total in zip(group.labels, group.totals, strict=True):
            assert (labels["model"], labels["version"]) == ("animals-v2", "3")
            rest = [f"{name}={value}" for name, value in labels.items() if name not in ("model", "version")]
            key = " ".join([group.name, *rest])
            assert key not in found, "each line once"
            found[key] = total
    return {key: total for key, total in found.items() if total}


def test_decoded_and_refused_images(custom_spec: ModelSpec) -> None:
    tally = DecodeTally(custom_spec, "3")
    preprocess_images([GOOD, b"", GOOD[:-20], GOOD], custom_spec, tally=tally)
    with pytest.raises(ImageError):
        preprocess_images([b"no image"], custom_spec, tally=tally)
    counted = values(tally)
    images = {key: total for key, total in counted.items() if key.startswith("mlcls_images_total")}
    assert images == {
        "mlcls_images_total status=refused reason=empty": 1,
        "mlcls_images_total status=refused reason=truncated": 1,
        "mlcls_images_total status=refused reason=unknown_format": 1,
    }
    assert counted["mlcls_decode_seconds_count"] == counted["mlcls_decode_seconds_bucket le=+Inf"] == 2
    assert 0 < counted["mlcls_decode_seconds_sum"] < 2
    assert counted["mlcls_decoded_pixels_total"] == 2 * 30 * 40
    assert counted["mlcls_encoded_bytes_total"] == 3 * len(GOOD) - 20 + len(b"no image")


def test_every_reason_has_a_counter(custom_spec: ModelSpec) -> None:
    for reason in IMAGE_REASONS:
        tally = DecodeTally(custom_spec, "3")
        tally.refused(ImageError("image: expected one.", reason), 0)
        assert values(tally) == {f"mlcls_images_total status=refused reason={reason}": 1}


def test_buckets_are_cumulative(custom_spec: ModelSpec) -> None:
    tally = DecodeTally(custom_spec, "3")
    for seconds in (0.0005, 0.001, 0.003, 0.5, 70.0):
        tally.decoded(1, 1, 1, seconds)
    found = [total for key, total in values(tally).items() if "_bucket" in key]
    assert found == [2, 2, 3, 3, 3, 3, 3, 3, 3, 4, 4, 5]


def answer(tally: ScoreTally, spec: ModelSpec, logits: npt.NDArray[Any], *statuses: str) -> None:
    thresholds = np.asarray(spec.thresholds, np.float32)
    scores, _, texts = postprocess_logits(logits.astype(np.float32), statuses, thresholds, spec)
    tally.answered(scores, list(statuses), texts, thresholds)


def test_labels_and_scores(custom_spec: ModelSpec) -> None:
    """Thresholds 0.5, 0.3, 0.75; scores by the sigmoid."""
    tally = ScoreTally(custom_spec, "3", 100)
    answer(tally, custom_spec, np.array([[2.0, -9, 0.1], [-2, 3, 5], [-9, -9, -9]]), "OK", "OK", "OK")
    answer(tally, custom_spec, np.array([[0.0, -3, -3]]), "OK")
    counted = {key: total for key, total in values(tally).items() if "label_scores" not in key}
    assert counted == {
        "mlcls_images_total status=ok reason=": 4,
        "mlcls_images_without_label_total": 2,  # 0.5 is not above 0.5
        "mlcls_image_labels_total": 3,
        "mlcls_top_scores_total bin=0": 1,
        "mlcls_top_scores_total bin=0.5": 1,
        "mlcls_top_scores_total bin=0.75": 1,
        "mlcls_top_scores_total bin=0.99": 1,
        "mlcls_label_predictions_total label=cat": 1,
        "mlcls_label_predictions_total label=犬": 1,
        'mlcls_label_predictions_total label=a "fox"': 1,
    }


def test_every_score_has_its_bin(custom_spec: ModelSpec) -> None:
    spec = msgspec.structs.replace(custom_spec, labels=tuple("abcdefghij"), thresholds=(0.5,) * 10)
    tally = ScoreTally(spec, "3", 10)
    logits = np.random.default_rng(1).normal(0, 4, (200, 10)).astype(np.float32)
    answer(tally, spec, logits, *["OK"] * 200)
    scores = apply_sigmoid(logits)
    counted = values(tally)
    for column, label in enumerate(spec.labels):
        edges = [*np.array(SCORE_BOUNDS, np.float32), np.float32(1.1)]
        expected, _ = np.histogram(scores[:, column], edges)
        found = [counted.get(f"mlcls_label_scores_total label={label} bin={bound:g}", 0) for bound in SCORE_BOUNDS]
        assert found == expected.tolist()


def test_images_without_answer_count_as_what_they_are(custom_spec: ModelSpec) -> None:
    tally = ScoreTally(custom_spec, "3", 100)
    logits = np.array([[2.0, 2, 2], [np.nan, 0, 0], [9, 9, 9]])
    answer(tally, custom_spec, logits, "OK", "OK", "image: expected one.")
    answer(tally, custom_spec, np.full((1, 3), np.nan), "OK")
    tally.refused(4)
    tally.failed(2)
    counted = values(tally)
    assert {key: total for key, total in counted.items() if "images_total" in key} == {
        "mlcls_images_total status=ok reason=": 1,
        "mlcls_images_total status=failed reason=scores": 2,
        "mlcls_images_total status=refused reason=threshold": 4,
        "mlcls_images_total status=failed reason=internal": 2,
    }
    assert sum(total for key, total in counted.items() if "label_scores" in key) == 3


def test_many_labels_are_not_counted_one_by_one(custom_spec: ModelSpec) -> None:
    labels = tuple(f"label {index}" for index in range(9600))
    spec = msgspec.structs.replace(custom_spec, labels=labels, thresholds=(0.5,) * 9600)
    tally = ScoreTally(spec, "3", read_label_limit({}))
    answer(tally, spec, np.linspace(-3, 3, 9600)[None], "OK")
    assert sum(len(group.totals) for group in tally.groups) < 30
    assert values(tally)["mlcls_image_labels_total"] == 4800
    assert len(ScoreTally(spec, "3", 9600).groups) == len(tally.groups) + 2


@pytest.mark.parametrize(
    ("text", "limit"), [(None, 100), ("", 100), ("off", 0), ("OFF", 0), ("0", 0), (" 9600 ", 9600)]
)
def test_label_limit(text: str | None, limit: int) -> None:
    assert read_label_limit({} if text is None else {"MLCLS_LABEL_METRICS": text}) == limit


@pytest.mark.parametrize("text", ["on", "-1", "1.5", "1e3", "٣", "9" * 30])
def test_wrong_label_limit(text: str) -> None:
    with pytest.raises(ConfigError, match="Expected MLCLS_LABEL_METRICS to be off, or the number of labels"):
        read_label_limit({"MLCLS_LABEL_METRICS": text})
