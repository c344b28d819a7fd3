"""Clients that ask a served model again and again over gRPC and HTTP, and the check of each answer."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http

from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner
from mlcls.repository.models import Repository
from mlcls.repository.names import ENGINE_SUFFIX, ONNX_FILE
from mlcls.server.process import TritonServer
from support.triton_request import make_input

Protocol = Literal["grpc", "http"]


@dataclasses.dataclass(frozen=True)
class Reply:
    """One answer: which client got it, when it was requested, and everything that identifies its version."""

    client: int
    sent_s: float
    version: int
    image: int
    scores: npt.NDArray[np.float32]
    result: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Expected:
    """The answers of one version, by ONNX Runtime outside the server."""

    labels: tuple[str, ...]
    scores: npt.NDArray[np.float32]

    @classmethod
    def of(cls, root: Path, name: str, version: int, images: Sequence[bytes]) -> Expected:
        spec = Repository(root).version(name, version).spec
        model = Repository(root).version(name, version).folders[ENGINE_SUFFIX] / ONNX_FILE
        return cls(spec.labels, DecodingRunner(OnnxRuntimeRunner(model, spec), spec).scores(images))


def find_fault(reply: Reply, versions: Mapping[int, Expected]) -> str | None:
    """Return what shows that an answer is not entirely from the version that it states."""
    expected = versions.get(reply.version)
    if expected is None:
        return f"version {reply.version}"
    if reply.scores.shape != (len(expected.labels),):
        return f"version {reply.version} with {reply.scores.shape} scores"
    difference = float(np.abs(reply.scores - expected.scores[reply.image]).max())
    if not difference < 1e-3:
        return f"version {reply.version} with scores that differ by {difference}"
    ids, names, scores = (reply.result[key] for key in ("class_ids", "label_names", "scores"))
    if sorted(ids) != list(range(len(expected.labels))) or scores != sorted(scores, reverse=True):
        return f"version {reply.version} with the classes {ids}"
    if names != [expected.labels[index] for index in ids]:
        return f"version {reply.version} with the labels {names}"
    if not np.allclose(scores, reply.scores[ids], atol=1e-4):
        return f"version {reply.version} with other scores in its result"
    return None


class RequestLoad:
    """Threads that send one request after the other, almost without a pause, while the block runs.

    Attributes:
        replies: Answers in the order of arrival.
        failures: Errors raised instead of an answer, and checks in which the server or the model was not ready.
    """

    def __init__(
        self, server: TritonServer, model: str, images: Sequence[bytes], clients: Sequence[Protocol] = ("grpc", "http")
    ) -> None:
        self.replies: list[Reply] = []
        self.failures: list[str] = []
        self._server, self._model, self._images = server, model, images
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, protocol)) for number, protocol in enumerate(clients)
        ]
        self._threads.append(threading.Thread(target=self._watch))

    def wait_for(self, count: int, timeout_s: float = 120.0) -> None:
        """Wait until this many more requests have been answered or have failed."""
        target = len(self.replies) + len(self.failures) + count
        deadline = time.monotonic() + timeout_s
        while len(self.replies) + len(self.failures) < target:
            assert time.monotonic() < deadline, f"{len(self.replies)} answers, {self.failures[:3]}"
            time.sleep(0.02)

    def __enter__(self) -> RequestLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _watch(self) -> None:
        """Check readiness as a load balancer does."""
        with tritonclient.http.InferenceServerClient(self._server.http_url) as connection:
            while not self._stop.wait(0.02):
                if not connection.is_server_ready():
                    self.failures.append("the server is not ready")
                if not connection.is_model_ready(self._model):
                    self.failures.append("the model is not ready")

    def _run(self, client: int, protocol: Protocol) -> None:
        module = tritonclient.grpc if protocol == "grpc" else tritonclient.http
        url = self._server.grpc_url if protocol == "grpc" else self._server.http_url
        outputs = [module.InferRequestedOutput(name) for name in ("scores", "result")]
        with module.InferenceServerClient(url) as connection:
            for image in itertools.cycle(range(len(self._images))):
                if self._stop.wait(0.005):  # otherwise the command under test gets no core on a small machine
                    return
                tensor = make_input([self._images[image]], module)
                sent_s = time.monotonic()
                try:
                    answer = connection.infer(self._model, [tensor], outputs=outputs, parameters={"threshold": 0})
                except Exception as error:  # whatever it is, the request failed
                    self.failures.append(f"{protocol}: {error!r}")
                    continue
                response = answer.get_response()
                version = response.model_version if protocol == "grpc" else response["model_version"]
                self.replies.append(
                    Reply(
                        client,
                        sent_s,
                        int(version),
                        image,
                        answer.as_numpy("scores")[0],
                        json.loads(answer.as_numpy("result").ravel()[0]),
                    )
                )
