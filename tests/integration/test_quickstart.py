"""The two commands that a newcomer runs: the quick start, and `mlcls predict` against a running server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from demo.colors import COLORS
from mlcls.server.process import TritonServer
from support.processes import ROOT, run_mlcls
from support.served_models import SMALL_LABELS

QUICKSTART = (sys.executable, "-m", "scripts.quickstart")


def test_quickstart_without_network_names_the_colors_of_a_picture_with_the_demo_model(tmp_path: Path) -> None:
    photo = tmp_path / "half.png"
    halves = np.concatenate([np.full((120, 80, 3), color, np.uint8) for color in ((30, 150, 40), (250, 250, 250))], 1)
    Image.fromarray(halves).save(photo)
    process = subprocess.run(
        [*QUICKSTART, photo, "--work", tmp_path / "w", "--output", tmp_path / "o"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
    )
    assert process.returncode == 0, process.stderr
    assert "Going on with the demo model." in process.stdout
    (answer,) = (line for line in process.stdout.splitlines() if line.startswith(str(photo)) or photo.name in line)
    assert set(COLORS) & set(answer.replace(",", " ").split()) == {"green", "white"}
    (annotated,) = (tmp_path / "o").iterdir()
    with Image.open(photo) as before, Image.open(annotated) as after:
        assert after.width >= before.width
        assert after.height > before.height, "there is a caption"


def test_quickstart_names_a_photo_that_does_not_exist(tmp_path: Path) -> None:
    process = subprocess.run(
        [*QUICKSTART, tmp_path / "nothing.jpg", "--work", tmp_path / "w"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1
    assert process.stderr == (
        f"quickstart: Expected a photo or a folder of photos, got {tmp_path / 'nothing.jpg'}, which does not exist.\n"
    )
    assert not (tmp_path / "w").exists()


def test_predict_prints_json_saves_pictures_and_fails_for_the_bad_image_alone(
    small_server: TritonServer, sample_images: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    images = [sample_images[0], bad, sample_images[1]]
    process = run_mlcls(
        "predict", "small_with_sigmoid", *images, "--url", small_server.grpc_url, "--threshold", "0", "--json",
        "--save", tmp_path / "output", "--batch-size", "2",
    )  # fmt: skip
    assert process.returncode == 1
    assert "got text (8 bytes" in process.stderr
    answers = [json.loads(line) for line in process.stdout.splitlines()]
    assert [answer["input_path"] for answer in answers] == [str(image) for image in images]
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert set(answers[0]["label_names"]) == set(SMALL_LABELS)
    assert len(list((tmp_path / "output").iterdir())) == 2


def test_predict_without_a_server_ends_with_its_own_exit_code(sample_images: list[Path]) -> None:
    process = run_mlcls("predict", "small_with_sigmoid", sample_images[0], "--url", "127.0.0.1:9")
    assert process.returncode == 3
    assert len(process.stderr.splitlines()) == 1
