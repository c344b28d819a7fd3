"""What the real server tells: counts in /metrics, lines in the log, spans."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from metrics_page import MetricsPage, wait_for_metrics
from mlcls.server import TritonServer
from triton_request import ask

MODEL = "small_with_sigmoid"


def counted(before: MetricsPage, after: MetricsPage, name: str, **labels: str) -> float:
    return after.sum(name, model=MODEL, **labels) - before.sum(name, model=MODEL, **labels)


def test_every_image_is_counted_once(small_server: TritonServer, sample_images: list[Path]) -> None:
    """Over two preprocess processes, in single requests and batches, from threads."""
    photos = [path.read_bytes() for path in sample_images[:4]]
    before = MetricsPage(small_server)

    def send(index: int) -> None:
        ask(small_server, MODEL, [photos[index % 4]])
        ask(small_server, MODEL, [b"", photos[0], b"no image", photos[1][:-40], photos[2]])
        with pytest.raises(InferenceServerException):
            ask(small_server, MODEL, [b"no image", b""])
        with pytest.raises(InferenceServerException):
            ask(small_server, MODEL, [photos[3], photos[3], b""], threshold="none")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(40)))
    after = wait_for_metrics(
        small_server,
        lambda page: (
            counted(before, page, "mlcls_images_total") >= 40 * 11
            and counted(before, page, "mlcls_images_total", status="ok") >= 120
        ),
    )
    images = {
        reason: counted(before, after, "mlcls_images_total", status=status, reason=reason)
        for status, reason in (
            ("ok", ""), ("refused", "empty"), ("refused", "unknown_format"), ("refused", "threshold"),
        )
    }  # fmt: skip
    assert images == {"": 120, "empty": 120, "unknown_format": 80, "threshold": 80}
    assert counted(before, after, "mlcls_images_total", status="refused") == 120 + 80 + 80 + 40, "40 truncated ones"
    assert counted(before, after, "mlcls_images_total", status="failed") == 0
    assert counted(before, after, "mlcls_decode_seconds_count") == 200
    assert counted(before, after, "mlcls_decode_seconds_bucket", le="+Inf") == 200
    assert 0 < counted(before, after, "mlcls_decode_seconds_sum") < 200
    assert counted(before, after, "mlcls_top_scores_total") == 120
