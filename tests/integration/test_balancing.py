"""One client and several servers: requests are spread, and none is lost when a server goes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlcls.server.process import TritonServer
from mlcls_client import create_model
from support.metrics_page import MetricsPage
from support.processes import start_server
from support.served_models import SmallModels
from support.settling import wait_for

MODEL = "small_with_sigmoid"
REPLICAS = 3


@pytest.fixture
def servers(small_models: SmallModels) -> Iterator[list[TritonServer]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(start_server(small_models.repository, MODEL)) for _ in range(REPLICAS)]


def count_answers(servers: list[TritonServer]) -> list[int]:
    return [int(MetricsPage(server).sum("nv_inference_request_success", model=MODEL)) for server in servers]


def wait_for_answers(servers: list[TritonServer], total: int) -> list[int]:
    """The counts of all servers, once together they are what a client has seen."""
    return wait_for(lambda: counts if sum(counts := count_answers(servers)) == total else [])


@pytest.mark.parametrize(
    ("end", "retries"),
    [(TritonServer.kill, 2), (TritonServer.stop, 6)],  # one that stops refuses requests for some seconds
    ids=["killed", "stopped"],
)
def test_requests_are_spread_and_survive_the_end_of_a_server(
    servers: list[TritonServer], sample_images: list[Path], end: Callable[[TritonServer], None], retries: int
) -> None:
    image = min(sample_images, key=lambda path: path.stat().st_size).read_bytes()
    url = ",".join(server.grpc_url for server in servers)
    with create_model(MODEL, url=url, retries=retries) as model:
        expected = next(iter(list(model.predict([image] * 30))))["scores"]  # now all are connected
        before = wait_for_answers(servers, 30)
        assert len(list(model.predict([image] * 300))) == 300
        after = wait_for_answers(servers, 330)
        shares = [count - earlier for count, earlier in zip(after, before, strict=True)]
        assert max(shares) - min(shares) <= 30, shares

        ending = threading.Timer(0.2, end, [servers[1]])
        ending.start()
        results = list(model.predict([image] * 1500))
        ending.join()
        assert len(results) == 1500
        assert all(result["scores"] == pytest.approx(expected, abs=2e-5) for result in results)
    left, _, right = servers
    assert sum(count_answers([left, right])) - after[0] - after[2] > 1000
