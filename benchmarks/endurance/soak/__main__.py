"""Soak run: `mlcls serve --supervise` under steady load while faults are injected: `make soak`.

The server has the demo model under two names and gets requests at a steady share of the rate that it was measured to
sustain. Each answer is compared with a reference that ONNX Runtime computed outside the server. The run fails if an
answer is wrong, if a request is lost (neither answer nor error), or if one is refused for a whole minute of tries.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks.endurance.soak.faults import FAULTS, Victims, plan_faults
from benchmarks.endurance.soak.load import Photo, SoakLoad
from benchmarks.endurance.soak.report import FaultRecord, SoakRecord, describe, draw, find_failures, summarize
from benchmarks.endurance.supervised_server import SupervisedServer
from benchmarks.machine import describe_machine
from mlcls.base.files import write_text
from mlcls.engines.runners import DecodingRunner, OnnxRuntimeRunner
from mlcls.errors import MlclsError
from mlcls.images.photos import photo_images
from mlcls.model.postprocess import select_labels
from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.repository.names import ONNX_FILE

_ROOT: Final = Path(__file__).resolve().parents[3]
MODELS: Final = ("demo_a", "demo_b")
_PHOTOS: Final = 48
_MEASURE_S: Final = 20.0
_MEMORY_INTERVAL_S: Final = 5.0


def main() -> int:
    """Parse the arguments, run, and write summary.json, soak.png and the server's log."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=35.0, help="length of the load (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=2 * len(FAULTS), help="number of faults (default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.65, help="share of the measured rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of faults and load (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=_ROOT / "output" / "soak", help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mlcls-soak-") as folder:
            record = run_soak(arguments, Path(folder))
    except MlclsError as error:
        print(f"soak: {error}", file=sys.stderr)
        return error.exit_code
    about = {"machine": describe_machine(), "seed": arguments.seed, "models": MODELS}
    summary = summarize(record, json.loads(json.dumps(about, default=str)))
    write_text(arguments.output / "summary.json", json.dumps(summary, indent=2) + "\n")
    draw(record, arguments.output / "soak.png")
    print(describe(summary))
    failures = find_failures(summary)
    print("\n".join(f"FAILED: {failure}" for failure in failures) or "Passed.")
    return 1 if failures else 0


def run_soak(arguments: argparse.Namespace, folder: Path) -> SoakRecord:
    """Create the repository, serve it, send the load and inject the faults."""
    repository = folder / "model_repository"
    for name in MODELS:
        import_model(str(_ROOT / "demo_model" / "inference"), Repository(repository), name=name)
    photos = make_photos(repository)
    log = arguments.output / "serve.log"
    log.unlink(missing_ok=True)
    restarts = ("--max-restarts", "1000000")
    memory: list[tuple[float, int]] = []
    faults: list[FaultRecord] = []
    with SupervisedServer(repository, MODELS, log, restarts) as server:
        sustainable = measure(server, photos, arguments.seed)
        rate = arguments.share * sustainable
        plan = plan_faults(arguments.minutes * 60, arguments.faults, arguments.seed)
        with SoakLoad(server.grpc_url, photos, MODELS, rate, arguments.seed) as load:
            begin_s = time.monotonic()
            ended = threading.Event()
            victims = Victims(server, repository, MODELS, random.Random(arguments.seed))
            worker = threading.Thread(target=do_faults, args=(victims, plan, begin_s, faults, ended))
            worker.start()
            watch(arguments.minutes * 60, begin_s, server, load, faults, memory)
            ended.set()
            worker.join()
        end_s = time.monotonic()
    return SoakRecord(
        begin_s, end_s, rate, sustainable, load.sent, load.outcomes, load.errors, faults, memory, server.exit_status
    )


def make_photos(repository: Path) -> list[Photo]:
    """Return photos with the references of both models; the demo model names colors, so the answers differ."""
    images = photo_images((), _PHOTOS)
    scores, results = {}, {}
    for name in MODELS:
        spec = Repository(repository).active(name).spec
        runner = DecodingRunner(
            OnnxRuntimeRunner(Repository(repository).active(name).engine_folder / ONNX_FILE, spec), spec
        )
        scores[name] = runner.scores(list(images))
        thresholds = np.asarray(spec.thresholds, np.float32)
        results[name] = [select_labels(row, thresholds, spec.labels)["label_names"] for row in scores[name]]
    return [
        Photo(
            image,
            {name: scores[name][index] for name in MODELS},
            {name: results[name][index] for name in MODELS},
        )
        for index, image in enumerate(images)
    ]


def measure(server: SupervisedServer, photos: Sequence[Photo], seed: int) -> float:
    """Return the requests per second of a closed loop."""
    with SoakLoad(server.grpc_url, photos, MODELS, 0.0, seed) as load:
        time.sleep(_MEASURE_S / 4)
        before, begin_s = len(load.outcomes), time.monotonic()
        time.sleep(_MEASURE_S)
        return (len(load.outcomes) - before) / (time.monotonic() - begin_s)


def do_faults(
    victims: Victims,
    plan: Sequence[tuple[float, str]],
    begin_s: float,
    done: list[FaultRecord],
    ended: threading.Event,
) -> None:
    """Inject each fault at its time."""
    for at_s, name in plan:
        if ended.wait(max(0.0, begin_s + at_s - time.monotonic())):
            return
        done.append(FaultRecord(name, time.monotonic()))
        try:
            FAULTS[name](victims)
        except (IndexError, StopIteration, psutil.Error) as error:  # no process to hit: the last fault is not over
            tqdm.write(f"{name}: skipped: {error!r}")
            done.pop()


def watch(
    duration_s: float,
    begin_s: float,
    server: SupervisedServer,
    load: SoakLoad,
    faults: Sequence[FaultRecord],
    memory: list[tuple[float, int]],
) -> None:
    """Record the memory and show the progress."""
    bar_format = "{l_bar}{bar}| {n:.0f}/{total:.0f} s {postfix}"
    with tqdm(total=duration_s, bar_format=bar_format, mininterval=5) as bar:
        while (elapsed_s := time.monotonic() - begin_s) < duration_s:
            counts = load.count()
            last = faults[-1].name if faults else "none yet"
            bar.set_postfix_str(f"{dict(counts)}, faults {len(faults)}, last: {last}")
            bar.update(elapsed_s - bar.n)
            if server.is_running:
                memory.append((time.monotonic(), server.memory_bytes()))
            time.sleep(min(_MEMORY_INTERVAL_S, max(0.0, duration_s - elapsed_s)))


if __name__ == "__main__":
    sys.exit(main())
