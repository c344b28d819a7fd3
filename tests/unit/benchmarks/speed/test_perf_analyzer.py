"""perf_analyzer's output, as version 2.51.0 printed it for an ensemble, and what is done with its exit status."""

from __future__ import annotations

import base64
import dataclasses
import json
import textwrap
from pathlib import Path

import pytest

from benchmarks.speed.perf_analyzer import (
    Load,
    PerfAnalyzer,
    PerfAnalyzerError,
    StepTimes,
    Windows,
    choose_windows,
    parse_output,
    write_input_data,
    write_payloads,
)

REPORT = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,"
    "Avg latency,request/response,response wait\n"
    "4,200.356,36,26358,1,176,49177,801,2,68420,121003,155639,275727,76555,38,76563\n"
)
PRINTED = """\
Request concurrency: 4
  Client: 
    Request count: 184
  Server: 
    Inference count: 736
    Execution count: 184
    Successful request count: 184
    Avg request latency: 64655 usec (overhead 0 usec + queue 14864 usec + compute 50276 usec)

  Composing models: 
  demo_colors_engine, version: 1
      Inference count: 736
      Execution count: 142
      Successful request count: 184
      Avg request latency: 13766 usec (overhead 6 usec + queue 4842 usec + compute input 57 usec + compute infer 8664 usec + compute output 197 usec)

  demo_colors_preprocess, version: 1
      Inference count: 744
      Execution count: 156
      Successful request count: 186
      Avg request latency: 43053 usec (overhead 3 usec + queue 4962 usec + compute input 77 usec + compute infer 37681 usec + compute output 328 usec)

Inferences/Second vs. Client Average Batch Latency
Concurrency: 4, throughput: 200.356 infer/sec, latency 76555 usec
"""  # noqa: E501, W291  # as it printed it


def make_program(path: Path, script: str) -> PerfAnalyzer:
    """A program in perf_analyzer's place; it notes the arguments of each run in a file beside it."""
    arguments = path.with_suffix(".log")
    path.write_text(f'#!/bin/bash\necho "$*" >> {arguments}\n{textwrap.dedent(script)}')
    path.chmod(0o755)
    return PerfAnalyzer(path, ())


def make_load(tmp_path: Path) -> Load:
    return Load("animals", "127.0.0.1:1", tmp_path / "data.json", concurrency=3, batch_size=2)


def test_latencies_come_from_the_file_and_the_steps_from_the_text() -> None:
    figures = parse_output(REPORT, PRINTED)
    assert figures.images_per_s == 200.356
    assert figures.requests == 184
    assert (figures.mean_ms, figures.p50_ms, figures.p95_ms, figures.p99_ms) == (76.555, 68.42, 155.639, 275.727)
    assert figures.stable
    assert figures.steps == {
        "demo_colors_engine": StepTimes(736 / 142, 4.842, 8.924),
        "demo_colors_preprocess": StepTimes(744 / 156, 4.962, 38.091),
    }


def test_a_model_that_is_no_ensemble_has_no_steps() -> None:
    assert parse_output(REPORT, PRINTED.partition("  Composing models:")[0]).steps == {}


@pytest.mark.parametrize(
    ("report", "printed", "message"),
    [
        (REPORT.replace("p99 latency", "p999"), PRINTED, "'p99 latency'"),
        (REPORT.replace("68420", "many"), PRINTED, "got 'many'"),
        (REPORT + REPORT.splitlines()[1], PRINTED, "one row .* got 2"),
        ("", PRINTED, "one row .* got 0"),
        (REPORT, PRINTED.replace("Request count", "Requests"), "a request count"),
        (REPORT, PRINTED.replace("queue 4842 usec + ", ""), "got them of demo_colors_preprocess in"),
        (REPORT, PRINTED.replace("Execution count: 156", ""), "got them of demo_colors_engine in"),
    ],
)
def test_what_is_missing_is_an_error_that_names_it(report: str, printed: str, message: str) -> None:
    with pytest.raises(PerfAnalyzerError, match=message):
        parse_output(report, printed)


def test_windows_have_room_for_several_requests(tmp_path: Path) -> None:
    load = make_load(tmp_path)
    assert choose_windows(Windows(1.5), load, 100.0) == Windows(1.5)
    assert choose_windows(Windows(1.5), load, 2.0) == Windows(6.0), "six requests of two images"
    many = dataclasses.replace(load, concurrency=10)
    assert choose_windows(Windows(1.5), many, 2.0) == Windows(13.0), "1.3 times the slowest answer"


def test_images_are_framed_with_their_length(tmp_path: Path) -> None:
    path = write_input_data(tmp_path / "data.json", [b"one", b"four!"], "image")
    first, second = json.loads(path.read_text())["data"]
    assert first["image"]["shape"] == [1]
    assert base64.b64decode(first["image"]["content"]["b64"]) == b"\x03\0\0\0one"
    assert base64.b64decode(second["image"]["content"]["b64"]) == b"\x05\0\0\0four!"


def test_another_server_gets_json_as_it_is(tmp_path: Path) -> None:
    path = write_payloads(tmp_path / "data.json", [{"image": "aGk="}])
    assert json.loads(path.read_text()) == {"data": [{"payload": [{"image": "aGk="}]}]}
    program = make_program(tmp_path / "analyzer", SUCCEED)
    assert program.measure(dataclasses.replace(make_load(tmp_path), path="predict"), Windows(0.5)).stable
    (arguments,) = (tmp_path / "analyzer.log").read_text().splitlines()
    assert "--service-kind openai --endpoint predict -u 127.0.0.1:1 --async" in arguments
    assert "-b 2" not in arguments


SUCCEED = f"""\
while [ "$1" != -f ]; do shift; done
cat > "$2" <<'END'
{REPORT}END
cat <<'END'
{PRINTED}END
"""


def test_windows_that_are_not_alike_are_measured_again_and_marked(tmp_path: Path) -> None:
    program = make_program(
        tmp_path / "analyzer",
        'if [[ "$*" == *"--stability-percentage 10.0 "* ]]; then\n'
        '  echo "Failed to obtain stable measurement within 6 measurement windows"; exit 2\nfi\n' + SUCCEED,
    )
    figures = program.measure(make_load(tmp_path), Windows(0.5, 10.0, 6))
    assert not figures.stable
    assert figures.images_per_s == 200.356
    stable, unstable = (tmp_path / "analyzer.log").read_text().splitlines()
    assert "--max-trials 6" in stable
    assert "--max-trials 3" in unstable
    for run in (stable, unstable):
        assert "-m animals -i grpc -u 127.0.0.1:1 --async" in run
        assert "-b 2 --concurrency-range 3 " in run
        assert "--measurement-interval 500" in run


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'error: Failed to init model inputs' >&2; exit 99", "animals: error: Failed to init model inputs"),
        ("exit 0", "failed with animals"),
        ("echo 'Failed to obtain stable measurement'; exit 2", "no answers from animals in three windows of 0.5 s"),
    ],
)
def test_failures_are_told(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(PerfAnalyzerError, match=message):
        make_program(tmp_path / "analyzer", script).measure(make_load(tmp_path), Windows(0.5))


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    program = make_program(tmp_path / "analyzer", "exec sleep 60")
    with pytest.raises(PerfAnalyzerError, match="did not finish"):
        program._run([], limit_s=0.3)


def test_what_is_not_installed_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(PerfAnalyzerError, match=r"make \.venv-bench/\.installed"):
        PerfAnalyzer.find(tmp_path)
    program = tmp_path / ".venv-bench" / "bin" / "perf_analyzer"
    program.parent.mkdir(parents=True)
    make_program(program, "echo 'libb64.so.0d: cannot open shared object file' >&2; exit 127")
    with pytest.raises(PerfAnalyzerError, match=r"libb64\.so\.0d.*make \.tools/libb64/\.installed"):
        PerfAnalyzer.find(tmp_path)
