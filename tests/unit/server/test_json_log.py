"""Triton's text becomes JSON objects, one per message, whatever it contains."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlcls.backends.refusal_log import RefusalLog
from mlcls.errors import ConfigError, ImageError
from mlcls.server.logs import (
    STANDARD_OUTPUT,
    JsonLog,
    TritonLines,
    TritonLogPump,
    describe_end,
    make_record,
    read_log_format,
)


def translate(text: str) -> list[dict[str, Any]]:
    lines = TritonLines()
    records = [record for line in text.splitlines() for record in lines.add(line)]
    return [*records, *lines.finish()]


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
    assert record["message"] == "refused: image: got \x1b\n犬"
    assert {
        name: record[name] for name in ("event", "model", "version", "request_id", "reason", "refused", "image")
    } == {
        "event": "refused",
        "model": "demo",
        "version": "2",
        "request_id": 'r"\n1',
        "reason": "corrupt",
        "refused": 1,
        "image": 1,
    }
    (forged,) = translate(f"2026-11-28T07:00:52Z W 1 infer_handler.cc:80] {text}")
    assert "event" not in forged


@pytest.mark.parametrize("text", ["refused: [1]", "refused: {", 'refused: {"level": "X", "time": 1, "pid": 2}'])
def test_a_line_that_only_looks_like_a_refusal(text: str) -> None:
    (record,) = translate(f"2026-11-28T07:00:52Z W 1 refusal_log.py:80] {json.dumps(text)}")
    assert (record["level"], record["time"], record["pid"]) == ("WARNING", "2026-11-28T07:00:52Z", 1)


def pump(*parts: bytes, pause_s: float = 0) -> tuple[list[dict[str, Any]], TritonLogPump]:
    """Return the records for bytes that are written to the pipe piece by piece."""
    reader, writer = os.pipe()
    stream = io.BytesIO()
    running = TritonLogPump(os.fdopen(reader, "rb"), JsonLog(stream).write)
    for part in parts:
        os.write(writer, part)
        time.sleep(pause_s)
    os.close(writer)
    running.join(10)
    lines = stream.getvalue().splitlines()
    assert all(0x20 <= byte < 0x7F for line in lines for byte in line)
    return [json.loads(line) for line in lines], running


def test_any_bytes_give_lines_that_parse() -> None:
    wild = bytes(range(256)) * 3 + b"\n\r\x1b]0;x\x07\n" + b"\xff" * 200_000
    records, _ = pump(b'2026-11-28T07:00:52Z I 1 main.cc:1] "o', b'ne"\n', wild, b"\nend")
    assert records[0]["message"] == "one"
    assert records[-1]["message"].endswith("end")
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)


def test_a_message_is_written_though_no_other_follows() -> None:
    reader, writer = os.pipe()
    written = threading.Event()
    running = TritonLogPump(os.fdopen(reader, "rb"), lambda record: written.set())
    os.write(writer, b"Signal (15) received.\n")
    assert written.wait(5)
    os.close(writer)
    running.join(5)


def test_a_reader_that_is_gone_stops_nothing() -> None:
    reader, writer = os.pipe()

    def fail(_: object) -> None:
        raise BrokenPipeError

    running = TritonLogPump(os.fdopen(reader, "rb"), fail)
    for _ in range(100):
        os.write(writer, b"x" * 10_000 + b"\n")
    os.close(writer)
    running.join(10)
    assert "x" in running.tail()


def test_the_reason_of_an_end_is_found() -> None:
    _, running = pump(b'2026-11-28T07:00:52Z E 1 main.cc:1] "failed to start"\n')
    for path in (STANDARD_OUTPUT, Path("missing.log")):
        assert describe_end(path, 1, running.tail()) == "tritonserver ended with exit status 1: failed to start"
    assert describe_end(STANDARD_OUTPUT, 1, "") == "tritonserver ended with exit status 1: its log gives no reason"


def test_own_lines() -> None:
    record = make_record("INFO", "mlcls", "Ready\n")
    assert list(record) == ["time", "level", "logger", "message"]
    assert record["time"].endswith("Z")


def test_format_is_that_of_the_option_or_of_the_environment() -> None:
    assert read_log_format(None, {}) == read_log_format("text", {"MLCLS_LOG_FORMAT": "json"}) == "text"
    assert read_log_format(None, {"MLCLS_LOG_FORMAT": "json"}) == "json"
    with pytest.raises(ConfigError, match="Expected MLCLS_LOG_FORMAT to be one of text, json, got 'xml'"):
        read_log_format(None, {"MLCLS_LOG_FORMAT": "xml"})
