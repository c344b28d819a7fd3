"""Send changed and good images to a real server and check every answer."""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.endurance.fuzzing.image_seeds import make_good_images, make_seed_images
from benchmarks.endurance.fuzzing.judge import Judge, Verdict
from benchmarks.endurance.fuzzing.requests import Item, Journal, Problem, RequestRecord, plan_request, save_request
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.model.contract import TENSORS
from mlcls.model.metrics import smallest_spread
from mlcls.model.spec import ModelSpec

_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)

# Scores of an image differ by less, whether alone or in a batch, and between engines.
TOLERANCE: Final = 1e-4
# Scores of the good images differ by more from each other, so that swapped answers show.
SMALLEST_SPREAD: Final = 100 * TOLERANCE
_WINDOW: Final = 64


class ServerProcesses:
    """tritonserver and its Python processes: which have ended, and how much memory they used."""

    def __init__(self, pid: int, model: str) -> None:
        """Record the processes that run now.

        Args:
            pid: Process id of tritonserver.
            model: The ensemble's name.
        """
        self._server = psutil.Process(pid)
        self._names = {process.pid: _describe(process) for process in self.descendants()}
        self._decoding = {pid for pid, name in self._names.items() if name.startswith(f"{model}_preprocess")}

    def descendants(self) -> list[psutil.Process]:
        """Return all descendants of tritonserver."""
        return list(self._server.children(recursive=True))

    def is_server_alive(self) -> bool:
        """Return whether tritonserver is running."""
        return bool(self._server.is_running() and self._server.status() != psutil.STATUS_ZOMBIE)

    def find_lost(self) -> list[str]:
        """Return the names of the processes that have ended since the last call."""
        if not self.is_server_alive():
            return ["tritonserver"]
        alive = {process.pid for process in self.descendants() if _runs(process)}
        lost = [self._names.pop(pid) for pid in sorted(set(self._names) - alive)]
        self._names |= {pid: _describe(psutil.Process(pid)) for pid in alive - set(self._names)}
        return lost

    def peak_decoding_bytes(self) -> int:
        """Return the peak memory of the decoding processes."""
        peaks = []
        for pid in self._decoding:
            try:
                found = _PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
            except FileNotFoundError:
                continue
            peaks.append(int(found[1]) * 1024 if found else 0)
        return max(peaks, default=0)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    """Return the instance of a Python stub (`NAME_preprocess_0_0`, its last argument but one), or the process id."""
    try:
        arguments = process.cmdline()
    except psutil.NoSuchProcess:
        return "a process"
    is_stub = len(arguments) > 2 and arguments[0].endswith("triton_python_backend_stub")
    return str(arguments[-2] if is_stub else process.pid)


@dataclasses.dataclass(frozen=True)
class CampaignOptions:
    """How much is sent, and how.

    Attributes:
        images: Number of changed images.
        seed: The same seed sends the same images.
        seconds: The run ends after this time, whatever the number of images; None for no limit.
        concurrency: Requests in flight.
        deadline_s: A slower answer counts as a hang.
        settings: The model's image settings.
    """

    images: int
    seed: int = 1
    seconds: float | None = None
    concurrency: int = 8
    deadline_s: float = 20.0
    settings: ImageSettings = DEFAULT_IMAGE_SETTINGS


@dataclasses.dataclass(frozen=True)
class Answer:
    """The server's answer: rows, or the text of a refusal, or a problem."""

    seconds: float
    statuses: tuple[str, ...] = ()
    scores: npt.NDArray[np.float32] | None = None
    refusal: str | None = None
    problem: Problem | None = None


class Campaign:
    """One run against one model of a running server."""

    def __init__(self, url: str, server_pid: int, spec: ModelSpec, weights: Path, options: CampaignOptions) -> None:
        """Connect.

        Args:
            url: `host:port` of the gRPC API.
            server_pid: Process id of tritonserver.
            spec: The model's spec.
            weights: Its ONNX file.
            options: What to send.
        """
        import tritonclient.grpc as triton

        self._triton: Any = triton
        self._client = triton.InferenceServerClient(url, channel_args=[("grpc.enable_http_proxy", 0)])
        self._spec = spec
        self._options = options
        self._judge = Judge(spec, weights, options.settings)
        self._processes = ServerProcesses(server_pid, spec.name)
        self._seeds, self._good = make_seed_images(), make_good_images()
        self._references: dict[str, Verdict] = {}

    def run(self, journal: Journal, problems: Path, progress: Callable[[int], None] = lambda images: None) -> int:
        """Send requests until the wanted number of images is reached.

        Args:
            journal: The requests sent before; the new ones are added to it.
            problems: Folder for the images of requests with problems.
            progress: Called with the number of changed images after each window of requests.

        Returns:
            The peak memory of the decoding processes, in bytes.

        Raises:
            ValueError: The server would not accept the good images, or this model cannot tell them apart.
        """
        began = time.monotonic()
        sent = {record.number for record in journal.records}
        images = sum(record.images for record in journal.records)
        number = 0
        with self._judge, ThreadPoolExecutor(self._options.concurrency) as pool:
            self._references = self._judge_good_images()
            while images < self._options.images and not self._is_over(began):
                numbers: list[int] = []
                while len(numbers) < _WINDOW:
                    if number not in sent:
                        numbers.append(number)
                    number += 1
                plans = [self.plan(each) for each in numbers]
                answers = list(pool.map(self._ask, plans))
                records = [
                    self._examine(each, plan, answer)
                    for each, plan, answer in zip(numbers, plans, answers, strict=True)
                ]
                lost = self._processes.find_lost()
                if lost:
                    text = f"{', '.join(lost)} ended while requests {numbers[0]} to {numbers[-1]} were sent"
                    records[0] = dataclasses.replace(
                        records[0], problems=(*records[0].problems, Problem("crash", text))
                    )
                for record, plan in zip(records, plans, strict=True):
                    if lost or record.problems:
                        save_request(problems, record.number, plan)
                journal.add(records)
                window = sum(record.images for record in records)
                images += window
                progress(window)
                if lost and not self._processes.is_server_alive():
                    break
        return self._processes.peak_decoding_bytes()

    def plan(self, number: int) -> list[Item]:
        """Return the images of one request."""
        return plan_request(self._options.seed, number, self._seeds, self._good)

    def _is_over(self, began: float) -> bool:
        return self._options.seconds is not None and time.monotonic() - began > self._options.seconds

    def _judge_good_images(self) -> dict[str, Verdict]:
        verdicts = self._judge.judge(list(self._good.values()))
        if isinstance(verdicts, str) or any(verdict.scores is None for verdict in verdicts):
            raise ValueError(f"Expected the good images to be accepted, got {verdicts}.")
        spread = smallest_spread(np.stack([verdict.scores for verdict in verdicts if verdict.scores is not None]))
        if spread < SMALLEST_SPREAD:
            raise ValueError(
                f"Expected scores of the good images that differ by {SMALLEST_SPREAD:g} or more, got {spread:g}: with "
                "this model, swapped answers would not show."
            )
        return dict(zip(self._good, verdicts, strict=True))

    def _ask(self, items: Sequence[Item]) -> Answer:
        triton, names = self._triton, TENSORS
        tensor = triton.InferInput(names.image, [len(items), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([item.data for item in items], dtype=np.object_).reshape(-1, 1))
        began = time.monotonic()
        try:
            answer = self._client.infer(self._spec.name, [tensor], client_timeout=self._options.deadline_s)
        except triton.InferenceServerException as error:
            seconds = time.monotonic() - began
            status = error.status()
            if status == "StatusCode.INVALID_ARGUMENT":
                return Answer(seconds, refusal=error.message())
            kind = "hang" if status == "StatusCode.DEADLINE_EXCEEDED" else "failure"
            return Answer(seconds, problem=Problem(kind, f"{status}: {error.message()[:300]}"))
        seconds = time.monotonic() - began
        statuses = tuple(text.decode() for text in answer.as_numpy(names.status).ravel())
        return Answer(seconds, statuses, answer.as_numpy(names.scores))

    def _examine(self, number: int, items: Sequence[Item], answer: Answer) -> RequestRecord:
        good = sum(item.is_good for item in items)
        changed = [item.data for item in items if not item.is_good]
        verdicts = self._judge.judge(changed)
        if isinstance(verdicts, str):
            return RequestRecord(number, {"unknown": len(changed)}, good, answer.seconds, (Problem("crash", verdicts),))
        outcomes = dict(Counter(verdict.outcome for verdict in verdicts))
        if answer.problem is not None:
            return RequestRecord(number, outcomes, good, answer.seconds, (answer.problem,))
        remaining = iter(verdicts)
        expected = [self._references[item.label] if item.is_good else next(remaining) for item in items]
        problems = tuple(Problem("wrong answer", text) for text in compare(items, expected, answer))
        return RequestRecord(number, outcomes, good, round(answer.seconds, 4), problems)


def compare(items: Sequence[Item], expected: Sequence[Verdict], answer: Answer) -> list[str]:
    """Return what is wrong with an answer, one text per image."""
    if all(verdict.scores is None for verdict in expected):
        first = expected[0].text
        wanted = first if len(items) == 1 else f"none of the {len(items)} images can be decoded; the first: {first}"
        if answer.refusal is None or wanted not in answer.refusal:
            return [f"expected the request to be refused with {wanted!r}, got {answer.refusal or answer.statuses!r}"]
        return []
    if answer.refusal is not None or answer.scores is None or len(answer.scores) != len(items):
        return [f"expected rows for {len(items)} images, got {answer.refusal!r}"]
    rows = zip(items, expected, answer.statuses, answer.scores, strict=True)
    return [
        f"{item.label}: {text}" for item, verdict, status, row in rows if (text := _compare_row(verdict, status, row))
    ]


def _compare_row(verdict: Verdict, status: str, row: npt.NDArray[np.float32]) -> str | None:
    if verdict.scores is None:
        if status != verdict.text:
            return f"expected the status {verdict.text!r}, got {status!r}"
        return None if np.isnan(row).all() else f"expected no scores, got {row}"
    if status != "OK":
        return f"expected the status 'OK', got {status!r}"
    if not np.isfinite(row).all() or np.abs(row - verdict.scores).max() > TOLERANCE:
        return f"expected the scores {verdict.scores}, got {row}"
    return None
