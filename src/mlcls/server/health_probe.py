"""A health probe that asks a server's models for real answers.

Triton still reports a model as ready when a step was killed or hangs. The probe sends a small picture through each
ensemble over HTTP, a different one each time, so that no cache answers. An overloaded server refuses the probe or
answers it late; it is healthy as long as it works on what others sent.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import struct
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final, Literal, NamedTuple
from urllib.parse import quote

from mlcls.backends.pulse import ENDED, IDLE, PROBE_REQUEST_ID, STARTING, read_pulses
from mlcls.model.contract import TENSORS
from mlcls.repository.names import ENGINE_SUFFIX, STEP_SUFFIXES
from mlcls.repository.settings import MAX_BATCH_SIZE
from mlcls.server.http_api import HttpApi, HttpStatusError, NoAnswerError

_SIDE: Final = 16
_POLL_INTERVAL_S: Final = 0.1

# `nv_inference_count{model="animals_engine",version="1"} 42`
_METRIC: Final = re.compile(r'nv_inference_(\w+)\{[^}]*model="([^"]+)"[^}]*\} ([0-9.e+]+)')

Verdict = Literal["answers", "busy", "fails"]
_VERDICTS: Final[Mapping[Verdict, str]] = {
    "answers": "answers",
    "busy": "is busy: it works for others and has not answered the probe: ",
    "fails": "does not answer: ",
}


@dataclasses.dataclass(frozen=True)
class Health:
    """What a probe of a model found.

    Attributes:
        model: Name of the ensemble.
        verdict: `busy`: it did not answer the probe, but worked on requests of others.
        reason: What came in place of an answer.
        full_batch_s: How long its engine takes for a full batch by its own statistics; 0 if it answered or is busy, or
            if they cannot be read.
    """

    model: str
    verdict: Verdict
    reason: str = ""
    full_batch_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.model} {_VERDICTS[self.verdict]}{self.reason}"


class _Work(NamedTuple):
    """A model's work so far, by Triton's metrics.

    Attributes:
        answered: Requests that the ensemble answered.
        computed: Requests that its engine answered.
        waiting: Requests that wait for the engine.
        image_s: The engine's mean time for an image; the warmup counts, so it is known from the start.
    """

    answered: float
    computed: float
    waiting: float
    image_s: float


class _LateError(Exception):
    """A probe has no answer, or one of a queue."""


class HealthProbe:
    """Probes the models of one server.

    Prometheus metrics show what it answers. `pulses`, the folder of the pulses of a server that this process started,
    shows whether a Python step is at work; whether that step hangs is for the watchdog to tell.
    """

    def __init__(self, http_url: str, metrics_url: str, timeout_s: float, pulses: Path | None = None) -> None:
        self._api, self._metrics, self._timeout_s = HttpApi(http_url), HttpApi(metrics_url), timeout_s
        self._pulses = pulses
        self._numbers = itertools.count(time.time_ns())
        self._unanswered: dict[str, _Work] = {}

    def ask(self, model: str) -> Health:
        """Send a picture through an ensemble; takes at most twice the timeout."""
        deadline = time.monotonic() + self._timeout_s
        # After a probe that failed, what was done since then counts, too.
        before = self._unanswered.pop(model, None) or self._read_work(model)
        try:
            reason = self._infer(model)
            is_late = False
        except _LateError as error:
            reason, is_late = str(error), True
        if reason is None:
            return Health(model, "answers")
        while True:
            work = self._read_work(model)
            if work is not None and self._is_busy(model, before or work, work, is_late):
                return Health(model, "busy", reason)
            before = before or work
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_INTERVAL_S)
        if before is None:
            return Health(model, "fails", reason)
        if is_late:
            self._unanswered[model] = before
        return Health(model, "fails", reason, MAX_BATCH_SIZE * before.image_s)

    def _infer(self, model: str) -> str | None:
        """Ask once; return None for a good answer, else what came; a _LateError if no step gave an answer."""
        picture = make_picture(next(self._numbers))
        tensor = struct.pack("<I", len(picture)) + picture
        size = {"binary_data_size": len(tensor)}
        document = {
            "id": PROBE_REQUEST_ID,
            "inputs": [{"name": TENSORS.image, "shape": [1, 1], "datatype": "BYTES", "parameters": size}],
            "outputs": [{"name": TENSORS.status}],
            "parameters": {"timeout": int(self._timeout_s * 1e6)},  # no work on it once nobody waits for it
        }
        header = json.dumps(document).encode()
        headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
        try:
            path = f"/v2/models/{quote(model, safe='')}/infer"
            answer = self._api.request(path, self._timeout_s, header + tensor, headers)
            status = json.loads(answer)["outputs"][0]["data"][0]
        except NoAnswerError as error:
            raise _LateError(str(error)) from None
        except HttpStatusError as error:
            if error.status == HTTPStatus.SERVICE_UNAVAILABLE:  # of a queue
                raise _LateError(str(error)[:300]) from None
            return str(error)[:300]
        except (ValueError, KeyError, IndexError, TypeError):
            return "its answer is not that of an imported model"
        return None if status == "OK" else f"the status {status!r}"

    def _read_work(self, model: str) -> _Work | None:
        """Return what a model has done so far; None if the metrics cannot be read."""
        try:
            text = self._metrics.request("", self._timeout_s).decode(errors="replace")
        except (HttpStatusError, NoAnswerError):
            return None
        is_engine = re.compile(rf"{re.escape(model)}{ENGINE_SUFFIX}(_\d+)?").fullmatch
        engine: defaultdict[str, float] = defaultdict(float)
        answered = 0.0
        for metric, name, value in _METRIC.findall(text):
            if is_engine(name):
                engine[metric] += float(value)
            elif (metric, name) == ("request_success", model):
                answered += float(value)
        image_s = engine["compute_infer_duration_us"] / 1e6 / max(engine["count"], 1)
        return _Work(answered, engine["request_success"], engine["pending_request_count"], image_s)

    def _is_busy(self, model: str, before: _Work, work: _Work, is_late: bool) -> bool:
        """Return whether a model works on requests of others."""
        if not is_late:  # a wrong answer, which Triton may count like a right one
            return work.answered > before.answered + 1
        is_further = work.answered > before.answered or work.computed > before.computed
        return is_further or self._is_step_at_work(model, work)

    def _is_step_at_work(self, model: str, work: _Work) -> bool:
        """Return whether a Python step of a model is at work, and may be what the probe waits for."""
        # While requests wait for the engine, that others are decoded says nothing of the engine.
        suffixes = (ENGINE_SUFFIX,) if work.waiting else STEP_SUFFIXES
        is_step = re.compile(rf"{re.escape(model)}({'|'.join(suffixes)})(_\d+)+").fullmatch
        try:
            pulses = list(read_pulses(self._pulses)) if self._pulses is not None else []
        except FileNotFoundError:  # the watchdog has just removed one
            return False
        return any(is_step(step) for _, step, since_ns in pulses if since_ns not in (IDLE, ENDED, STARTING))


def make_picture(number: int) -> bytes:
    """Return a small PNG whose pixels encode a number, so that each number gives a different picture."""
    row = b"\0" + (number % (1 << 64)).to_bytes(8, "little") * (3 * _SIDE // 8)
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * _SIDE)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
