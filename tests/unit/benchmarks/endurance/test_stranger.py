"""The stranger's requests are accepted, and hardly more would be."""

from __future__ import annotations

import pytest

from benchmarks.endurance.stranger import make_expensive_requests
from mlcls.backends.decoding_lanes import LANES_FROM_S
from mlcls.backends.steps import OpenedImages
from mlcls.images.cost import REQUEST_WORK_S
from mlcls.repository.settings import MAX_BATCH_SIZE


@pytest.mark.slow
def test_the_most_expensive_requests_that_are_accepted() -> None:
    requests = make_expensive_requests()
    opened = {name: OpenedImages(images) for name, images in requests.items()}
    assert all(sum(map(len, images)) < 10_000_000 for images in requests.values())
    assert len(requests["most images"]) == MAX_BATCH_SIZE
    for name in ("most scans", "most pixels"):
        assert 0.7 * REQUEST_WORK_S < opened[name].work_s <= REQUEST_WORK_S
        assert len(requests[name]) < MAX_BATCH_SIZE
        more = OpenedImages([*requests[name], requests[name][0]])
        assert more.work_s == opened[name].work_s, "one more is refused"
    for limit_s in LANES_FROM_S:
        assert 0.9 * limit_s < opened[f"{limit_s:g} s"].work_s <= limit_s
