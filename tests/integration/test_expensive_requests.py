"""Requests of few bytes and much work: the server stays, each image has its status, others are answered meanwhile."""

from __future__ import annotations

import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.asking import ImageReply, Refusal, Reply, ask, connect
from support.image_samples import encode, make_png
from support.serve_process import MODEL, RECOVERY_TIMEOUT_S, serving
from support.served_models import SmallModels

pytestmark = pytest.mark.slow

SIDE = 8000


def progressive(scans: int) -> bytes:
    """A picture of one color whose last scan, of a few bytes, stands there many times."""
    data = encode(Image.new("RGB", (SIDE, SIDE), (90, 120, 30)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (scans - data.count(b"\xff\xda") + 1) + data[-2:]


def test_the_most_expensive_requests_cost_their_caller_alone(small_models: SmallModels, tmp_path: Path) -> None:
    photo = encode(np.random.default_rng(7).integers(0, 256, (90, 120, 3), np.uint8), "PNG")
    large = make_png(SIDE, SIDE, zlib.compress(bytes(SIDE * (3 * SIDE + 1))))
    assert 32 * len(large) < 16_000_000
    replies: dict[str, Reply] = {}
    with serving(small_models.repository, tmp_path) as served, connect(served.grpc_url) as client:
        expected = served.wait_for_answer(photo)

        def send(name: str, images: list[bytes]) -> None:
            with connect(served.grpc_url) as own:
                replies[name] = ask(own, MODEL, images, timeout_s=10 * RECOVERY_TIMEOUT_S)

        strangers = [
            threading.Thread(target=send, args=("scans", [progressive(100)] * 8 + [photo])),
            threading.Thread(target=send, args=("pixels", [large] * 32)),
        ]
        for thread in strangers:
            thread.start()
        meanwhile = 0
        while strangers[1].is_alive():
            (reply,) = read(ask(client, MODEL, [photo], timeout_s=RECOVERY_TIMEOUT_S))
            assert reply.status == "OK"
            meanwhile += strangers[1].is_alive()
        for thread in strangers:
            thread.join()
        assert meanwhile >= 3
        assert served.label(photo)["label_names"] == expected["label_names"]
        assert served.process.poll() is None
        lines = [line for line in served.lines() if "refused" not in line]
    assert lines == []
    statuses = [reply.status for reply in read(replies["scans"])]
    assert statuses[-1] == "OK"
    assert all(
        "at most 2 s of work to decode it, this JPEG file of height 8000, width 8000" in each for each in statuses[:8]
    )
    statuses = [reply.status for reply in read(replies["pixels"])]
    accepted = statuses.count("OK")
    assert 4 < accepted < 12
    assert statuses[:accepted] == ["OK"] * accepted
    assert all("at most 8 s of work to decode all images of one request" in each for each in statuses[accepted:])


def read(reply: Reply) -> list[ImageReply]:
    assert not isinstance(reply, Refusal), reply
    return reply
