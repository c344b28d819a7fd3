"""`AsyncModel` does on asyncio what `Model` does, and leaves the event loop to others meanwhile."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

from mlcls_client import (
    AsyncModel,
    ImageRejectedError,
    InvalidRequestError,
    MlclsClientError,
    MultiLabelResult,
    ServerUnavailableError,
    create_async_model,
    create_model,
)
from mlcls_client.testing import FakeServer
from support.client_images import NAME, number_of, shade, wait_until

Returned = TypeVar("Returned")


def run(
    url: str, work: Callable[[AsyncModel], Awaitable[Returned]], protocol: str = "grpc", **options: Any
) -> Returned:
    async def main() -> Returned:
        async with create_async_model(NAME, url, protocol, **options) as model:
            return await work(model)

    return asyncio.run(main())


async def numbers_of(results: AsyncIterator[MultiLabelResult]) -> list[int]:
    return [number_of(result) async for result in results]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_results_are_those_of_the_model_that_blocks(server: FakeServer, tmp_path: Path, batch_size: int) -> None:
    for number in range(30):
        (tmp_path / f"{number}.png").write_bytes(shade(number * 8))
    inputs: Any = [tmp_path, b"junk", "missing.png", Image.new("RGB", (3, 3), (0, 200, 0))]
    options: Any = {"batch_size": batch_size, "threshold": 0.1, "on_error": "yield"}

    async def ask(model: AsyncModel) -> list[MultiLabelResult]:
        return [result async for result in model.predict(inputs, **options)]

    found = run(server.url, ask)
    with create_model(NAME, url=server.url) as model:
        expected = list(model.predict(inputs, **options))
    assert found == expected
    assert len(found) == 33
    assert [type(result.error) for result in found] == [type(result.error) for result in expected]


def test_order_and_overlap(server: FakeServer) -> None:
    delays = iter(range(10_000))
    server.delay = lambda images: time.sleep(next(delays) * 7 % 5 * 0.03)

    async def ask(model: AsyncModel) -> list[list[int]]:
        ranges = [range(begin, begin + 100) for begin in (0, 100)]
        predictions = (model.predict(map(shade, numbers), threshold=0.0, concurrency=32) for numbers in ranges)
        return await asyncio.gather(*map(numbers_of, predictions))

    assert run(server.url, ask) == [list(range(100)), list(range(100, 200))]
    assert 16 < server.most_in_flight <= 64


def test_other_work_goes_on_while_files_are_read_and_the_input_is_slow(server: FakeServer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow.png")

    def feed() -> None:
        with (tmp_path / "slow.png").open("wb") as pipe:
            time.sleep(0.3)
            pipe.write(shade(1))

    def slow_input() -> Iterator[Any]:
        time.sleep(0.3)
        yield tmp_path / "slow.png"

    async def ask(model: AsyncModel) -> tuple[list[int], float]:
        longest = 0.0

        async def tick() -> None:
            nonlocal longest
            while True:
                begin = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - begin)

        await model.is_ready()  # the imports of the first call take their time
        ticking = asyncio.create_task(tick())
        numbers = await numbers_of(model.predict(slow_input(), threshold=0.0))
        ticking.cancel()
        return numbers, longest

    threading.Thread(target=feed, daemon=True).start()
    numbers, longest = run(server.url, ask)
    assert numbers == [1]
    assert longest < 0.28


@pytest.mark.parametrize("way", ["aclosing", "cancel", "model"])
def test_stopping_cancels_what_is_in_flight(server: FakeServer, way: str) -> None:
    hold, first = threading.Event(), shade(0)
    server.delay = lambda images: None if first in images else (hold.wait(20), None)[1]

    async def ask(model: AsyncModel) -> None:
        results: Any = model.predict(map(shade, range(100)), threshold=0.0, concurrency=8)
        in_flight = 8
        if way == "aclosing":
            async with aclosing(results):
                async for _ in results:
                    break
                await asyncio.sleep(0.3)  # what has been read is sent; without the caller no more is read
                in_flight = server.in_flight
                assert in_flight >= 1
        else:
            taking = asyncio.create_task(numbers_of(results))
            await asyncio.to_thread(wait_until, lambda: server.in_flight == 8)
            if way == "cancel":
                taking.cancel()
            else:
                await model.close()
            with pytest.raises(asyncio.CancelledError if way == "cancel" else MlclsClientError):
                await taking
        await asyncio.to_thread(wait_until, lambda: server.canceled == in_flight)

    try:
        run(server.url, ask)
    finally:
        hold.set()


def test_errors_are_the_same(server: FakeServer) -> None:
    async def ask(model: AsyncModel) -> None:
        with pytest.raises(ImageRejectedError):
            await numbers_of(model.predict([shade(0), b"junk"], threshold=0.0))
        with pytest.raises(InvalidRequestError, match="batch_size to be 1 or more"):
            model.predict(shade(0), batch_size=0)
        with pytest.raises(InvalidRequestError, match="neither a number"):
            await numbers_of(model.predict(shade(0), threshold={"person": 0.5}))
        server.ready = False
        assert not await model.is_ready()
        with pytest.raises(ServerUnavailableError, match=r"ready within 0\.1 s"):
            await model.wait_until_ready(0.1)
        server.ready = True
        await model.wait_until_ready(10)
        await model.close()
        with pytest.raises(MlclsClientError, match="closed"):
            model.predict(shade(0))

    run(server.url, ask, retries=0)


def test_a_model_that_blocks_works_within_a_running_event_loop(server: FakeServer) -> None:
    async def main() -> list[int]:
        with create_model(NAME, url=server.url) as model:
            return [number_of(result) for result in model.predict(map(shade, range(5)), threshold=0.0)]

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_a_second_loop_is_told_to_make_a_model_of_its_own(asked: Any, protocol: str) -> None:
    model = create_async_model(NAME, asked.url, protocol)

    async def ask() -> int:
        return len([result async for result in model.predict(shade(7))])

    async def ask_and_close() -> None:
        for call in (ask(), model.is_ready(), model.wait_until_ready(10)):
            with pytest.raises(MlclsClientError, match=r"belongs to the event loop of its first call.*for each loop"):
                await call
        await model.close()

    assert asyncio.run(ask()) == 1
    asyncio.run(ask_and_close())
