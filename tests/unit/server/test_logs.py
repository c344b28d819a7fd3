"""Triton's text: why a server ended, from real logs of tritonserver 2.51 (paths shortened), and as JSON objects."""

from __future__ import annotations

import io
import json
import os
import threading
from typing import Any

import pytest

from mlcls.backends.refusal_log import RefusalLog
from mlcls.errors import ConfigError, ImageError
from mlcls.server.logs import (
    LogFormat,
    TritonLines,
    TritonLog,
    describe_end,
    encode_record,
    find_start_fault,
    read_log_format,
)

# At every start on a machine without a GPU; harmless.
START = """\
2026-11-24T16:08:35Z W 4406 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory, pinned memory \
pool will not be available: CUDA driver version is insufficient for CUDA runtime version"
2026-11-24T16:08:35Z I 4406 cuda_memory_manager.cc:117] "CUDA memory pool disabled"
2026-11-24T16:08:35Z E 4406 server.cc:241] "CudaDriverHelper has not been initialized."
2026-11-24T16:08:35Z I 4406 model_lifecycle.cc:472] "loading: M_engine:1"
"""

# After the models; harmless too.
END = """\
2026-11-24T16:08:36Z I 4406 server.cc:604]\x20
+------------------+------+
| Repository Agent | Path |
+------------------+------+

Error: Failed to initialize NVML
2026-11-24T16:08:36Z W 4406 metrics.cc:798] "DCGM unable to start: DCGM initialization error"
2026-11-24T16:08:36Z I 4406 server.cc:345] "Timeout 30: Found 0 live models and 0 in-flight non-inference requests"
"""

WRONG_FILE = (
    "RepositoryError: /m/M_engine/1/model.onnx is not the file that its manifest was written for (its size or "
    "SHA-256 differs): damaged, edited, or copied from another model; import the model again."
)
KILLED_LOG = f"""\
{START}\
2026-11-24T16:08:36Z E 4406 backend_model.cc:692] "ERROR: Failed to create instance: {WRONG_FILE}\\n\\nAt:\\n  \
/src/mlcls/manifest.py(180): verify_folder\\n  /b/mlcls_engine/model.py(22): initialize\\n"
2026-11-24T16:08:36Z E 4406 model_lifecycle.cc:642] "failed to load 'M_engine' version 1: Internal: {WRONG_FILE}\\n\
\\nAt:\\n  /src/mlcls/manifest.py(180): verify_folder\\n  /b/mlcls_engine/model.py(22): initialize\\n"
2026-11-24T16:08:36Z I 4406 model_lifecycle.cc:777] "failed to load 'M_engine'"
{END}"""
WRONG_FILE_LOG = f"""\
{KILLED_LOG}\
error: creating server: Invalid argument - load failed for model 'M': ensemble 'M' depends on 'M_engine' which has no \
loaded version. Model 'M_engine' loading failed with error: version 1 is at UNAVAILABLE state: Internal: {WRONG_FILE}

At:
  /src/mlcls/manifest.py(180): verify_folder
"""
NO_VERSION = "at least one version must be available under the version policy of model 'M_preprocess'"
NO_VERSION_LOG = f"""\
{START}\
2026-11-24T16:08:41Z E 4599 model_repository_manager.cc:724] "failed to load model 'M_preprocess': {NO_VERSION}"
{END}\
error: creating server: Invalid argument - load failed for model 'M_preprocess': {NO_VERSION}
"""
BAD_CONFIG_LOG = f"""\
{START}\
[libprotobuf ERROR /build/protobuf/src/google/protobuf/text_format.cc:337] Error parsing text-format \
inference.ModelConfig: 2:6: Message type "inference.ModelConfig" has no field named "bogus".
2026-11-24T16:08:43Z E 4627 model_repository_manager.cc:1460] "Poll failed for model directory 'M': failed to read \
text proto from /m/M/config.pbtxt"
{END}\
error: creating server: Internal - failed to load all models
"""
PORT_LOG = f"""\
{START}\
2026-11-24T16:10:11Z I 7390 model_lifecycle.cc:839] "successfully loaded 'M'"
{END}\
2026-11-24T16:10:11Z I 7390 grpc_server.cc:2558] "Started GRPCInferenceService at 127.0.0.1:8001"
2026-11-24T16:10:11Z E 7390 main.cc:257] "failed to start HTTP service: Unavailable - Socket '127.0.0.1:8000' \
already in use "
"""
NO_MEMORY = "creating server: Internal - load failed for model 'M_engine': CUDA error: out of memory"


@pytest.mark.parametrize("log", ["", START, END, START + END, "Error: Failed to initialize NVML\n", "\0\xff"])
def test_log_without_reason(log: str) -> None:
    assert find_start_fault(log) is None
    assert describe_end(-9, log, is_starting=True) == "tritonserver ended with signal 9: its log gives no reason"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (WRONG_FILE_LOG, f"failed to load 'M_engine' version 1: Internal: {WRONG_FILE}"),
        (KILLED_LOG, f"failed to load 'M_engine' version 1: Internal: {WRONG_FILE}"),  # no `error: ` line
        (NO_VERSION_LOG, f"failed to load model 'M_preprocess': {NO_VERSION}"),
        (PORT_LOG, "failed to start HTTP service: Unavailable - Socket '127.0.0.1:8000' already in use"),
        # the cause goes before what follows from it: `failed to load all models` alone is no help
        (
            BAD_CONFIG_LOG,
            "Poll failed for model directory 'M': failed to read text proto from /m/M/config.pbtxt",
        ),
        ("error: the cause\nerror: what follows\n", "the cause"),
        # what is harmless on a machine without a GPU is the cause if the engine needs one
        (f"error: {NO_MEMORY}\n", NO_MEMORY),
        (f"error: {'x' * 10_000}\n", "x" * 600),
    ],
)
def test_the_reason_of_an_end(log: str, reason: str) -> None:
    assert describe_end(1, log, is_starting=True) == f"tritonserver ended with exit status 1: {reason}"


# Of a request: a step's own line, and lines that a decoder prints.
PLANTED_LOG = """\
2026-12-01T15:53:59Z E 23618 triton_stub.py:168] "Traceback (most recent call last):\\n  File x\\nKeyError: 'y'\\n"
libpng warning: iCCP: known incorrect sRGB profile
"""
STACK = " 0# 0x0000556BA366352D in /opt/tritonserver/bin/tritonserver\n 1# 0x00007FC1AB45A050 in libc.so.6\n"
TERMINATED = "terminate called after throwing an instance of 'std::length_error'\n  what():  basic_string::_M_create\n"
NO_REASON = "its log gives no reason"


@pytest.mark.parametrize(
    ("exit_status", "end", "reason"),
    [
        (-9, "", NO_REASON),
        (-8, "", NO_REASON),
        (-11, f"Signal (11) received.\n{STACK}", NO_REASON),
        (
            -6,
            f"{TERMINATED}Signal (6) received.\n{STACK}",
            "terminate called after throwing an instance of 'std::length_error': basic_string::_M_create",
        ),
        (-9, TERMINATED, NO_REASON),  # of a step
        (1, "error: failed to stop server: Internal - Exit timeout expired. Exiting immediately.\n", "failed to stop"),
    ],
)
def test_only_what_a_server_prints_about_its_end_is_the_reason(exit_status: int, end: str, reason: str) -> None:
    text = describe_end(exit_status, START + END + WRONG_FILE_LOG.replace("error: ", "") + PLANTED_LOG + end, False)
    assert f": {reason}" in text
    assert "Traceback" not in text
    assert "RepositoryError" not in text


def translate(text: str) -> list[dict[str, Any]]:
    lines = TritonLines()
    records = [record for line in text.splitlines() for record in lines.add(line)]
    return [json.loads(record) for record in [*records, *lines.finish()]]


def test_a_line() -> None:
    (record,) = translate('2026-11-28T07:00:52Z W 27189 metrics.cc:798] "DCGM unable to start: \\"x\\"\\nmore"\n')
    assert record == {
        "time": "2026-11-28T07:00:52Z",
        "level": "WARNING",
        "logger": "tritonserver",
        "message": 'DCGM unable to start: "x"\nmore',
        "source": "metrics.cc:798",
        "pid": 27189,
    }


@pytest.mark.parametrize(
    "line",
    [
        '2026-11-28T07:00:52Z 4711 E 12 model_lifecycle.cc:654] "text"',
        '2026-11-28T07:00:52Z E 4711 model_lifecycle.cc:654] "text"',
        "2026-11-28T07:00:52Z E 4711 model_lifecycle.cc:654] text",
    ],
)
def test_other_releases(line: str) -> None:
    (record,) = translate(line)
    assert (record["level"], record["message"], record["pid"]) == ("ERROR", "text", 4711)


def test_messages_of_several_lines() -> None:
    records = translate(
        "2026-11-28T07:00:52Z I 1 server.cc:604] \n+---+\n| a |\n+---+\n\n"
        '2026-11-28T07:00:53Z I 1 main.cc:1] "one"\n'
        "Traceback (most recent call last):\n  File x\nValueError: y\n"
        '2026-11-28T07:00:54Z E 1 main.cc:2] "unfinished\nsecond\n'
        '2026-11-28T07:00:55Z I 1 main.cc:3] ""\n'
        "2026-11-28T07:00:56Z I 1 main.cc:4] \n"
        "error: creating server: x\n"
    )
    assert [(record["level"], record["message"]) for record in records] == [
        ("INFO", "+---+\n| a |\n+---+"),
        ("INFO", "one"),
        ("ERROR", "Traceback (most recent call last):\n  File x\nValueError: y"),
        ("ERROR", '"unfinished\nsecond'),
        ("INFO", ""),
        ("ERROR", "error: creating server: x"),
    ]


def test_fields_of_a_refusal() -> None:
    lines: list[str] = []
    error = ImageError("image: got \x1b\n犬", "corrupt")
    RefusalLog("demo", "2", lines.append).note('r"\n1', 3, [(1, error, error.reason)])
    text = json.dumps(lines[0])
    (record,) = translate(f"2026-11-28T07:00:52Z W 1 refusal_log.py:80] {text}")
    expected = {"event": "refused", "model": "demo", "version": "2", "request_id": 'r"\n1', "reason": "corrupt"}
    expected |= {"message": "refused: image: got \x1b\n犬"}
    assert expected.items() <= record.items()
    assert (record["refused"], record["image"]) == (1, 1)
    (forged,) = translate(f"2026-11-28T07:00:52Z W 1 infer_handler.cc:80] {text}")
    assert "event" not in forged


@pytest.mark.parametrize("text", ["refused: [1]", "refused: {", 'refused: {"level": "X", "time": 1, "pid": 2}'])
def test_a_line_that_only_looks_like_a_refusal(text: str) -> None:
    (record,) = translate(f"2026-11-28T07:00:52Z W 1 refusal_log.py:80] {json.dumps(text)}")
    assert (record["level"], record["time"], record["pid"]) == ("WARNING", "2026-11-28T07:00:52Z", 1)


def pass_on(*parts: bytes, log_format: LogFormat = "json") -> tuple[bytes, str]:
    """Return what is written for bytes that come through the pipe piece by piece, and the tail."""
    reader, writer = os.pipe()
    stream = io.BytesIO()
    log = TritonLog(reader, stream, log_format)
    for part in parts:
        os.write(writer, part)
    os.close(writer)
    log.join(10)
    return stream.getvalue(), log.tail()


WILD = bytes(range(256)) * 3 + b"\n\r\x1b]0;x\x07\n" + b"\xff" * 200_000
PARTS = (b'2026-11-28T07:00:52Z I 1 main.cc:1] "o', b'ne"\n', WILD, b"\nerror: caf\xe9")


def test_any_bytes_give_lines_that_parse() -> None:
    written, tail = pass_on(*PARTS)
    lines = written.splitlines()
    assert all(0x20 <= byte < 0x7F for line in lines for byte in line)
    records = [json.loads(line) for line in lines]
    assert (records[0]["message"], records[-1]["message"]) == ("one", "error: caf�")
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    assert find_start_fault(tail) == "caf�"


def test_text_is_passed_on_as_it_is() -> None:
    written, tail = pass_on(*PARTS, log_format="text")
    assert written == b"".join(PARTS)
    assert tail.startswith('2026-11-28T07:00:52Z I 1 main.cc:1] "one"\n')
    assert find_start_fault(tail) == "caf�"


class Stream(io.BytesIO):
    """Tells that it was written to, and cannot be."""

    def __init__(self) -> None:
        super().__init__()
        self.used = threading.Event()

    def write(self, *_: object) -> int:
        self.used.set()
        raise BrokenPipeError


def test_a_message_is_written_though_no_other_follows_and_a_reader_that_is_gone_stops_nothing() -> None:
    reader, writer = os.pipe()
    stream = Stream()
    log = TritonLog(reader, stream, "json")
    os.write(writer, b"Signal (15) received.\n")
    assert stream.used.wait(5)
    for _ in range(100):
        os.write(writer, b"x" * 10_000 + b"\n")
    os.close(writer)
    log.join(10)
    assert "x" in log.tail()


def test_own_lines() -> None:
    record = json.loads(encode_record("INFO", "mlcls", "Ready\n"))
    assert list(record) == ["time", "level", "logger", "message"]
    assert record["time"].endswith("Z")


def test_format_is_that_of_the_option_or_of_the_environment() -> None:
    assert read_log_format(None, {}) == read_log_format("text", {"MLCLS_LOG_FORMAT": "json"}) == "text"
    assert read_log_format(None, {"MLCLS_LOG_FORMAT": "json"}) == "json"
    with pytest.raises(ConfigError, match="Expected MLCLS_LOG_FORMAT to be one of text, json, got 'xml'"):
        read_log_format(None, {"MLCLS_LOG_FORMAT": "xml"})
