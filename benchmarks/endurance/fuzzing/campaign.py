"""Sends changed and good images to a real server and holds every answer against what it has to be."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.endurance.fuzzing.image_seeds import make_good_images, make_seed_images
from benchmarks.endurance.fuzzing.judge import Judge, Verdict
from benchmarks.endurance.fuzzing.processes import ServerProcesses
from benchmarks.endurance.fuzzing.record import Journal, Problem, RequestRecord, save_request
from benchmarks.endurance.fuzzing.requests import Item, plan_request
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.model.contract import TENSORS
from mlcls.model.metrics import smallest_spread
from mlcls.model.spec import ModelSpec

# Scores of one image, alone and in a batch, on one engine or the other, differ by less.
TOLERANCE: Final = 1e-4
# Good images differ from each other by more, so that exchanged answers show.
SMALLEST_SPREAD: Final = 100 * TOLERANCE
_WINDOW: Final = 64


@dataclasses.dataclass(frozen=True)
class CampaignOptions:
    """How much is sent, and how.

    Attributes:
        images: Changed images.
        seed: The same seed sends the same.
        seconds: The run ends after this time, however many there were; None for no limit.
        concurrency: Requests at once.
        deadline_s: An answer that takes longer is a hang.
        settings: What images the model accepts.
    """

    images: int
    seed: int = 1
    seconds: float | None = None
    concurrency: int = 8
    deadline_s: float = 20.0
    settings: ImageSettings = DEFAULT_IMAGE_SETTINGS


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the server said: rows, or the text of a refusal, or what went wrong."""

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
            spec: The model's.
            weights: Its ONNX file.
            options: What is sent.
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
        """Send until there were enough images.

        Args:
            journal: Has the requests that were sent before; gets the others.
            problems: Folder for the images of requests with problems.
            progress: Called with the number of changed images after each window of requests.

        Returns:
            The highest memory, in bytes, that one of the processes which decode has ever used.

        Raises:
            ValueError: The good images are not accepted, or this model cannot tell them apart.
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
            raise ValueError(f"The good images are expected to be accepted, got {verdicts}.")
        spread = smallest_spread(np.stack([verdict.scores for verdict in verdicts if verdict.scores is not None]))
        if spread < SMALLEST_SPREAD:
            raise ValueError(
                f"Expected scores of the good images that differ by {SMALLEST_SPREAD:g} or more, got {spread:g}: with "
                "this model exchanged answers would not show."
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
    """Return what is wrong with an answer, a text for each image."""
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
