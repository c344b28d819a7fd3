"""More load than a server bears: what is refused, what waits, and what gets no work any more."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from benchmarks.asking import Refusal, ask, connect
from mlcls.engines.openvino import WAITING_IMAGES
from mlcls.repository.configurations import write_configs
from mlcls.repository.models import Repository
from mlcls.repository.settings import ModelSettings, QueueSettings, settings_path
from support.serve_process import MODEL, RECOVERY_TIMEOUT_S, Served, copy_backends, serving
from support.served_models import SmallModels
from support.settling import read_settled, wait_for
from support.triton_request import make_input

QUEUE = 3

# Images that the engine takes at once; further ones wait in Triton's queue.
PLACES = len(os.sched_getaffinity(0)) + WAITING_IMAGES

# An engine that notes each image that it takes in a file of its own, and waits while another one lies beside it.
HOLD = """
import time
from pathlib import Path
Path(__file__).with_name(f'reached-{time.monotonic_ns()}').touch()
while Path(__file__).with_name('hold').exists():
    time.sleep(0.005)
"""


@dataclasses.dataclass
class Held:
    """A server whose engine can be held.

    Attributes:
        served: The server.
        folder: Of the engine's backend.
    """

    served: Served
    folder: Path

    def hold(self) -> None:
        for note in self.folder.glob("reached-*"):
            note.unlink()
        (self.folder / "hold").touch()

    def wait_until_held(self) -> None:
        """Waits until the engine has all images that it takes and does not go on with them."""
        wait_for(lambda: len(list(self.folder.glob("reached-*"))) >= PLACES)

    def release(self) -> None:
        (self.folder / "hold").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def held(small_models: SmallModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    folder = tmp_path_factory.mktemp("limits")
    root = folder / "repository"
    shutil.copytree(small_models.repository, root)
    settings_path(root, MODEL).write_text(ModelSettings(queue=QueueSettings(QUEUE)).to_json())
    write_configs(Repository(root), Repository(root).active(MODEL).spec)
    backends = copy_backends(folder / "backends", HOLD)
    with serving(root, folder, "--probe-interval=0", MLCLS_PYTHON_BACKENDS=str(backends)) as served:
        yield Held(served, backends / "mlcls_engine")


class Requests:
    """Requests in flight over gRPC, by the order in which they were sent."""

    def __init__(self, client: Any, image: bytes) -> None:
        self._client, self._image = client, image
        self.results: dict[int, Any] = {}
        self.calls: list[Any] = []

    def send(self, timeout_us: int | None = None) -> None:
        number = len(self.calls)

        def note(result: Any, error: Any) -> None:
            self.results[number] = error or result.as_numpy("status")[0, 0].decode()

        self.calls.append(self._client.async_infer(MODEL, [make_input([self._image])], note, timeout=timeout_us))

    def wait(self, count: int) -> None:
        wait_for(lambda: len(self.results) >= count, RECOVERY_TIMEOUT_S, lambda: self.results)


@pytest.fixture
def requests(held: Held, image: bytes) -> Iterator[Requests]:
    held.hold()
    with tritonclient.grpc.InferenceServerClient(held.served.grpc_url) as client:
        yield Requests(client, image)
        held.release()


@pytest.fixture(scope="module")
def image(sample_images: list[Path]) -> bytes:
    return sample_images[0].read_bytes()


def test_a_full_queue_refuses_at_once_and_the_rest_is_answered(held: Held, requests: Requests) -> None:
    for _ in range(PLACES):
        requests.send()
    held.wait_until_held()
    for _ in range(10 * QUEUE):
        requests.send()
    requests.wait(1)
    while_held = 0
    while len(requests.results) > while_held:  # refusals come as fast as images are decoded
        while_held = len(requests.results)
        time.sleep(0.7)
    # some are being worked on and QUEUE wait, in the engine's queue, in preprocess's where it has not got to it yet
    assert while_held >= 10 * QUEUE - 2 * QUEUE - 4, "the queue is bounded"
    held.release()
    requests.wait(10 * QUEUE + PLACES)
    refused = [result for result in requests.results.values() if result != "OK"]
    for error in refused:
        assert isinstance(error, InferenceServerException)
        assert error.status() == "StatusCode.UNAVAILABLE"
        assert "Exceeds maximum queue size" in error.message()
    assert len(requests.results) - len(refused) >= QUEUE + 1, "what the queue held is answered"
    requests.send()
    requests.wait(10 * QUEUE + PLACES + 1)
    assert requests.results[10 * QUEUE + PLACES] == "OK", "well again at once"


def test_a_request_waits_no_longer_than_its_deadline(held: Held, requests: Requests) -> None:
    for _ in range(PLACES):
        requests.send()
    held.wait_until_held()
    requests.send(timeout_us=200_000)
    requests.send()
    time.sleep(0.4)
    held.release()
    requests.wait(PLACES + 2)
    late = requests.results.pop(PLACES)
    assert set(requests.results.values()) == {"OK"}
    assert isinstance(late, InferenceServerException)
    assert "timeout" in late.message().lower()


def test_a_request_whose_caller_has_left_gets_no_further_step(held: Held, requests: Requests) -> None:
    """What is in the engine's queue by then is computed all the same: Triton does not tell."""
    before = settled_count(held, "postprocess")
    for _ in range(PLACES):
        requests.send()
    held.wait_until_held()
    for _ in range(QUEUE):
        requests.send()
    time.sleep(0.2)
    for call in requests.calls:
        call.cancel()
    requests.wait(QUEUE + PLACES)
    time.sleep(0.2)
    held.release()
    settled_count(held, "engine")
    requests.send()
    requests.wait(QUEUE + PLACES + 1)
    assert str(requests.results[QUEUE + PLACES]) == "OK"
    assert settled_count(held, "postprocess") - before == 1


def settled_count(held: Held, suffix: str) -> int:
    """As `count`, once it stands still: Triton counts a request a moment after it was answered."""
    return read_settled(lambda: count(held, suffix), pause_s=0.5)


def count(held: Held, suffix: str) -> int:
    """Requests that a step has answered without error."""
    with tritonclient.grpc.InferenceServerClient(held.served.grpc_url) as client:
        statistics = client.get_inference_statistics(f"{MODEL}_{suffix}", as_json=True)
    return int(statistics["model_stats"][0]["inference_stats"]["success"].get("count", 0))


def test_sigterm_under_load_drains(small_models: SmallModels, tmp_path: Path, image: bytes) -> None:
    """Each request that was sent has an answer or a refusal; none that was taken is lost."""
    with serving(small_models.repository, tmp_path, "--probe-interval=0") as served:
        outcomes: list[str] = []
        late_outcomes: list[str] = []
        signalled, stop = threading.Event(), threading.Event()

        def call() -> None:
            with connect(served.grpc_url) as client:
                while not stop.is_set():
                    noted = late_outcomes if signalled.is_set() else outcomes
                    reply = ask(client, MODEL, [image], timeout_s=30)
                    noted.append(f"{reply.code}: {reply.message}" if isinstance(reply, Refusal) else reply[0].status)
                    if isinstance(reply, Refusal):
                        time.sleep(0.02)

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: outcomes.count("OK") >= 50, RECOVERY_TIMEOUT_S)
        signalled.set()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(RECOVERY_TIMEOUT_S) == 0
        stop.set()
        for thread in threads:
            thread.join()
    clear = (
        "OK",
        "is not found",
        "no available versions",
        "failed to connect",
        "was lost",
        "Connection refused",
        "not ready",
    )
    assert [outcome for outcome in outcomes if not any(each in outcome for each in clear)] == []
    assert set(late_outcomes) - {"OK"}, "new requests are refused"
    # gRPC cancels a call that begins while it closes its port; nothing had been taken of it
    clear_late = (*clear, "CANCELLED: CANCELLED")
    assert [outcome for outcome in late_outcomes if not any(each in outcome for each in clear_late)] == []
    assert served.lines() == []
