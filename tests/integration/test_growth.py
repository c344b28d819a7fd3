"""A point of `make bench-growth` on the shared server: requests go to all models, batches count as images."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.growth.load import GrowthLoad, StartedServer
from benchmarks.photo_set import write_uniform_photos
from mlcls.errors import ServerError
from mlcls.server.process import TritonServer
from support.served_models import SmallModels


@pytest.fixture
def started(small_models: SmallModels, small_server: TritonServer) -> StartedServer:
    return StartedServer(small_server, small_models.repository, ready_s=1.5)


def test_a_load_is_measured_with_what_the_server_took(started: StartedServer, tmp_path: Path) -> None:
    photos = tuple(write_uniform_photos(tmp_path, 3, 120, 160, seed=0))
    models = ("small_with_sigmoid", "small_with_logits")
    figures = started.measure(GrowthLoad(models, photos, clients=2, batch_size=4), seconds=1.0)
    assert figures.images_per_s > 0
    assert figures.p50_ms <= figures.p95_ms <= figures.p99_ms
    # two clients with four images each are never answered faster than that
    assert figures.images_per_s <= 1.5 * 2 * 4 / (figures.p50_ms / 1e3)
    assert {"preprocess", "engine", "postprocess", "tritonserver"} <= set(figures.core_ms_per_image)
    assert figures.core_ms_per_image["engine"] > 0
    assert figures.pss_mb > 50
    assert figures.metric_series > 20
    assert figures.ready_s == 1.5
    sizes = [photo.stat().st_size for photo in photos]
    assert figures.image_bytes == pytest.approx(sum(sizes) / len(sizes))


def test_refused_requests_are_an_error(started: StartedServer, tmp_path: Path) -> None:
    text = tmp_path / "photo.jpg"
    text.write_text("no photo")
    with pytest.raises(ServerError, match="small_with_sigmoid"):
        started.measure(GrowthLoad(("small_with_sigmoid",), (text,)), seconds=0.5)
