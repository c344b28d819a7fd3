"""The project's own Dockerfile and docker-compose.yml on a real engine, with real requests: `make test-containers`."""

from __future__ import annotations

import json
import os
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.endurance.asker import Asker, ask_and_give_up, ask_grpc, ask_http
from benchmarks.endurance.identity_model import convert, expected_scores, make_image, publish
from containers.conftest import MODELS, Services
from containers.engine import Engine
from mlcls.releases import rollout
from mlcls.repository.manifest import EngineRecord
from mlcls.repository.models import Repository
from mlcls.repository.staging import ConvertedVersion
from mlcls.server.http_api import HttpApi
from mlcls_client import ServerError, create_model
from support.settling import wait_for

WAYS = (ask_grpc, ask_http, ask_and_give_up)
_RECOVERY_S = 180.0


@pytest.fixture(autouse=True)
def healthy_server(services: Services) -> None:
    services.compose.start("serve-cpu")


def count_outcomes(asker: Asker) -> Counter[str]:
    """How requests ended, those that did not end included."""
    counts = Counter(outcome.kind for outcome in asker.outcomes)
    counts["lost"] += asker.sent - len(asker.outcomes)
    return +counts


def assert_answers(services: Services) -> None:
    """The server answers an image with its own scores."""
    with create_model(MODELS[0], url=services.place.grpc_url, retries=5) as model:
        (result,) = model.predict(make_image(77, "PNG"), threshold=0.0)
    version = Repository(services.repository).active_number(MODELS[0])
    assert sorted(result.scores) == pytest.approx(sorted(expected_scores(77, version)), abs=1e-4)


def restarts(engine: Engine, services: Services, service: str = "serve-cpu") -> int:
    count: int = engine.inspect(services.compose.container(service))["RestartCount"]
    return count


def test_the_server_may_write_nowhere_and_is_not_root(services: Services) -> None:
    execute = services.compose.execute
    assert execute("serve-cpu", "id", "-u").stdout.strip() == "1000"
    status = execute("serve-cpu", "sh", "-c", "cat /proc/self/status").stdout
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    for path in ("/x", "/models/x", "/opt/mlcls/x", "/etc/x"):
        refused = execute("serve-cpu", "touch", path, check=False)
        assert "Read-only file system" in refused.stderr, refused
    assert_answers(services)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_gateway_lets_in_the_right_key_also_after_a_restart(
    engine: Engine, services: Services, protocol: str
) -> None:
    services.compose.start("serve-cpu", "gateway")
    image = make_image(77, "PNG")
    for _ in range(2):
        (result,) = services.model(protocol, services.api_key).predict(image)
        assert len(result.label_names) > 0
        with pytest.raises(ServerError, match="expected a known API key"):
            list(services.model(protocol, services.api_key[::-1]).predict(image))
        engine.docker("restart", services.compose.container("gateway"))
        wait_for(lambda: services.compose.health("gateway") == "healthy", _RECOVERY_S)


def test_secrets_that_the_user_cannot_read(engine: Engine, services: Services) -> None:
    """Made by root with a private umask, and not given to the user of the container."""
    services.compose("rm", "--stop", "--force", "gateway")
    folder = services.secrets / "gateway"
    os.chown(folder, 0, 0)
    try:
        services.compose("up", "--detach", "--no-build", "gateway")
        container = services.compose.container("gateway")
        wait_for(lambda: "cannot read it" in engine.docker("logs", container).stderr, 60)
    finally:
        os.chown(folder, 1000, 1000)
    services.compose.start("gateway")


def test_prometheus_scrapes_the_server_and_the_gateway(services: Services) -> None:
    services.compose.start("serve-cpu", "gateway", "prometheus")
    api = HttpApi(services.prometheus_url)

    def query(expression: str) -> list[dict[str, Any]]:
        answer = json.loads(api.request(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}", 10))
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    assert_answers(services)
    wait_for(lambda: {one["metric"]["job"] for one in query("up == 1")} == {"triton", "gateway"}, 60)
    wait_for(lambda: query(f'nv_inference_request_success{{model="{MODELS[0]}"}} > 0'), 60)


def test_publish_and_rollback_under_load(services: Services) -> None:
    with Asker(services.place, MODELS, 8, ways=WAYS, patience_s=0) as asker:
        publish(services.repository, MODELS[0], services.control)
        rollout.roll_back(Repository(services.repository), MODELS[0], control=services.control)
        publish(services.repository, MODELS[1], services.control)
    assert count_outcomes(asker).keys() <= {"answered", "given up"}, asker.errors
    assert len(asker.outcomes) > 50


def test_a_start_while_an_import_writes(engine: Engine, services: Services) -> None:

    class SlowVersion(ConvertedVersion):
        def put_engines(self, folder: Path) -> Sequence[EngineRecord]:
            engine.docker("restart", "--time=60", services.compose.container("serve-cpu"))
            wait_for(lambda: services.compose.health("serve-cpu") == "healthy", _RECOVERY_S)
            return super().put_engines(folder)

    number = max(Repository(services.repository).numbers(MODELS[1])) + 1
    with convert(services.repository, MODELS[1], number) as version:
        slow = SlowVersion(version.spec, version.onnx_model, version.record)
        rollout.publish(Repository(services.repository), slow, control=services.control)
    assert restarts(engine, services) == 0, "since it was restarted here"
    assert_answers(services)


@pytest.mark.parametrize("step", ["preprocess", "engine", "postprocess"])
def test_a_killed_step(engine: Engine, services: Services, step: str) -> None:
    before = restarts(engine, services)
    services.compose.execute("serve-cpu", "pkill", "-KILL", "-f", f"triton_python_backend_stub .*{MODELS[0]}_{step}")
    wait_for(lambda: restarts(engine, services) > before, _RECOVERY_S)
    wait_for(lambda: services.compose.health("serve-cpu") == "healthy", _RECOVERY_S)
    assert_answers(services)


def test_a_stop_under_load_loses_nothing(engine: Engine, services: Services) -> None:
    container = services.compose.container("serve-cpu")
    with Asker(services.place, MODELS, 8, ways=WAYS, patience_s=0) as asker:
        wait_for(lambda: len(asker.outcomes) > 50, 60)
        services.compose("stop", "serve-cpu")
    state = engine.inspect(container)["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    assert engine.docker("logs", "--tail=1", container).stdout.strip() == "Stopped."
    counts = count_outcomes(asker)
    assert counts.keys() <= {"answered", "given up", "refused"}, [
        one for one in asker.outcomes if one.kind in ("wrong", "lost")
    ]


def test_too_little_memory(engine: Engine, services: Services) -> None:
    services.compose("up", "--detach", "--no-build", "serve-cpu", MLCLS_MEMORY="150m")
    container = services.compose.container("serve-cpu")
    wait_for(lambda: restarts(engine, services) > 0, _RECOVERY_S)
    log = engine.docker("logs", container)
    assert "memory" in log.stdout + log.stderr
    services.compose.start("serve-cpu")
    assert_answers(services)
