"""What a well-behaved client notices of a stranger who sends the most expensive requests that a server accepts.

The client asks for one image at a time over each of its connections, first alone, then beside each kind of stranger,
in turns. Its answers are checked.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.asking import Refusal, ask, connect
from benchmarks.endurance.asker import Asker, Outcome, Place, ask_grpc
from mlcls.backends.decoding_lanes import LANES_FROM_S
from mlcls.images.cost import REQUEST_WORK_S, WORK_NS_PER_PIXEL, estimate_cost
from mlcls.images.encoded_image import open_image
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS
from mlcls.repository.settings import MAX_BATCH_SIZE

# Connections of the client, and of the stranger.
CONNECTIONS: Final = 8
TURNS: Final = 2
# How many times its quiet value the client's p99 may be beside the most expensive requests.
MOST_TIMES: Final = 4.0
_MOST_EXPENSIVE: Final = ("most scans", "most pixels")

_SIDE: Final = 8000
_TIMEOUT_S: Final = 300.0


def make_expensive_requests() -> dict[str, tuple[bytes, ...]]:
    """Return requests of few bytes that are accepted, by name.

    The first two take as much work as a request may. The next three are just small enough for a faster lane, the last
    of them for none. Then comes one with as many images as a request may have, each of one pixel.
    """
    scans, large = _make_jpeg(), _make_png(_SIDE)
    return {
        _MOST_EXPENSIVE[0]: (scans,) * int(REQUEST_WORK_S / _work_s(scans)),
        _MOST_EXPENSIVE[1]: (large,) * int(REQUEST_WORK_S / _work_s(large)),
        **{f"{limit_s:g} s": (_make_png_of(limit_s),) for limit_s in reversed(LANES_FROM_S)},
        "most images": (_make_png(1),) * MAX_BATCH_SIZE,
    }


class Stranger:
    """Callers that send one request over and over; a context manager that starts them, and ends them at their answers.

    Attributes:
        outcomes: Number of images by status `OK` or `refused`, and of failed requests by their code.
    """

    def __init__(self, place: Place, model: str, images: Sequence[bytes], callers: int = CONNECTIONS) -> None:
        self.outcomes: Counter[str] = Counter()
        self._place, self._model, self._images = place, model, images
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(callers)]

    def __enter__(self) -> Stranger:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _TIMEOUT_S)

    def _run(self) -> None:
        with connect(self._place.grpc_url) as client:
            while not self._stop.is_set():
                reply = ask(client, self._model, self._images, timeout_s=_TIMEOUT_S)
                if isinstance(reply, Refusal):
                    self.outcomes[reply.code] += 1
                else:
                    self.outcomes.update("OK" if each.status == "OK" else "refused" for each in reply)


def run_turns(place: Place, model: str, seconds: float, failures: list[str]) -> list[str]:
    """Ask alone and beside each stranger, in turns; note what must not happen, and return the lines of a table.

    Args:
        place: The server.
        model: An identity model.
        seconds: How long each turn takes.
        failures: Gets what must not happen.
    """
    requests = {"nobody": (), **make_expensive_requests()}
    outcomes: dict[str, list[Outcome]] = {name: [] for name in requests}
    strangers: dict[str, Counter[str]] = {name: Counter() for name in requests}
    for _ in range(TURNS):
        for name, images in requests.items():
            with Stranger(place, model, images, CONNECTIONS if images else 0) as stranger:
                time.sleep(1.0)
                asker = Asker(place, [model], CONNECTIONS, ways=[ask_grpc], patience_s=0.0, batch_sizes=[1])
                with asker:
                    time.sleep(seconds)
                outcomes[name] += asker.outcomes
            strangers[name] += stranger.outcomes
    lines = [f"| stranger, {CONNECTIONS} connections | its answers | client: answered | p50, p99 | times | failed |"]
    lines.append("|---" * 6 + "|")
    quiet_s, times = 0.0, []
    for name, images in requests.items():
        answered = [each for each in outcomes[name] if each.kind == "answered"]
        failed = [each for each in outcomes[name] if each.kind != "answered"]
        failures += {f"beside {name}: {each.kind}: {each.text}" for each in failed}
        if strangers[name]["refused"]:
            failures.append(f"beside {name}: images that should be just small enough were refused")
        if not answered:
            failures.append(f"beside {name}: no request was answered")
            continue
        p50_s, p99_s = np.percentile([each.ended_s - each.sent_s for each in answered], [50, 99])
        quiet_s = quiet_s or p99_s
        if name in _MOST_EXPENSIVE:
            times.append(p99_s / quiet_s)
        kind = f"{name}: {len(images)} images, {sum(map(len, images)) / 1e6:.2f} MB" if images else name
        cells = [kind, str(dict(strangers[name]) or "-"), str(len(answered))]
        cells += [f"{p50_s * 1e3:.0f}, {p99_s * 1e3:.0f} ms", f"{p99_s / quiet_s:.1f}", str(len(failed))]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr)
    goal = f"beside the most expensive requests, p99 is at most {MOST_TIMES:g} times its quiet value"
    met = "met" if times and max(times) <= MOST_TIMES else "missed"
    return [*lines, "", f"Goal: {goal}: {met} ({', '.join(f'{each:.1f}' for each in times)})."]


def _work_s(data: bytes) -> float:
    return estimate_cost(open_image(data)).work_s


def _make_jpeg() -> bytes:
    """Return a progressive JPEG file whose last scan stands there as often as is accepted."""
    content = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), (90, 120, 30)).save(content, "JPEG", progressive=True)
    data = content.getvalue()
    last = data.rindex(b"\xff\xda")
    most_s = WORK_NS_PER_PIXEL * DEFAULT_IMAGE_SETTINGS.max_pixels / 1e9
    plain = estimate_cost(open_image(data)).pixels_s
    once = estimate_cost(open_image(data[:-2] + data[last:])).pixels_s - plain
    return data[:-2] + data[last:-2] * int((most_s - plain) / once) + data[-2:]


def _make_png_of(work_s: float) -> bytes:
    """Return the largest square PNG file that takes no more work than this."""
    side = math.isqrt(int(work_s / estimate_cost(open_image(_make_png(1000))).pixels_s * 1e6))
    while _work_s(data := _make_png(side)) > work_s:
        side -= 10
    return data


def _make_png(side: int) -> bytes:
    """Return a PNG file of 16-bit RGBA, each row of which is predicted from the last."""
    content = zlib.compress((b"\4" + bytes(8 * side)) * side)
    header = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b""))
    )
