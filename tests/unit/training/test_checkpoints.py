"""Checkpoints, pretrained weights and history, without a training."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcls.base.download import cache_path
from mlcls.errors import DownloadError, ModelFormatError, TrainingError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.training.architectures import PPLCNET_SCALES, backbone_url, find_weights, load_pretrained
from mlcls.training.checkpoint import SUFFIXES, Checkpoint, read_checkpoint, write_checkpoint
from mlcls.training.run_folder import EvaluationRow, Progress, StepRow, draw_curves, format_csv


def make_checkpoint(paddle: Any, value: float) -> Checkpoint:
    return Checkpoint(
        weights={"a": paddle.to_tensor([value])},
        average={"a": paddle.to_tensor([value + 100])},
        optimizer={"a_moment1_0": paddle.to_tensor([value])},
        states={"epoch": 3, "progress": {"epoch": 3, "step": 5}},
    )


# --- checkpoints


@pytest.mark.parametrize("publish_average", [False, True])
def test_checkpoint_and_back(paddle: Any, tmp_path: Path, publish_average: bool) -> None:
    folder = tmp_path / "latest"
    write_checkpoint(folder, make_checkpoint(paddle, 1.0), publish_average)
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"latest.{suffix}" for suffix in SUFFIXES)
    assert paddle.load(str(folder / "latest.pdparams"))["a"].item() == (101 if publish_average else 1)
    for path in (folder, folder / "latest.pdparams", folder / "latest"):
        checkpoint = read_checkpoint(path)
        assert checkpoint.weights["a"].item() == 1
        assert checkpoint.average["a"].item() == 101
        assert checkpoint.optimizer["a_moment1_0"].item() == 1
        assert checkpoint.states["progress"] == {"epoch": 3, "step": 5}


def test_a_checkpoint_that_fails_leaves_the_one_before(
    paddle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "latest"
    save = paddle.save

    def fail_at_the_end(content: Any, path: str) -> None:
        save(content, path)
        if path.endswith("pdstates"):
            raise OSError("disk")

    for value, failing in ((1.0, False), (2.0, True), (3.0, False)):
        monkeypatch.setattr(paddle, "save", fail_at_the_end if failing else save)
        with contextlib.suppress(OSError):
            write_checkpoint(folder, make_checkpoint(paddle, value))
        assert read_checkpoint(folder).weights["a"].item() == (1 if failing else value)
        assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_checkpoints_that_cannot_be_read(paddle: Any, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        write_checkpoint(tmp_path / "latest", make_checkpoint(paddle, 1.0))
        (tmp_path / "latest" / f"latest.{suffix}").unlink()
        with pytest.raises(TrainingError, match=r"resume_path: expected"):
            read_checkpoint(tmp_path / "latest")
    write_checkpoint(tmp_path / "latest", make_checkpoint(paddle, 1.0))
    paddle.save({"epoch": 3, "metric": 0.5}, str(tmp_path / "latest/latest.pdstates"))
    with pytest.raises(TrainingError, match="expected a checkpoint of mlcls, format 1, got 'another program'"):
        read_checkpoint(tmp_path / "latest")
    (tmp_path / "latest/latest.pdopt").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"Expected a part of a checkpoint\. .*latest\.pdopt: expected a file that"):
        read_checkpoint(tmp_path / "latest")
    for name in ("", "no", "no/latest.pdparams"):
        with pytest.raises(TrainingError, match=r"expected the folder of a checkpoint, .* got 0 of them"):
            read_checkpoint(tmp_path / name)


# --- pretrained weights


def make_head(paddle: Any, labels: int) -> Any:
    """A backbone and a head whose parameters are named like those of the ML-Decoder."""
    head = paddle.nn.Layer()
    head.query_pos_embed = paddle.nn.Embedding(labels, 4)
    head.group_conv = paddle.nn.Conv2D(4 * labels, labels, 1, groups=labels)
    head.input_proj = paddle.nn.Conv2D(8, 4, 1)
    network = paddle.nn.Layer()
    network.backbone = paddle.nn.Linear(16, 16)
    network.fc = head
    return network


def save(paddle: Any, state: dict[str, Any], path: Path) -> str:
    paddle.save(state, str(path))
    return str(path)


@pytest.mark.parametrize(
    ("labels", "replaced"),
    [(3, set()), (80, {"fc.query_pos_embed.weight", "fc.group_conv.weight", "fc.group_conv.bias"})],
)
def test_the_head_of_another_number_of_labels_is_left_fresh(
    paddle: Any, tmp_path: Path, labels: int, replaced: set[str]
) -> None:
    trained, network = make_head(paddle, labels), make_head(paddle, 3)
    before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    lines = load_pretrained(network, save(paddle, trained.state_dict(), tmp_path / "w.pdparams"))
    for name, tensor in network.state_dict().items():
        expected = before[name] if name in replaced else trained.state_dict()[name].numpy()
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)
    assert lines[0].endswith(f"loaded {7 - len(replaced)} of 7 parameters.")
    assert len(lines) == 1 + len(replaced)
    bias = "  fresh: fc.group_conv.bias: the file's has the shape [80], these labels need [3]"
    assert (bias in lines) == bool(replaced)


def test_a_backbone_without_the_head(paddle: Any, tmp_path: Path) -> None:
    trained, network = make_head(paddle, 3), make_head(paddle, 3)
    state = {name: value for name, value in trained.state_dict().items() if not name.startswith("fc.")}
    state["classifier.weight"] = trained.backbone.weight
    first, fresh, unused = load_pretrained(network, save(paddle, state, tmp_path / "w.pdparams"))
    assert first.endswith("loaded 2 of 7 parameters.")
    assert "fresh: 5 that the file does not have: fc.query_pos_embed.weight" in fresh
    assert "not used: 1 that the network does not have: classifier.weight" in unused


def test_weights_that_cannot_be_used(paddle: Any, tmp_path: Path) -> None:
    network = make_head(paddle, 3)
    state = make_head(paddle, 3).state_dict()
    state["backbone.weight"] = paddle.zeros([2, 16])
    with pytest.raises(TrainingError, match=r"parameter backbone\.weight has the shape \[2, 16\], expected \[16, 16\]"):
        load_pretrained(network, save(paddle, state, tmp_path / "a.pdparams"))
    with pytest.raises(TrainingError, match="expected weights of this architecture, got a file with 0 of its 7"):
        load_pretrained(network, save(paddle, {"other": paddle.zeros([2])}, tmp_path / "b.pdparams"))
    with pytest.raises(TrainingError, match=r"got .*no\.pdparams', which does not exist"):
        load_pretrained(network, str(tmp_path / "no.pdparams"))
    (tmp_path / "c.pdparams").write_bytes(b"nothing")
    with pytest.raises(ModelFormatError, match="expected a file that paddle"):
        load_pretrained(network, str(tmp_path / "c.pdparams"))


def test_weights_from_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path))
    url = "https://models.example/w.pdparams"
    cache_path(url).write_bytes(b"weights")
    assert find_weights(url) == cache_path(url)


def test_a_failed_download_says_how_to_pass_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLCLS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("mlcls.base.download.FIRST_BACKOFF_S", 0)
    with pytest.raises(DownloadError) as caught:
        find_weights("http://127.0.0.1:1/w.pdparams", "Evaluate.weight_path")
    assert "pass the file (-o Evaluate.weight_path=/path/to/w.pdparams)" in str(caught.value)
    assert "mlcls import" not in str(caught.value)


@pytest.mark.parametrize("architecture", OFFICIAL_MODELS)
def test_the_backbone_is_that_of_paddleclas(paddle: Any, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    """PaddleClas itself, told to start from pretrained weights, asks for the same URL."""
    from paddleclas.ppcls.arch import backbone
    from paddleclas.ppcls.utils import save_load

    class AskedError(Exception):
        pass

    def ask(url: str) -> None:
        raise AskedError(url)

    monkeypatch.setattr(save_load, "get_weights_path_from_url", ask)
    model = OFFICIAL_MODELS[architecture]
    scales = PPLCNET_SCALES if "LCNet" in architecture else (1.0,)
    for scale in scales:
        build = getattr(backbone, model.backbone.replace("x1_0", f"x{scale}".replace(".", "_")))
        with pytest.raises(AskedError, match=f"^{re.escape(backbone_url(architecture, scale))}$"):
            build(pretrained=True, class_num=2, **model.arch_options)


# --- history


def make_progress(rows: int) -> Progress:
    progress = Progress()
    for step in range(1, rows + 1):
        progress.loss_sum, progress.image_count = 12.0 / step, 4
        progress.close_row(step, 1e-4 / step)
        if step % 5 == 0:
            progress.evaluations.append(EvaluationRow(step, step // 5, 0.5 + step / 64, step / 64))
    return progress


def test_progress_and_back() -> None:
    progress = make_progress(7)
    progress.epoch, progress.metrics = 1, {"MultiLabelMAP": 0.5}
    state = dataclasses.asdict(progress)
    assert Progress.from_states({"progress": state}) == progress
    apart = {name: state.pop(name) for name in ("steps", "evaluations", "loss_sum", "image_count")}
    assert Progress.from_states({"progress": state, "history": apart}) == progress, "a checkpoint of version 0.1.0"


def test_tables() -> None:
    progress = make_progress(5)
    rows = list(csv.DictReader(format_csv(StepRow, progress.steps).splitlines()))
    assert [float(row["loss"]) for row in rows] == [3 / step for step in range(1, 6)]
    assert format_csv(EvaluationRow, progress.evaluations).splitlines() == [
        "step,epoch,map_weights,map_average",
        "5,1,0.578125,0.078125",
    ]


@pytest.mark.parametrize("rows", [0, 60])
def test_curves_are_a_picture(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(draw_curves(make_progress(rows), "a title"))
    with Image.open(path) as image:
        assert image.size == (880, 990)
        colors = image.convert("RGB").getcolors(1 << 20)
        assert colors is not None
        drawn = {color for _, color in colors}
    assert ((214, 39, 40) in drawn) == (rows > 0)  # the color of the loss


def test_the_legend_covers_no_curve() -> None:
    """A curve of low mAP shows as many of its pixels as one of high mAP."""
    counts = []
    for score in (0.0, 0.06, 0.12, 0.5, 1.0):
        progress = make_progress(40)
        progress.evaluations = [EvaluationRow(step, step, score, score) for step in range(1, 41)]
        with Image.open(io.BytesIO(draw_curves(progress, "a title"))) as image:
            pixels = np.asarray(image.convert("RGB"))
        counts.append(int((pixels == (255, 127, 14)).all(axis=2).sum()))  # the color of the weights, drawn last
    assert min(counts) > 0.9 * max(counts)
