"""`mlcls tune` with real servers: what it measures, what it writes, and what an interrupt leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.usage import read_usage
from mlcls.images.photos import sample_photo_paths
from mlcls.repository.configurations import require_fresh
from mlcls.repository.models import Repository
from mlcls.repository.settings import DEFAULT_SETTINGS, ServingSettings
from mlcls.repository.triton_config import parse_config
from support.dataset_samples import read_tree
from support.processes import run_mlcls, start_server
from support.triton_request import ask

NAME = "small_with_sigmoid"


@pytest.mark.slow
def test_what_is_found_is_served(root: Path) -> None:
    options = ["--minutes", "1.2", "--p99-ms", "5000", "--concurrency", "2"]
    tuned = run_mlcls("tune", NAME, "--repository", root, *options)
    assert tuned.returncode == 0, tuned.stderr
    report = json.loads((root / NAME / "tuning_embedded.json").read_text())
    assert (root / NAME / "tuning_embedded.png").read_bytes().startswith(b"\x89PNG")
    settings = Repository(root).settings(NAME)
    chosen = settings.targets["embedded"]
    assert settings.tuned["embedded"].report == "tuning_embedded.json"
    assert str(chosen) in tuned.stdout
    assert len(report["candidates"]) >= 2, "nothing was compared"
    spec = Repository(root).active(NAME).spec
    require_fresh(Repository(root).active(spec.name))

    # other settings than the defaults, whatever was found: they are what runs
    path = root / NAME / "serving.json"
    document = json.loads(path.read_text())
    document["targets"]["embedded"] |= {"preprocess_instances": 3, "engine_instances": 2, "engine_threads": 1}
    path.write_text(json.dumps(document))
    assert run_mlcls("repository", "--repository", root).returncode == 0
    assert Repository(root).settings(NAME).of("embedded") == ServingSettings(3, 2, 1)
    engine = parse_config((root / f"{NAME}_engine" / "config.pbtxt").read_text())
    assert engine.instance_group[0].count == 2
    with start_server(root, NAME) as server:
        processes = [process.name for process in read_usage(server.pid).values()]
        assert processes.count(f"{NAME}_preprocess") == 3
        assert processes.count(f"{NAME}_engine") == 2
        assert ask(server, NAME, [sample_photo_paths()[0].read_bytes()]).statuses == ["OK"]

    assert run_mlcls("tune", NAME, "--repository", root, "--reset").returncode == 0
    assert not path.exists()
    assert Repository(root).settings(NAME).of("embedded") == DEFAULT_SETTINGS["embedded"]
    assert not list((root / NAME).glob("tuning_*"))
    require_fresh(Repository(root).active(spec.name))


def test_too_little_time_changes_nothing(root: Path, tmp_path: Path) -> None:
    before = read_tree(root)
    options = ["--minutes", "0.02", "--concurrency", "1", "--output", str(tmp_path / "report")]
    failed = run_mlcls("tune", NAME, "--repository", root, *options)
    assert failed.returncode == 1
    assert "Expected time for at least two turns of two candidates, got less" in failed.stderr
    assert read_tree(root) == before
    (measured,) = json.loads((tmp_path / "report" / "tuning_embedded.json").read_text())["candidates"]
    assert measured["settings"]["preprocess_instances"] == 2


def test_an_interrupt_changes_nothing_and_leaves_no_server(root: Path, tmp_path: Path) -> None:
    before = read_tree(root)
    command = [sys.executable, "-m", "mlcls.cli", "tune", NAME, "--repository", str(root), "--minutes", "10"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "report")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while not (server := _find_server(process.pid)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    assert read_tree(root) == before
    for pid in server:
        assert not Path(f"/proc/{pid}").exists()


def _find_server(pid: int) -> list[str]:
    found = subprocess.run(["pgrep", "-P", str(pid), "-x", "tritonserver"], capture_output=True, text=True)
    return found.stdout.split()
