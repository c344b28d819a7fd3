"""`Model` against a gRPC server of the served contract."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcls_client import (
    DeadlineExceededError,
    ImageRejectedError,
    InputError,
    InvalidRequestError,
    Model,
    ModelNotFoundError,
    MultiLabelResult,
    ProtocolError,
    ServerUnavailableError,
    create_model,
)
from mlcls_client.testing import FakeServer
from support.client_images import BLUE, GREEN, NAME, RED, encode, unused_url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, color in enumerate((RED, GREEN, BLUE, RED, GREEN)):
        (tmp_path / f"{number}.png").write_bytes(encode(color))
    return tmp_path


def labels(results: Iterable[MultiLabelResult]) -> list[list[str]]:
    return [result.label_names for result in results]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
def test_results_come_in_order_at_any_batch_size(
    server: FakeServer, model: Model, folder: Path, batch_size: int
) -> None:
    results = list(model.predict(str(folder), batch_size=batch_size))
    assert labels(results) == [["red"], ["green"], ["blue"], ["red"], ["green"]]
    assert [Path(result.input_path or "").name for result in results] == [f"{number}.png" for number in range(5)]
    assert results[0].scores.tolist() == [round(200 / 255, 5)]
    # Requests overlap, so that the server may see them in another order.
    assert sorted(len(images) for images, _ in server.requests) == sorted(
        min(batch_size, 5 - start) for start in range(0, 5, batch_size)
    )
    files = (path.read_bytes() for path in folder.iterdir())
    assert sorted(image for images, _ in server.requests for image in images) == sorted(files)


def test_a_model_keeps_batch_size_and_threshold_and_is_callable(server: FakeServer, folder: Path) -> None:
    with create_model(NAME, server.url, batch_size=3, threshold=0.9) as model:
        assert labels(model(folder)) == [[]] * 5
        assert labels(model.predict(folder, batch_size=None, threshold=0.5)) == labels(model(folder, 1, 0.5))
    assert sorted(len(images) for images, _ in server.requests) == [1] * 5 + [2, 2, 3, 3]
    assert sorted(threshold or "" for _, threshold in server.requests) == ["0.5"] * 7 + ["0.9"] * 2


def test_pictures_of_one_name_from_two_folders_are_all_saved(server: FakeServer, model: Model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(encode(RED))
        for result in model.predict(str(tmp_path / name)):
            result.save_to_img(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x_res.png", "x_res_2.png"]


def test_nothing_is_sent_before_the_first_result_and_no_more_than_the_server_takes(
    server: FakeServer, model: Model, folder: Path
) -> None:
    server.max_batch_size = 2
    results = model.predict(folder, batch_size=100)
    time.sleep(0.05)
    assert server.requests == []
    assert len(list(results)) == 5
    assert sorted(len(images) for images, _ in server.requests) == [1, 2, 2]


def test_a_server_that_keeps_its_configuration_to_itself_gets_one_image_per_request(
    asked: Any, protocol: str, folder: Path, client_log: pytest.LogCaptureFixture
) -> None:
    asked.config_closed = True
    with create_model(NAME, asked.url, protocol) as model:
        assert len(list(model.predict(folder, batch_size=4))) == 5
    assert len(asked.requests) == 5
    assert "one image per request" in client_log.text


@pytest.mark.parametrize(
    ("threshold", "sent"),
    [
        (None, None),
        (1, "1"),
        (np.float32(0.5), "0.5"),
        (
            {"default": 0.5, 3: 0.25, np.int64(4): np.float64(0.5), "dining table": 0},
            '{"default": 0.5, "3": 0.25, "4": 0.5, "dining table": 0}',
        ),
    ],
)
def test_the_threshold_travels_as_json_text(server: FakeServer, model: Model, threshold: Any, sent: str | None) -> None:
    list(model.predict(encode(RED), threshold=threshold))
    assert server.requests[0][1] == sent


@pytest.mark.parametrize(
    "threshold", ["0.5", float("nan"), True, [0.1, "x"], {"default": None}, {1.5: 0.5}, b"0.5", object()]
)
def test_a_threshold_of_another_form_is_refused_before_anything_is_sent(
    server: FakeServer, model: Model, threshold: object
) -> None:
    with pytest.raises(InvalidRequestError, match="threshold"):
        model.predict(encode(RED), threshold=threshold)  # type: ignore[arg-type]
    assert server.requests == []


@pytest.mark.parametrize("on_error", ["raise", "yield", "skip"])
def test_a_threshold_that_the_server_refuses_stops_everything(model: Model, folder: Path, on_error: str) -> None:
    with pytest.raises(InvalidRequestError, match="neither a number nor a dict with a default") as caught:
        list(model.predict(folder, threshold={"person": 0.5}, on_error=on_error))  # type: ignore[arg-type]
    assert caught.value.server_text is not None
    assert caught.value.server_text.startswith("expected a threshold")


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_bad_images_cost_only_themselves(server: FakeServer, model: Model, batch_size: int) -> None:
    inputs: list[bytes | str] = [encode(RED), b"junk", b"more junk", "missing.jpg", encode(GREEN), b"x"]
    results = list(model.predict(inputs, batch_size=batch_size, on_error="yield"))
    assert labels(results) == [["red"], [], [], [], ["green"], []]
    failed = [type(result.error) for result in results if result.error is not None]
    assert failed == [ImageRejectedError, ImageRejectedError, InputError, ImageRejectedError]
    assert "4 bytes" in results[1]["error"]
    assert "9 bytes" in results[2]["error"], "each image has its own reason"
    assert labels(model.predict(inputs, batch_size=batch_size, on_error="skip")) == [["red"], ["green"]]


def test_a_single_bad_image_is_told_from_a_bad_request(server: FakeServer, model: Model, tmp_path: Path) -> None:
    path = tmp_path / "junk.jpg"
    path.write_bytes(b"junk")
    with pytest.raises(ImageRejectedError, match=r"no result for '.*junk\.jpg': image: .*4 bytes") as caught:
        list(model.predict(path))
    assert caught.value.input_path == str(path)
    assert caught.value.reason.startswith("image: expected an encoded image")
    assert len(server.requests) == 2, "one more request, with an image that is good"


@pytest.mark.parametrize("ssl", [False, True])
def test_nobody_at_the_address(protocol: str, ssl: bool) -> None:
    with create_model(NAME, unused_url(), protocol, ssl=ssl) as model:
        assert not model.is_ready()
        with pytest.raises(ServerUnavailableError, match=r"^Cannot reach the server at .*Check the address") as caught:
            list(model.predict(encode(RED)))
        assert "ssl:" not in str(caught.value)
        with pytest.raises(ServerUnavailableError, match=r"ready within 0\.3 s"):
            model.wait_until_ready(0.3)


def test_an_empty_path_is_told(model: Model) -> None:
    with pytest.raises(InputError, match=r"^Expected the path of .*, got an empty text\.$"):
        list(model.predict(""))


def test_waiting_may_begin_before_the_server_does() -> None:
    late = FakeServer(NAME, port=int(unused_url().rpartition(":")[2]))
    with create_model(NAME, f"127.0.0.1:{late.port}") as model, ExitStack() as started:
        assert not model.is_ready()
        threading.Timer(0.5, started.enter_context, (late,)).start()
        model.wait_until_ready(10)


def test_a_model_that_is_not_ready(server: FakeServer, model: Model) -> None:
    server.ready = False
    assert not model.is_ready()
    with pytest.raises(ServerUnavailableError, match="has no available versions"):
        list(model.predict(encode(RED)))
    threading.Timer(0.4, setattr, (server, "ready", True)).start()
    model.wait_until_ready(10)
    assert model.is_ready()


def test_an_unknown_model(asked: Any, protocol: str) -> None:
    with create_model("ResNet50_ML", asked.url, protocol) as model:
        with pytest.raises(ModelNotFoundError, match=r"no model 'ResNet50_ML'.*is not found"):
            list(model.predict(encode(RED)))
        assert not model.is_ready()


def test_a_late_answer_is_not_asked_for_again(asked: Any, protocol: str) -> None:
    asked.delay = asked.trouble = lambda _: time.sleep(0.6)
    with (
        create_model(NAME, asked.url, protocol, timeout_s=0.2, retries=5) as model,
        pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"),
    ):
        list(model.predict(encode(RED)))
    assert len(asked.requests) == 1


@pytest.mark.parametrize(
    "raw", [b"no json", b"\xff", b"[]", b'{"class_ids": [1], "scores": [], "label_names": []}', b'{"scores": [NaN]}']
)
def test_an_answer_that_is_not_of_the_contract(server: FakeServer, model: Model, raw: bytes) -> None:
    server.raw_result = raw
    with pytest.raises(ProtocolError, match="Expected"):
        list(model.predict(encode(RED)))


def test_a_large_image_is_sent(server: FakeServer, model: Model) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8))
    assert len(list(model.predict(image))) == 1
    assert len(server.requests[0][0][0]) > 8_000_000


def test_importing_is_light() -> None:
    code = (
        "import sys, mlcls_client, mlcls_client.cli.main\n"
        "heavy = {'numpy', 'PIL', 'grpc', 'tritonclient', 'cv2', 'mlcls', 'opentelemetry', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
