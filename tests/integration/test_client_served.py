"""The client and the real server: every input, both protocols, sync and async; order, restarts, shared memory."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
from PIL import Image

from mlcls.server.options import ADMIN_KEY_VARIABLE
from mlcls.server.process import TritonServer
from mlcls_client import (
    DeadlineExceededError,
    ImageRejectedError,
    InputError,
    InvalidRequestError,
    ModelNotFoundError,
    MultiLabelResult,
    ServerError,
    create_async_model,
    create_model,
    list_models,
    read_health,
)
from mlcls_client.cli.main import main
from support.processes import start_server
from support.quiet_http import served_folder
from support.served_models import SMALL_LABELS, SmallModels
from support.triton_request import ask

MODEL = "small_with_sigmoid"
KEY = "key-of-this-test"

every_way = pytest.mark.parametrize(
    ("protocol", "way"), [(protocol, way) for protocol in ("grpc", "http") for way in ("sync", "async")]
)


def predict(
    server: TritonServer,
    protocol: str,
    way: str,
    inputs: Any,
    *,
    options: dict[str, Any] | None = None,
    on_result: Callable[[int], None] | None = None,
    **arguments: Any,
) -> list[MultiLabelResult]:
    """All results of a `predict` call, made in one of the ways; `on_result` gets the number of results so far."""
    url = server.grpc_url if protocol == "grpc" else server.http_url
    results: list[MultiLabelResult] = []

    def note(result: MultiLabelResult) -> None:
        results.append(result)
        if on_result is not None:
            on_result(len(results))

    if way == "sync":
        with create_model(MODEL, url, protocol, **(options or {})) as model:
            for result in model.predict(inputs, **arguments):
                note(result)
        return results

    async def run() -> None:
        async with create_async_model(MODEL, url, protocol, **(options or {})) as model:
            async for result in model.predict(inputs, **arguments):
                note(result)

    asyncio.run(run())
    return results


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.copy().save(buffer, format="PNG")  # saving leaves its options in the image, which a TIFF file cannot have
    return buffer.getvalue()


@pytest.fixture(scope="module")
def expected(small_server: TritonServer, sample_images: list[Path]) -> dict[str, dict[str, Any]]:
    """What a bare request answers about each sample, all labels with their scores."""
    answers = {
        path.name: ask(small_server, MODEL, [path.read_bytes()], threshold="0").results[0] for path in sample_images
    }
    texts = {json.dumps(answer) for answer in answers.values()}
    assert len(texts) == len(answers), "two samples have the same answer, so that swapped ones would pass"
    return answers


def check_same(result: MultiLabelResult, answer: dict[str, Any], tolerance: float = 2e-5) -> None:
    """One answer may differ from another by the engine's last bits, in a batch of another size."""
    by_id = dict(zip(answer["class_ids"], answer["scores"], strict=True))
    assert sorted(result.class_ids) == sorted(by_id)
    np.testing.assert_allclose(result.scores, [by_id[index] for index in result.class_ids], rtol=0, atol=tolerance)
    assert result.label_names == [SMALL_LABELS[index] for index in result.class_ids]
    assert result.scores.tolist() == sorted(result.scores, reverse=True)


@every_way
@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_folder(
    small_server: TritonServer, sample_images: list[Path], expected: dict[str, dict[str, Any]],
    protocol: str, way: str, batch_size: int,
) -> None:  # fmt: skip
    folder = sample_images[0].parent
    results = predict(small_server, protocol, way, folder, batch_size=batch_size, threshold=0)
    assert sorted(Path(result.input_path or "").name for result in results) == sorted(expected)
    for result in results:
        assert result.input_path is not None
        # A TIFF file is decoded here, page by page, and not by the server.
        is_tiff = result.input_path.endswith((".tif", ".tiff"))
        assert result.page_index == (0 if is_tiff else None)
        check_same(result, expected[Path(result.input_path).name], 2e-2 if is_tiff else 2e-5)


@every_way
def test_every_other_input(
    small_server: TritonServer, sample_images: list[Path], expected: dict[str, dict[str, Any]], tmp_path: Path,
    protocol: str, way: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("no_proxy", "*")
    jpeg = next(path for path in sample_images if path.name == "china.jpg")
    image = Image.open(jpeg).convert("RGB")
    array = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
    pages = [image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.transpose(Image.Transpose.ROTATE_90)]
    page_answers = [ask(small_server, MODEL, [png(page)], threshold="0").results[0] for page in pages]
    pages[0].save(tmp_path / "three.tiff", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "three.pdf", save_all=True, append_images=pages[1:], resolution=144.0)
    image.save(tmp_path / "photo.ppm")
    with served_folder(jpeg.parent) as web:
        url = f"{web}/china.jpg"
        inputs = [
            [str(jpeg), jpeg, url, jpeg.read_bytes(), array, image, [[array], tmp_path / "photo.ppm"]],
            [tmp_path / "three.tiff", tmp_path / "three.pdf", (tmp_path / "three.tiff").read_bytes()],
        ]
        results = predict(small_server, protocol, way, inputs, threshold=0)
    same, tiff, pdf, from_memory = results[:8], results[8:11], results[11:14], results[14:]
    paths = [str(jpeg), str(jpeg), url, None, None, None, None, str(tmp_path / "photo.ppm")]
    assert [result.input_path for result in same] == paths
    for result in same[:4]:
        check_same(result, expected["china.jpg"])
    for result in same[4:]:
        check_same(result, page_answers[0], 5e-3)  # Pillow's and OpenCV's JPEG decoders differ by a level in places
    for results in (tiff, from_memory):
        assert [result.page_index for result in results] == [0, 1, 2]
        for result, answer in zip(results, page_answers, strict=True):
            check_same(result, answer)
    assert [result.page_index for result in pdf] == [0, 1, 2]
    for result, answer in zip(pdf, page_answers, strict=True):
        check_same(result, answer, 0.1)  # the PDF holds the pages as JPEG
    assert {result.input_path for result in from_memory} == {None}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    ("threshold", "limits"),
    [
        ({"default": 0.9, 0: 0.1, "собака": 0.2}, [0.1, 0.9, 0.2, 0.9, 0.9]),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]),
        (np.float32(0.25), [0.25] * 5),
    ],
)
def test_thresholds_and_top_k(
    small_server: TritonServer, sample_images: list[Path], protocol: str, threshold: Any, limits: list[float]
) -> None:
    results, everything, top = (
        predict(small_server, protocol, "sync", sample_images[:6], **options)
        for options in ({"threshold": threshold}, {"threshold": 0}, {"threshold": threshold, "top_k": 1})
    )
    for result, whole in zip(results, everything, strict=True):
        pairs = zip(whole.label_names, whole.scores, strict=True)
        assert result.label_names == [name for name, score in pairs if score > limits[SMALL_LABELS.index(name)]]
    assert [result.class_ids.tolist() for result in top] == [result.class_ids[:1].tolist() for result in results]


@every_way
def test_errors(small_server: TritonServer, sample_images: list[Path], protocol: str, way: str) -> None:
    jpeg = sample_images[0]
    mixed: list[Any] = [jpeg, b"junk", "missing.jpg", jpeg]
    for batch_size in (1, 4):
        results = predict(small_server, protocol, way, mixed, batch_size=batch_size, on_error="yield")
        assert [type(result.error) for result in results] == [type(None), ImageRejectedError, InputError, type(None)]
        assert "got text (4 bytes" in str(results[1].error)
        assert len(predict(small_server, protocol, way, mixed, batch_size=batch_size, on_error="skip")) == 2
        with pytest.raises(ImageRejectedError):
            predict(small_server, protocol, way, mixed, batch_size=batch_size)
    with pytest.raises(InvalidRequestError, match="got the key 'horse'"):
        predict(small_server, protocol, way, jpeg, threshold={"default": 0.5, "horse": 0.1})
    with pytest.raises(DeadlineExceededError):
        predict(small_server, protocol, way, [jpeg] * 40, options={"timeout_s": 0.002})
    with pytest.raises(ServerError, match="accepts no shared memory"):
        predict(small_server, protocol, way, jpeg, options={"shared_memory": True, "admin_key": "wrong"})


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_models_and_health(small_server: TritonServer, protocol: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = small_server.grpc_url if protocol == "grpc" else small_server.http_url
    names = ["small_with_logits", "small_with_sigmoid"]
    assert [(model.name, model.state) for model in list_models(url, protocol)] == [(name, "READY") for name in names]
    assert len(list_models(url, protocol, with_steps=True)) == 8
    health = read_health(url, protocol, models=[MODEL, "other"])
    assert (health.ready, health.name, health.models) == (True, "triton", {MODEL: True, "other": False})
    with create_model("other", url, protocol) as model, pytest.raises(ModelNotFoundError):
        list(model.predict(png(Image.new("RGB", (9, 9)))))
    where = ["--url", url, "--protocol", protocol]
    assert main(["health", MODEL, *where]) == 0
    assert main(["health", "other", *where]) == 3
    assert main(["models", *where]) == 0
    assert main(["wait", MODEL, *where]) == 0
    assert "small_with_logits   1        READY" in capsys.readouterr().out


@every_way
def test_order_is_kept_with_64_in_flight(
    small_server: TritonServer, sample_images: list[Path], expected: dict[str, dict[str, Any]], protocol: str, way: str
) -> None:
    samples = [path for path in sample_images if path.suffix not in (".tif", ".tiff")]
    order = [samples[index] for index in np.random.default_rng(0).integers(0, len(samples), 200)]
    results = predict(small_server, protocol, way, order, concurrency=64, threshold=0)
    assert [result.input_path for result in results] == [str(path) for path in order]
    for path, result in zip(order, results, strict=True):
        check_same(result, expected[path.name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "way", "options"),
    [
        ("grpc", "sync", {}),
        ("grpc", "async", {}),
        ("http", "sync", {}),
        ("http", "async", {}),
        ("grpc", "sync", {"shared_memory": True, "admin_key": KEY}),
    ],
)
def test_a_killed_and_restarted_server_costs_no_answer(
    small_models: SmallModels,
    sample_images: list[Path],
    expected: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    way: str,
    options: dict[str, Any],
) -> None:
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, KEY)
    servers = [start_server(small_models.repository, MODEL)]
    samples = [path for path in sample_images if path.suffix not in (".tif", ".tiff")] * 27

    def restart_in_the_middle(answered: int) -> None:
        if answered == 150:
            os.kill(servers[0].pid, signal.SIGKILL)
            servers[0].stop()
            servers.append(TritonServer(servers[0].options).start())

    patient = {"retries": 1000, "timeout_s": 120.0, **options}
    try:
        results = predict(
            servers[0], protocol, way, samples, threshold=0, options=patient, on_result=restart_in_the_middle
        )
    finally:
        servers[-1].stop()
    assert len(servers) == 2
    assert [result.input_path for result in results] == [str(path) for path in samples]
    for path, result in zip(samples, results, strict=True):
        check_same(result, expected[path.name])


@pytest.fixture(scope="module")
def keyed_server(small_models: SmallModels) -> Iterator[TritonServer]:
    """A server whose closed APIs the test has the key of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ADMIN_KEY_VARIABLE, KEY)
        with start_server(small_models.repository, MODEL) as server:
            yield server


def regions(server: TritonServer) -> set[str]:
    """Regions of shared memory that the server holds, and those of this process that have a name."""
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        status = client.get_system_shared_memory_status(headers={"triton-grpc-protocol-mlcls-admin-key": KEY})
    named = (name for name in os.listdir("/dev/shm") if name.startswith(f"mlcls-client-{os.getpid()}-"))
    return {*status.regions, *named}


@pytest.fixture
def left_clean(keyed_server: TritonServer) -> Iterator[TritonServer]:
    """The keyed server, where the test leaves no region behind; others may have."""
    before = regions(keyed_server)
    yield keyed_server
    assert regions(keyed_server) <= before


@every_way
def test_shared_memory(
    left_clean: TritonServer, sample_images: list[Path], expected: dict[str, dict[str, Any]], protocol: str, way: str
) -> None:
    samples = [path for path in sample_images if path.suffix not in (".tif", ".tiff")] * 5
    options = {"shared_memory": True, "admin_key": KEY}
    for batch_size in (1, 5):
        results = predict(left_clean, protocol, way, samples, batch_size=batch_size, threshold=0, options=options)
        for path, result in zip(samples, results, strict=True):
            check_same(result, expected[path.name])


@every_way
def test_shared_memory_of_a_prediction_that_is_stopped(
    left_clean: TritonServer, sample_images: list[Path], protocol: str, way: str
) -> None:
    """The server works on a request for a while after the client has canceled it."""

    def stop(answered: int) -> None:
        raise InterruptedError

    options = {"shared_memory": True, "admin_key": KEY}
    with pytest.raises(InterruptedError):
        predict(left_clean, protocol, way, sample_images * 5, options=options, on_result=stop)


def test_the_list_of_all_models_wants_the_key(keyed_server: TritonServer) -> None:
    everything = list_models(keyed_server.grpc_url, admin_key=KEY)
    states = {model.name: model.state for model in everything}
    assert states == {"small_with_sigmoid": "READY", "small_with_logits": "not loaded"}


def test_the_command_reads_standard_input_and_lists(
    small_server: TritonServer, sample_images: list[Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mlcls_client", "predict", MODEL, "--url", small_server.grpc_url, "--json"]
    jpeg = sample_images[0].read_bytes()
    one = subprocess.run([*command, "-"], input=jpeg, capture_output=True, check=True)
    listed = "\n".join(map(str, sample_images)).encode()
    many = subprocess.run([*command, "@-"], input=listed, capture_output=True, check=True)
    lines = [json.loads(line) for line in many.stdout.splitlines()]
    assert [line["input_path"] for line in lines] == list(map(str, sample_images))
    assert json.loads(one.stdout)["input_path"] == "stdin"
    assert json.loads(one.stdout)["scores"] == pytest.approx(lines[0]["scores"], abs=2e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(
    small_server: TritonServer, sample_images: list[Path], tmp_path: Path
) -> None:
    jpeg = next(path for path in sample_images if path.name == "china.jpg").read_bytes()
    for number in range(1500):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg + b"\0" * 100_000)
    process, samples = psutil.Process(), []
    with create_model(MODEL, small_server.grpc_url) as model:
        for number, _ in enumerate(model.predict(tmp_path), start=1):
            if number % 250 == 0:
                samples.append(process.memory_info().rss)
    assert samples[-1] - samples[1] < 20 * 2**20, "1,000 images more, of 200 kB each"
