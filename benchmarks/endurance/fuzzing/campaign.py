"""Send changed and good images to a real server, and check every answer against the library's own in another process.

A request is known by the seed of the run and its number.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.asking import ImageReply, Refusal, Reply, ask, connect
from benchmarks.endurance.fuzzing.image_seeds import make_good_images, make_seed_images
from benchmarks.endurance.fuzzing.mutations import mutate
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings
from mlcls.model.contract import NO_SCORE
from mlcls.model.metrics import smallest_spread
from mlcls.model.spec import ModelSpec

# Scores of an image differ by less, whether alone or in a batch, and between engines.
TOLERANCE: Final = 1e-4
# Scores of the good images differ by more from each other, so that swapped answers show.
SMALLEST_SPREAD: Final = 100 * TOLERANCE
# A slower answer counts as a hang.
DEADLINE_S: Final = 20.0
_CONCURRENCY: Final = 8
_WINDOW: Final = 64
_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of a request.

    Attributes:
        label: A good image's name, or which file was changed and how.
        data: The file.
        is_good: Whether it is a good image, whose answer is known.
    """

    label: str
    data: bytes
    is_good: bool


def plan_request(seed: int, number: int, seeds: Mapping[str, bytes], good: Mapping[str, bytes]) -> list[Item]:
    """Return the images of one request, in order.

    Args:
        seed: Seed of the run.
        number: Number of the request.
        seeds: Files to change, by name.
        good: Files to mix in, by name.
    """
    chance = random.Random(f"{seed}:{number}")
    items = [Item(*mutate(chance, seeds), is_good=False) for _ in range(chance.choice((1, 1, 2, 4, 8)))]
    for _ in range(chance.choice((0, 1, 1, 2))):
        name = chance.choice(sorted(good))
        items.insert(chance.randint(0, len(items)), Item(name, good[name], is_good=True))
    return items


def save_request(folder: Path, number: int, items: Sequence[Item]) -> Path:
    """Write the images of a request, to send them again or look at them."""
    target = folder / f"request-{number:06}"
    target.mkdir(parents=True, exist_ok=True)
    for index, item in enumerate(items):
        (target / f"{index:02}.bin").write_bytes(item.data)
    (target / "labels.txt").write_text("".join(f"{item.label}\n" for item in items), encoding="utf-8")
    return target


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The expected answer to one image.

    Attributes:
        outcome: `OK`, or the reason of the refusal.
        text: The text of the refusal.
        scores: (num_labels,) float32, unless the image is refused.
    """

    outcome: str
    text: str = ""
    scores: npt.NDArray[np.float32] | None = None


@dataclasses.dataclass
class Findings:
    """What became of a run.

    Attributes:
        requests: Number of requests.
        good: Number of good images among the changed ones.
        outcomes: Changed images by outcome: `OK` or a reason.
        slowest_s: The slowest answer.
        problems: What must not happen: crashes, hangs, wrong answers, failures.
        peak_decoding_bytes: Peak memory of the decoding processes.
    """

    requests: int = 0
    good: int = 0
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)
    slowest_s: float = 0.0
    problems: list[str] = dataclasses.field(default_factory=list)
    peak_decoding_bytes: int = 0


class ServerProcesses:
    """tritonserver and its Python processes: which have ended, and how much memory decoding took."""

    def __init__(self, pid: int) -> None:
        """Record the processes that run now, by the process id of tritonserver."""
        server = psutil.Process(pid)
        self._processes = {process: " ".join(process.cmdline()) for process in server.children(recursive=True)}
        self._processes[server] = "tritonserver"

    def find_lost(self) -> list[str]:
        """Return the command lines of the processes that have ended since the last call."""
        lost = [process for process in self._processes if not _runs(process)]
        return [self._processes.pop(process) for process in lost]

    def peak_decoding_bytes(self) -> int:
        """Return the peak memory of the decoding processes; 0 if none is left."""
        peaks = [0]
        for process in (process for process, command in self._processes.items() if "_preprocess" in command):
            if _runs(process) and (found := _PEAK.search(Path(f"/proc/{process.pid}/status").read_text())):
                peaks.append(int(found[1]) * 1024)
        return max(peaks)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Campaign:
    """One run against one model of a running server."""

    def __init__(
        self,
        url: str,
        server_pid: int,
        spec: ModelSpec,
        weights: Path,
        seed: int = 1,
        settings: ImageSettings = DEFAULT_IMAGE_SETTINGS,
    ) -> None:
        """Connect.

        Args:
            url: `host:port` of the gRPC API.
            server_pid: Process id of tritonserver.
            spec: The model's spec.
            weights: Its ONNX file.
            seed: The same seed sends the same images.
            settings: The model's image settings.
        """
        self._client, self._spec, self._seed = connect(url), spec, seed
        self._judging = (spec.to_json(), str(weights), settings)
        self._judge: ProcessPoolExecutor | None = None
        self._processes = ServerProcesses(server_pid)
        self._seeds, self._good = make_seed_images(), make_good_images()
        self.next_request = 0

    def plan(self, number: int) -> list[Item]:
        """Return the images of one request."""
        return plan_request(self._seed, number, self._seeds, self._good)

    def run(
        self,
        images: int,
        problems: Path,
        first: int = 0,
        seconds: float = float("inf"),
        progress: Callable[[int], object] = lambda images: None,
    ) -> Findings:
        """Send requests until the wanted number of changed images is reached.

        Args:
            images: Number of changed images.
            problems: Folder for the images of requests with problems.
            first: Number of the first request; `next_request` has the one to continue with after an interruption.
            seconds: The run ends after this time, whatever the number of images.
            progress: Called with the number of changed images after each window of requests.

        Raises:
            ValueError: The library refuses the good images, or this model cannot tell them apart.
        """
        findings, began = Findings(), time.monotonic()
        references = self._judge_good_images()
        self.next_request = first
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            while findings.outcomes.total() < images and time.monotonic() - began < seconds:
                numbers = range(self.next_request, self.next_request + _WINDOW)
                plans = [self.plan(number) for number in numbers]
                before = findings.outcomes.total()
                for number, items, (reply, answer_s) in zip(numbers, plans, pool.map(self._ask, plans), strict=True):
                    if found := self._examine(items, reply, references, findings):
                        findings.problems += [f"request {number}: {text}" for text in found]
                        save_request(problems, number, items)
                    findings.requests += 1
                    findings.slowest_s = max(findings.slowest_s, answer_s)
                self.next_request = numbers.stop
                if lost := self._processes.find_lost():
                    text = (
                        f"crash: {', '.join(lost)} ended while requests {numbers.start} to {numbers.stop - 1} were sent"
                    )
                    findings.problems.append(text)
                    for number, items in zip(numbers, plans, strict=True):
                        save_request(problems, number, items)
                    if "tritonserver" in lost:
                        break
                progress(findings.outcomes.total() - before)
        findings.peak_decoding_bytes = self._processes.peak_decoding_bytes()
        if self._judge is not None:
            self._judge.shutdown(cancel_futures=True)
        return findings

    def _ask(self, items: Sequence[Item]) -> tuple[Reply, float]:
        began = time.monotonic()
        reply = ask(self._client, self._spec.name, [item.data for item in items], timeout_s=DEADLINE_S)
        return reply, time.monotonic() - began

    def _examine(
        self, items: Sequence[Item], reply: Reply, references: Mapping[str, Verdict], findings: Findings
    ) -> list[str]:
        """Count the images of a request by outcome, and return what is wrong with its answer."""
        changed = [item.data for item in items if not item.is_good]
        findings.good += len(items) - len(changed)
        verdicts = self._decide(changed)
        if isinstance(verdicts, str):
            findings.outcomes["unknown"] += len(changed)
            return [f"crash: {verdicts}"]
        findings.outcomes.update(verdict.outcome for verdict in verdicts)
        if isinstance(reply, Refusal) and reply.code != "INVALID_ARGUMENT":
            kind = "hang" if reply.code == "DEADLINE_EXCEEDED" else "failure"
            return [f"{kind}: {reply.code}: {reply.message[:300]}"]
        remaining = iter(verdicts)
        expected = [references[item.label] if item.is_good else next(remaining) for item in items]
        return [f"wrong answer: {text}" for text in compare(items, expected, reply)]

    def _judge_good_images(self) -> dict[str, Verdict]:
        verdicts = self._decide(list(self._good.values()))
        if isinstance(verdicts, str) or any(verdict.scores is None for verdict in verdicts):
            raise ValueError(f"Expected the good images to be accepted, got {verdicts}.")
        spread = smallest_spread(np.stack([verdict.scores for verdict in verdicts if verdict.scores is not None]))
        if spread < SMALLEST_SPREAD:
            raise ValueError(
                f"Expected scores of the good images that differ by {SMALLEST_SPREAD:g} or more, got {spread:g}: with "
                "this model, swapped answers would not show."
            )
        return dict(zip(self._good, verdicts, strict=True))

    def _decide(self, images: Sequence[bytes]) -> list[Verdict] | str:
        """Return what the library makes of images in another process, or why it makes nothing of them."""
        if self._judge is None:
            context = multiprocessing.get_context("spawn")
            self._judge = ProcessPoolExecutor(1, context, _prepare_judge, self._judging)
        try:
            return self._judge.submit(_judge, list(images)).result()
        except BrokenProcessPool:
            self._judge = None
            return "the process that decodes these images without the server ended"
        except Exception as error:
            return f"decoding these images without the server raised {type(error).__name__}: {error}"


def compare(items: Sequence[Item], expected: Sequence[Verdict], reply: Reply) -> list[str]:
    """Return what is wrong with an answer, one text per image."""
    if all(verdict.scores is None for verdict in expected):
        first = expected[0].text
        wanted = first if len(items) == 1 else f"none of the {len(items)} images can be decoded; the first: {first}"
        if not isinstance(reply, Refusal) or wanted not in reply.message:
            return [f"expected the request to be refused with {wanted!r}, got {reply!r}"]
        return []
    if isinstance(reply, Refusal) or len(reply) != len(items):
        return [f"expected rows for {len(items)} images, got {reply!r}"]
    rows = zip(items, expected, reply, strict=True)
    return [f"{item.label}: {text}" for item, verdict, row in rows if (text := _compare_row(verdict, row))]


def _compare_row(verdict: Verdict, row: ImageReply) -> str | None:
    wanted = "OK" if verdict.scores is not None else verdict.text
    if row.status != wanted:
        return f"expected the status {wanted!r}, got {row.status!r}"
    if verdict.scores is None:
        has_none = row.scores is not None and (row.scores == NO_SCORE).all()
        return None if has_none else f"expected no scores, got {row.scores}"
    if row.scores is None or not np.abs(row.scores - verdict.scores).max() <= TOLERANCE:  # NaN differs
        return f"expected the scores {verdict.scores}, got {row.scores}"
    return None


# In the process that judges: the spec, the runner and the settings.
_model: dict[str, Any] = {}


def _prepare_judge(spec: str, weights: str, settings: ImageSettings) -> None:
    import cv2

    from mlcls.engines.runners import OpenVinoRunner

    cv2.setNumThreads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng, libjpeg and cv2 complain there about each image
    _model["settings"], _model["spec"] = settings, ModelSpec.from_json(spec)
    _model["runner"] = OpenVinoRunner(Path(weights), _model["spec"])


def _judge(images: list[bytes]) -> list[Verdict]:
    from mlcls.errors import ImageError
    from mlcls.images.transforms import preprocess

    verdicts = []
    for image in images:
        try:
            pixels = preprocess(image, _model["spec"].transform, _model["settings"])
        except ImageError as error:
            verdicts.append(Verdict(error.reason, str(error)))
        else:
            verdicts.append(Verdict("OK", scores=_model["runner"].scores(pixels[None])[0]))
    return verdicts
