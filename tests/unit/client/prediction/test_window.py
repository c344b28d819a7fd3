"""Requests overlap within bounds, answers keep their order, and nothing is left behind when a caller stops."""

import gc
import io
import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcls_client import (
    ImageRejectedError,
    InputError,
    InvalidRequestError,
    MlclsClientError,
    MultiLabelResult,
    create_model,
)
from mlcls_client.inputs.sources import ImageSource
from mlcls_client.testing import FakeServer

NAME = "PP-LCNet_x1_0_ML"


def shade(number: int) -> bytes:
    """An image whose score of `red` tells its number, 0 to 250."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number + 5, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def number_of(result: MultiLabelResult) -> int:
    return round(result.scores[0] * 255) - 5


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(NAME) as fake:
        yield fake


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_come_in_order_whatever_the_order_of_the_server(server: FakeServer, batch_size: int) -> None:
    chance = random.Random(0)
    server.delay = lambda images: time.sleep(chance.random() * 0.05)
    with create_model(NAME, url=server.url) as model:
        results = model.predict(
            map(shade, range(200)), batch_size, threshold=0.0, concurrency=64 if batch_size == 1 else 8
        )
        assert [number_of(result) for result in results] == list(range(200))
    assert server.most_in_flight > 4


@pytest.mark.parametrize("concurrency", [1, 2, 7])
def test_no_more_requests_are_in_flight_than_asked_for(server: FakeServer, concurrency: int) -> None:
    server.delay = lambda images: time.sleep(0.01)
    with create_model(NAME, url=server.url) as model:
        assert len(list(model.predict(map(shade, range(40)), concurrency=concurrency))) == 40
    assert server.most_in_flight == concurrency


@pytest.mark.parametrize(("batch_size", "expected"), [(1, 16), (8, 8)])
def test_the_usual_window(server: FakeServer, batch_size: int, expected: int) -> None:
    server.delay = lambda images: time.sleep(0.05)
    with create_model(NAME, url=server.url) as model:
        assert len(list(model.predict(map(shade, range(200)), batch_size))) == 200
    assert server.most_in_flight == expected


def test_one_slow_image_does_not_hold_up_those_behind_it(server: FakeServer) -> None:
    slow, go_on = shade(0), threading.Event()
    server.delay = lambda images: (go_on.wait(10), None)[1] if slow in images else None
    with create_model(NAME, url=server.url) as model:
        results = model.predict(map(shade, range(100)), threshold=0.0, concurrency=4)
        taken = threading.Thread(target=lambda: next(results))
        taken.start()
        wait_until(lambda: len(server.requests) == 16)
        time.sleep(0.1)
        assert len(server.requests) == 16, "the window is four times as long as what is in flight"
        go_on.set()
        taken.join()
        assert [number_of(result) for result in results] == list(range(1, 100))


def test_an_endless_input_is_read_as_results_are_taken(server: FakeServer) -> None:
    taken = []

    def endless() -> Iterator[bytes]:
        for number in itertools.count():
            taken.append(number)
            yield shade(number % 250)

    with create_model(NAME, url=server.url) as model:
        results = model.predict(endless(), threshold=0.0, concurrency=4)
        for _ in range(50):
            next(results)
        assert 50 <= len(taken) <= 50 + 4 * 4
        results.close()  # type: ignore[attr-defined]


def test_an_input_that_is_slow_itself_holds_back_no_answer(server: FakeServer) -> None:
    given = []

    def camera() -> Iterator[bytes]:
        for number in range(6):
            time.sleep(0.15)
            given.append(number)
            yield shade(number)

    with create_model(NAME, url=server.url) as model:
        for number, result in enumerate(model.predict(camera(), threshold=0.0)):
            assert number_of(result) == number
            assert len(given) <= number + 3


def test_an_iterable_is_gone_through_in_the_thread_of_the_caller(server: FakeServer) -> None:
    threads = set()

    def images() -> Iterator[bytes]:
        for number in range(20):
            threads.add(threading.current_thread())
            yield shade(number)

    with create_model(NAME, url=server.url) as model:
        assert len(list(model.predict(images()))) == 20
    assert threads == {threading.current_thread()}


def test_what_the_input_raises_comes_after_the_results_before_it(server: FakeServer) -> None:
    def broken() -> Iterator[bytes]:
        yield from map(shade, range(5))
        raise LookupError("the camera is gone")

    with create_model(NAME, url=server.url) as model:
        results, numbers = model.predict(broken(), 2, threshold=0.0), []
        with pytest.raises(LookupError, match="camera"):
            for result in results:
                numbers.append(number_of(result))
        assert numbers == [0, 1, 2, 3, 4]
        with pytest.raises(InputError, match="Expected a path"):
            list(model.predict([shade(0), 3.5]))  # type: ignore[list-item]


def test_a_bad_image_raises_after_the_results_before_it(server: FakeServer) -> None:
    server.delay = lambda images: time.sleep(0.02)
    with create_model(NAME, url=server.url) as model:
        images = [*map(shade, range(30)), b"junk", *map(shade, range(30))]
        numbers = []
        with pytest.raises(ImageRejectedError):
            for result in model.predict(images, threshold=0.0):
                numbers.append(number_of(result))
        assert numbers == list(range(30))


@pytest.mark.parametrize("way", ["close", "drop", "model"])
def test_stopping_cancels_what_is_in_flight(server: FakeServer, way: str) -> None:
    hold = threading.Event()
    first = shade(0)

    def delay(images: list[bytes]) -> None:
        if first in images:
            wait_until(lambda: server.most_in_flight == 8)  # no input is read once the caller has its result
        else:
            hold.wait(20)

    server.delay = delay
    model = create_model(NAME, url=server.url)
    try:
        results: Any = model.predict(map(shade, range(100)), threshold=0.0, concurrency=8)
        next(results)
        if way == "close":
            results.close()
        elif way == "model":
            model.close()
            with pytest.raises(MlclsClientError, match="closed"):
                next(results)
        else:
            del results
            gc.collect()
        wait_until(lambda: server.in_flight == 0)
        assert server.canceled == len(server.requests) - 1 >= 7
    finally:
        hold.set()
        model.close()


def test_closing_during_the_wait_for_an_answer_ends_the_wait(server: FakeServer) -> None:
    hold = threading.Event()
    server.delay = lambda images: (hold.wait(20), None)[1]
    model = create_model(NAME, url=server.url)
    timer = threading.Timer(0.3, model.close)
    timer.start()
    with pytest.raises(MlclsClientError, match="closed"):
        next(model.predict(map(shade, range(100))))
    hold.set()
    timer.join()


def test_images_that_are_read_ahead_are_bounded_in_bytes(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcls_client.prediction.call._MAX_HELD_BYTES", 3_000_000)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="BMP")
    read = []

    def source(number: int) -> ImageSource:
        def load() -> bytes:
            read.append(number)
            return buffer.getvalue()

        return ImageSource(f"{number}.bmp", load)

    with create_model(NAME, url=server.url) as model:
        results = model.predict(map(source, range(40)), concurrency=2)
        assert next(results).input_path == "0.bmp"
        time.sleep(0.5)
        assert len(read) <= 6, "3 MB, and what was being read when they were full"
        assert [result.input_path for result in results] == [f"{number}.bmp" for number in range(1, 40)]


def test_several_threads_share_a_model(server: FakeServer) -> None:
    server.delay = lambda images: time.sleep(0.002)
    found: dict[int, list[int]] = {}
    with create_model(NAME, url=server.url) as model:

        def ask(begin: int) -> None:
            results = model.predict(map(shade, range(begin, begin + 50)), threshold=0.0)
            found[begin] = [number_of(result) for result in results]

        threads = [threading.Thread(target=ask, args=(begin,)) for begin in (0, 50, 100, 150)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {begin: list(range(begin, begin + 50)) for begin in (0, 50, 100, 150)}


@pytest.mark.parametrize("concurrency", [0, 97, True, 1.5])
def test_a_window_that_the_server_would_refuse_is_refused(server: FakeServer, concurrency: Any) -> None:
    with create_model(NAME, url=server.url) as model, pytest.raises(InvalidRequestError, match="from 1 to 96"):
        model.predict(shade(0), concurrency=concurrency)


@pytest.mark.parametrize(
    ("top_k", "expected"), [(None, ["red", "green", "blue"]), (2, ["red", "green"]), (9, ["red", "green", "blue"])]
)
def test_top_k(server: FakeServer, top_k: int | None, expected: list[str]) -> None:
    array = np.zeros((4, 4, 3), np.uint8)
    array[:] = (10, 20, 30)
    with create_model(NAME, url=server.url) as model:
        (result,) = model.predict(array, threshold=0.0, top_k=top_k)
        assert result.label_names == expected
        assert len(result.class_ids) == len(result.scores) == len(expected)
        (result,) = model.predict(array, threshold=0.1, top_k=top_k)
        assert result.label_names == ["red"], "labels below the threshold do not fill up the number"
        with pytest.raises(InvalidRequestError, match="top_k to be 1 or more"):
            model.predict(array, top_k=0)


@pytest.mark.parametrize(("array_format", "signature"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff")])
def test_arrays_travel_as_the_caller_chooses(server: FakeServer, array_format: Any, signature: bytes) -> None:
    array = np.tile(np.linspace(0, 255, 48, dtype=np.uint8)[None, :, None], (64, 1, 3))
    array[:, :, 0] = 30
    image = Image.fromarray(np.ascontiguousarray(array[:, :, ::-1])).convert("RGBA")
    with create_model(NAME, url=server.url) as model:
        assert len(list(model.predict([array, image], array_format=array_format))) == 2
        with pytest.raises(InvalidRequestError, match="Expected array_format"):
            model.predict(array, array_format="bmp")  # type: ignore[arg-type]
    for images, _ in server.requests:
        assert images[0].startswith(signature)
        sent = np.asarray(Image.open(io.BytesIO(images[0])).convert("RGB")).astype(int)
        assert np.abs(sent - array[:, :, ::-1]).max() <= (0 if array_format == "png" else 4)


def test_a_process_without_close_ends(server: FakeServer, tmp_path: Path) -> None:
    for number in range(99):
        (tmp_path / f"{number}.png").write_bytes(shade(number))
    hold = threading.Event()
    server.delay = lambda images: None if shade(0) in images else (hold.wait(30), None)[1]
    code = (
        "import sys; from mlcls_client import create_model\n"
        "model = create_model(sys.argv[1], url=sys.argv[2])\n"
        "results = model.predict(sys.argv[3], threshold=0.0)\n"
        "print(next(results).scores)\n"
    )
    command = [sys.executable, "-c", code, NAME, server.url, str(tmp_path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    finally:
        hold.set()
    assert (done.stdout, done.stderr) == ("[0.01961]\n", "")


def test_control_c_ends_the_wait_and_what_is_in_flight(server: FakeServer, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(shade(number))
    hold = threading.Event()
    server.delay = lambda images: (hold.wait(30), None)[1]
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, str(tmp_path), "--url", server.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: server.in_flight == 16)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "mlcls-client: interrupted\n")
        wait_until(lambda: server.canceled == 16)
    finally:
        hold.set()
        process.kill()


def test_a_forked_child_is_told_to_make_a_model_of_its_own(server: FakeServer) -> None:
    with create_model(NAME, url=server.url) as model:
        model._model._process_id -= 1
        with pytest.raises(MlclsClientError, match="before this process was forked"):
            model.predict(shade(0))
        model._model._process_id += 1
