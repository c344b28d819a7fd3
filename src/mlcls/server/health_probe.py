"""A health probe that asks a server's models for real answers.

Triton still reports a model as ready when a step was killed or hangs. The probe sends a small picture through each
ensemble over HTTP, a different one each time, so that no cache answers. An overloaded server refuses the probe or
answers it late; it is healthy as long as it answers others.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import struct
import time
import zlib
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import quote

from mlcls.backends.pulse import PROBE_REQUEST_ID
from mlcls.model.contract import TENSORS
from mlcls.server.http_api import HttpApi, HttpStatusError, NoAnswerError

_SIDE: Final = 16
_POLL_INTERVAL_S: Final = 0.1

Verdict = Literal["answers", "busy", "fails"]
_VERDICTS: Final[Mapping[Verdict, str]] = {
    "answers": "answers",
    "busy": "is busy: it answers others but not the probe: ",
    "fails": "does not answer: ",
}


@dataclasses.dataclass(frozen=True)
class Health:
    """What a probe of a model found; `busy`: it answered others, but not the probe."""

    model: str
    verdict: Verdict
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.model} {_VERDICTS[self.verdict]}{self.reason}"


class HealthProbe:
    """Probes the models of one server; its Prometheus metrics show whether others are answered."""

    def __init__(self, http_url: str, metrics_url: str, timeout_s: float) -> None:
        self._api, self._metrics, self._timeout_s = HttpApi(http_url), HttpApi(metrics_url), timeout_s
        self._numbers = itertools.count(time.time_ns())

    def ask(self, model: str) -> Health:
        """Send a picture through an ensemble; takes at most twice the timeout."""
        deadline = time.monotonic() + self._timeout_s
        answered_before = self._count_answers(model)
        reason = self._infer(model)
        if reason is None:
            return Health(model, "answers")
        while answered_before is not None:
            answered = self._count_answers(model)
            if answered is not None and answered > answered_before:
                return Health(model, "busy", reason)
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_INTERVAL_S)
        return Health(model, "fails", reason)

    def _infer(self, model: str) -> str | None:
        """Ask once; return None for a good answer, else what came."""
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
        except (HttpStatusError, NoAnswerError) as error:
            return str(error)[:300]
        except (ValueError, KeyError, IndexError, TypeError):
            return "its answer is not that of an imported model"
        return None if status == "OK" else f"the status {status!r}"

    def _count_answers(self, model: str) -> int | None:
        """Return the number of requests that an ensemble has answered so far; None if the metrics cannot be read."""
        pattern = re.compile(rf'nv_inference_request_success\{{[^}}]*model="{re.escape(model)}"[^}}]*\}} ([0-9.e+]+)')
        try:
            text = self._metrics.request("", self._timeout_s).decode(errors="replace")
        except (HttpStatusError, NoAnswerError):
            return None
        return sum(int(float(value)) for value in pattern.findall(text))


def make_picture(number: int) -> bytes:
    """Return a small PNG whose pixels encode a number, so that each number gives a different picture."""
    row = b"\0" + (number % (1 << 64)).to_bytes(8, "little") * (3 * _SIDE // 8)
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * _SIDE)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
