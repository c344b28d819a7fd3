"""Requests overlap within bounds, answers keep their order, and nothing is left behind when a caller stops."""

import gc
import itertools
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcls_client import ImageRejectedError, InputError, InvalidRequestError, MlclsClientError, Model
from mlcls_client.inputs.sources import ImageSource
from mlcls_client.testing import FakeServer
from support.client_images import NAME, decode, encode, number_of, shade, wait_until


@pytest.fixture
def hold(server: FakeServer) -> Iterator[threading.Event]:
    """Every request but that of `shade(0)` waits for this event."""
    event = threading.Event()
    server.delay = lambda images: None if shade(0) in images else (event.wait(20), None)[1]
    yield event
    event.set()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_come_in_order_whatever_the_order_of_the_server(
    server: FakeServer, model: Model, batch_size: int
) -> None:
    chance = random.Random(0)
    server.delay = lambda images: time.sleep(chance.random() * 0.05)
    concurrency = 64 if batch_size == 1 else 8
    results = model.predict(map(shade, range(200)), batch_size, threshold=0.0, concurrency=concurrency)
    assert [number_of(result) for result in results] == list(range(200))
    assert server.most_in_flight > 4


@pytest.mark.parametrize(
    ("batch_size", "concurrency", "expected"), [(1, 1, 1), (1, 2, 2), (1, 7, 7), (1, None, 16), (8, None, 8)]
)
def test_no_more_requests_are_in_flight_than_asked_for_or_usual(
    server: FakeServer, model: Model, batch_size: int, concurrency: int | None, expected: int
) -> None:
    server.delay = lambda images: time.sleep(0.03)
    images = map(shade, range(40 * batch_size % 240))
    assert len(list(model.predict(images, batch_size, concurrency=concurrency))) == 40 * batch_size % 240
    assert server.most_in_flight == expected


def test_one_slow_image_does_not_hold_up_those_behind_it(server: FakeServer, model: Model) -> None:
    slow, go_on = shade(0), threading.Event()
    server.delay = lambda images: (go_on.wait(10), None)[1] if slow in images else None
    results = model.predict(map(shade, range(100)), threshold=0.0, concurrency=4)
    taken = threading.Thread(target=lambda: next(results))
    taken.start()
    wait_until(lambda: len(server.requests) == 16)
    time.sleep(0.1)
    assert len(server.requests) == 16, "the window is four times as long as what is in flight"
    go_on.set()
    taken.join()
    assert [number_of(result) for result in results] == list(range(1, 100))


def test_an_endless_input_is_read_as_results_are_taken(model: Model) -> None:
    taken: list[int] = []
    threads = set()

    def endless() -> Iterator[bytes]:
        for number in itertools.count():
            taken.append(number)
            threads.add(threading.current_thread())
            yield shade(number % 250)

    results: Any = model.predict(endless(), threshold=0.0, concurrency=4)
    for _ in range(50):
        next(results)
    assert 50 <= len(taken) <= 50 + 4 * 4
    assert threads == {threading.current_thread()}, "an iterable is consumed in the caller's thread"
    results.close()


def test_an_input_that_is_slow_itself_holds_back_no_answer(model: Model) -> None:
    given: list[int] = []

    def camera() -> Iterator[bytes]:
        for number in range(6):
            time.sleep(0.15)
            given.append(number)
            yield shade(number)

    for number, result in enumerate(model.predict(camera(), threshold=0.0)):
        assert number_of(result) == number
        assert len(given) <= number + 3


@pytest.mark.parametrize("trouble", [LookupError, ImageRejectedError, InputError])
def test_an_error_comes_after_the_results_before_it(model: Model, trouble: type[Exception]) -> None:
    def images() -> Iterator[Any]:
        yield from map(shade, range(5))
        if trouble is LookupError:
            raise LookupError("the camera is gone")
        yield b"junk" if trouble is ImageRejectedError else 3.5
        yield from map(shade, range(30))

    numbers = []
    with pytest.raises(trouble):
        for result in model.predict(images(), 2, threshold=0.0):
            numbers.append(number_of(result))
    assert numbers == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("way", ["close", "drop", "model"])
def test_stopping_cancels_what_is_in_flight(server: FakeServer, model: Model, way: str) -> None:
    hold = threading.Event()
    first = shade(0)

    def delay(images: list[bytes]) -> None:
        if first in images:
            wait_until(lambda: server.most_in_flight == 8)  # no input is read once the caller has its result
        else:
            hold.wait(20)

    server.delay = delay
    try:
        results: Any = model.predict(map(shade, range(100)), threshold=0.0, concurrency=8)
        next(results)
        if way == "close":
            results.close()
        elif way == "model":
            model.close()
            for use in (lambda: next(results), lambda: model.predict(first)):
                with pytest.raises(MlclsClientError, match="closed"):
                    use()
        else:
            del results
            gc.collect()
        wait_until(lambda: server.in_flight == 0)
        assert server.canceled == len(server.requests) - 1 >= 7
    finally:
        hold.set()


@pytest.mark.usefixtures("hold")
def test_closing_during_the_wait_for_an_answer_ends_the_wait(model: Model) -> None:
    timer = threading.Timer(0.3, model.close)
    timer.start()
    with pytest.raises(MlclsClientError, match="closed"):
        next(model.predict(map(shade, range(1, 100))))
    timer.join()


def test_images_that_are_read_ahead_are_bounded_in_bytes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcls_client.prediction._MAX_HELD_BYTES", 3_000_000)
    image, read = encode(image_format="BMP", side=600), []

    def source(number: int) -> ImageSource:
        def load() -> bytes:
            read.append(number)
            return image

        return ImageSource(f"{number}.bmp", load)

    results = model.predict(map(source, range(40)), concurrency=2)
    assert next(results).input_path == "0.bmp"
    time.sleep(0.5)
    assert len(read) <= 6, "3 MB, and what was being read when they were full"
    assert [result.input_path for result in results] == [f"{number}.bmp" for number in range(1, 40)]


def test_several_threads_share_a_model(server: FakeServer, model: Model) -> None:
    server.delay = lambda images: time.sleep(0.002)

    def ask(begin: int) -> list[int]:
        results = model.predict(map(shade, range(begin, begin + 50)), threshold=0.0)
        return [number_of(result) for result in results]

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(ask, range(0, 200, 50))] == [[*range(begin, begin + 50)] for begin in range(0, 200, 50)]


# Labels below the threshold do not fill up the number.
@pytest.mark.parametrize(("threshold", "top_k", "count"), [(0.0, None, 3), (0.0, 2, 2), (0.0, 9, 3), (0.1, 2, 1)])
def test_top_k(model: Model, threshold: float, top_k: int | None, count: int) -> None:
    (result,) = model.predict(encode((30, 20, 10)), threshold=threshold, top_k=top_k)
    assert result.label_names == ["red", "green", "blue"][:count]
    assert len(result.class_ids) == len(result.scores) == count


@pytest.mark.parametrize(("array_format", "signature"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff")])
def test_arrays_travel_as_the_caller_chooses(
    server: FakeServer, model: Model, array_format: Any, signature: bytes
) -> None:
    array = np.tile(np.linspace(0, 255, 48, dtype=np.uint8)[None, :, None], (64, 1, 3))
    array[:, :, 0] = 30
    image = Image.fromarray(np.ascontiguousarray(array[:, :, ::-1])).convert("RGBA")
    assert len(list(model.predict([array, image], array_format=array_format))) == 2
    for images, _ in server.requests:
        assert images[0].startswith(signature)
        sent = np.asarray(decode(images[0]).convert("RGB")).astype(int)
        assert np.abs(sent - array[:, :, ::-1]).max() <= (0 if array_format == "png" else 4)


@pytest.mark.usefixtures("hold")
def test_a_process_without_close_ends(server: FakeServer, tmp_path: Path) -> None:
    for number in range(99):
        (tmp_path / f"{number}.png").write_bytes(shade(number))
    code = (
        "import sys; from mlcls_client import create_model\n"
        "model = create_model(sys.argv[1], url=sys.argv[2])\n"
        "results = model.predict(sys.argv[3], threshold=0.0)\n"
        "print(next(results).scores)\n"
    )
    command = [sys.executable, "-c", code, NAME, server.url, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == ("[0.01961]\n", "")


@pytest.mark.usefixtures("hold")
def test_control_c_ends_the_wait_and_what_is_in_flight(server: FakeServer, tmp_path: Path) -> None:
    for number in range(1, 20):
        (tmp_path / f"{number}.png").write_bytes(shade(number))
    command = [sys.executable, "-m", "mlcls_client", "predict", NAME, str(tmp_path), "--url", server.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: server.in_flight == 16)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (130, "mlcls-client: interrupted\n")
        wait_until(lambda: server.canceled == 16)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency to be from 1 to 96"),
        ({"concurrency": 97}, "concurrency to be from 1 to 96"),
        ({"batch_size": 0}, "batch_size to be 1 or more"),
        ({"batch_size": 1.5}, "batch_size to be 1 or more"),
        ({"top_k": 0}, "top_k to be 1 or more"),
        ({"on_error": "ignore"}, "Expected on_error"),
        ({"array_format": "bmp"}, "Expected array_format"),
        ({"request_id": "a b"}, "Expected request_id to be 1 to 100 printable"),
        ({"request_id": "é"}, "Expected request_id to be 1 to 100 printable"),
        ({"request_id": "x" * 101}, "Expected request_id to be 1 to 100 printable"),
        ({"request_id": 7}, "Expected request_id to be 1 to 100 printable"),
    ],
)
def test_wrong_options_are_refused_at_once(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        model.predict(shade(0), **options)


def test_a_forked_child_is_told_to_make_a_model_of_its_own(model: Model) -> None:
    model._model._process_id -= 1
    with pytest.raises(MlclsClientError, match="before this process was forked"):
        model.predict(shade(0))
    model._model._process_id += 1
