"""Processes that fork: children that ask get an answer or a clear error, and the parent goes on.

The program that forks is one of its own, so that the tests' process never does.
"""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from support.client_images import NAME

PRELUDE = """
import asyncio, multiprocessing, os, signal, sys, time
from concurrent.futures import ProcessPoolExecutor
from PIL import Image
from mlcls_client import MlclsClientError, create_async_model, create_model
from mlcls_client.testing import FakeServer

NAME, URL, PROTOCOL = sys.argv[1:]
RED = Image.new("RGB", (8, 8), (200, 10, 10))

def ask(model, count=1):
    return [label for result in model.predict([RED] * count) for label in result.label_names]

def ask_new(*_):
    with create_model(NAME, URL, PROTOCOL) as model:
        return ask(model)

async def ask_async(model):
    return [label async for result in model.predict(RED) for label in result.label_names]

async def ask_new_async():
    async with create_async_model(NAME, URL, PROTOCOL) as model:
        return await ask_async(model)

def fork(call, end=os._exit):
    child = os.fork()
    if child == 0:
        try:
            print("child", call(), flush=True)
        except MlclsClientError as error:
            print("child", error, flush=True)
        finally:
            end(0)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                print("ended with", status, flush=True)
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("hangs", flush=True)
"""
ANSWERS = ["child ['cat']", "parent ['cat']"]


@pytest.fixture
def run(protocol: str, asked: Any) -> Callable[[str], list[str]]:
    """Run a program against the server of a protocol; returns its lines, with `cat` for the label of either server."""

    def run_program(code: str) -> list[str]:
        command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), NAME, asked.url, protocol]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        # gRPC notes that threads are inside of it.
        errors = [line for line in done.stderr.splitlines() if "skipping fork() handlers" not in line]
        assert (done.returncode, errors) == (0, [])
        return done.stdout.replace("'red'", "'cat'").splitlines()

    return run_program


def test_children_of_a_parent_that_has_asked_make_models_of_their_own(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        with create_model(NAME, URL, PROTOCOL) as model:
            ask(model)
            for _ in range(2):
                fork(ask_new)
                print("parent", ask(model))
    """)
    assert lines == ANSWERS * 2


@pytest.mark.slow
def test_a_child_forks_too(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        def ask_and_fork():
            answer = ask_new()
            fork(ask_new)
            return answer

        with create_model(NAME, URL, PROTOCOL) as model:
            ask(model)
            fork(ask_and_fork)
            print("parent", ask(model))
    """)
    assert lines == ["child ['cat']", *ANSWERS]


@pytest.mark.slow
def test_a_model_of_the_parent_is_refused_in_words(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        with create_model(NAME, URL, PROTOCOL) as model:
            ask(model)
            fork(lambda: ask(model))
            fork(lambda: (model.close(), ask_new())[1])
            print("parent", ask(model))
    """)
    assert "was made before this process was forked" in lines[0]
    assert lines[1:] == ANSWERS


@pytest.mark.slow
def test_requests_in_flight_are_answered_in_the_parent(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        with create_model(NAME, URL, PROTOCOL) as model:
            results = model.predict([RED] * 300)
            next(results)
            fork(ask_new)
            print("parent", sum(1 for _ in results))
    """)
    assert lines == ["child ['cat']", "parent 299"]


@pytest.mark.slow
def test_a_child_ends_like_any_other_process(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        with create_model(NAME, URL, PROTOCOL) as model:
            results = model.predict([RED] * 300)
            next(results)
            fork(ask_new, end=sys.exit)
            fork(lambda: None, end=sys.exit)
            print("parent", ask(model))
    """)
    assert lines == ["child ['cat']", "child None", "parent ['cat']"]


@pytest.mark.slow
@pytest.mark.parametrize("forking_thread", ["of the loop", "another"])
def test_asyncio(run: Callable[[str], list[str]], forking_thread: str) -> None:
    lines = run(f"""
        async def main():
            async with create_async_model(NAME, URL, PROTOCOL) as model:
                await ask_async(model)
                if {forking_thread == "another"}:
                    await asyncio.to_thread(fork, ask_new)
                else:
                    fork(ask_new)
                print("parent", await ask_async(model))
        asyncio.run(main())
    """)
    assert lines == ANSWERS


@pytest.mark.slow
def test_asyncio_in_the_child(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        asyncio.run(ask_new_async())
        fork(lambda: asyncio.run(ask_new_async()))
        print("parent", asyncio.run(ask_new_async()))
    """)
    assert lines == ANSWERS


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc"], indirect=True)
def test_an_asyncio_model_that_was_left_open(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        model = create_async_model(NAME, URL, PROTOCOL)
        asyncio.run(ask_async(model))
        fork(ask_new)
        print("parent", ask_new())
    """)
    assert lines == ANSWERS


@pytest.mark.slow
def test_multiprocessing(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        ask_new()
        with create_model(NAME, URL, PROTOCOL) as model:
            ask(model)
            with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
                for answer in pool.map(ask_new, range(6)):
                    print(answer)
            print(ask(model))
    """)
    assert lines == ["['cat']"] * 7


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc"], indirect=True)
def test_a_child_of_a_process_inside_of_grpc_is_told_what_to_do(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        with FakeServer(NAME):
            fork(ask_new)
            fork(lambda: create_model(NAME, "127.0.0.1:9", "http", retries=0).is_ready())
            print("parent", ask_new())
    """)
    assert lines[0].startswith("child This process was forked while its parent was using gRPC")
    assert "protocol='http'" in lines[0]
    assert lines[1:] == ["child False", "parent ['cat']"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc"], indirect=True)
def test_a_fork_in_a_loop_that_has_requests_in_flight(run: Callable[[str], list[str]]) -> None:
    lines = run("""
        async def main():
            async with create_async_model(NAME, URL, PROTOCOL) as model:
                results = model.predict([RED] * 100)
                await anext(results)
                fork(ask_new)
                print("parent", len([result async for result in results]))
        asyncio.run(main())
    """)
    assert lines[0].startswith("child This process was forked while its parent was using gRPC")
    assert lines[1:] == ["parent 99"]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["grpc"], indirect=True)
def test_fork_support_that_is_switched_off(run: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")
    lines = run("""
        print("parent", ask_new())
        fork(ask_new)
    """)
    assert lines[0] == "parent ['cat']"
    assert "GRPC_ENABLE_FORK_SUPPORT=0, so it cannot use gRPC" in lines[1]
