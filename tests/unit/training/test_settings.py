"""Settings of a training: what is accepted, and what each wrong value is told."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

import mlcls
from mlcls.errors import MlclsError, TrainingError
from mlcls.training.optimization import cosine_rate
from mlcls.training.settings import Device, TrainSettings
from mlcls.training.train import train_model

MODEL = "PP-LCNet_x1_0_ML"


def test_defaults_are_the_recipe() -> None:
    settings = TrainSettings(MODEL, Path("dataset"))
    assert (settings.peak_learning_rate, settings.weight_decay, settings.ema_decay) == (1e-4, 1e-4, 0.9997)
    assert TrainSettings("CLIP_vit_base_patch16_448_ML", Path("dataset")).peak_learning_rate == 5e-5
    assert TrainSettings(MODEL, Path("dataset"), learning_rate=0.01).peak_learning_rate == 0.01
    assert (settings.transform.height, settings.transform.width) == (448, 448)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs_iters": 0}, "Train.epochs_iters: expected int >= 1, got 0"),
        ({"batch_size": 2.5}, "Train.batch_size: expected int, got 2.5"),
        ({"learning_rate": "0.1"}, "Train.learning_rate: expected float | null, got '0.1'"),
        ({"learning_rate": math.nan}, "Train.learning_rate: expected float > 0.0, got nan"),
        ({"ema_decay": 1}, "Train.ema_decay: expected float < 1.0, got 1"),
        ({"amp": "yes"}, "Train.amp: expected one of O1, O2, OFF, got 'yes'"),
        ({"dy2st": True}, "Train.dy2st: expected false, got true; mlcls does not compile"),
        ({"pretrain_weight_path": 3}, "Train.pretrain_weight_path: expected bool | str | null, got 3"),
        ({"image_size": (16, 64)}, "Train.image_size: expected height and width of at least 32, got 16, 64"),
        ({"image_size": (64, 64, 3)}, "Train.image_size: expected array of length 2"),
        ({"resume_path": 3}, "Train.resume_path: expected str | null, got 3"),
        ({"decoder_width": 100}, "Train.decoder_width: expected int that's a multiple of 24, got 100"),
        ({"decoder_width": 0}, "Train.decoder_width: expected int >= 24, got 0"),
        ({"gradient_clip": -1}, "Train.gradient_clip: expected float >= 0.0, got -1"),
        ({"device": "tpu"}, "Global.device: expected cpu, gpu:0 or gpu:0,1"),
        ({"device": "gpu:0,0"}, "Global.device: expected cpu, gpu:0 or gpu:0,1 with each number once"),
        ({"lerning_rate": 1}, "unknown key Train.lerning_rate; expected only num_classes"),
        ({"model": "AlexNet"}, "not one of the six"),
        ({"backbone_scale": 0.4}, "Train.backbone_scale: expected 0.25 or 0.35 or 0.5 or 0.75 or 1.0"),
        (
            {"model": "ResNet50_ML", "backbone_scale": 0.5},
            "Train.backbone_scale: expected 1.0 for ResNet50_ML, got 0.5",
        ),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    """No value reaches a training, by whatever way it comes."""
    with pytest.raises(MlclsError) as caught:
        mlcls.train(**{"model": MODEL, "dataset": "dataset", **values})
    assert message in str(caught.value)


def test_the_trainer_checks_the_values_of_a_program() -> None:
    with pytest.raises(TrainingError, match=r"Train\.epochs_iters: expected int >= 1, got 0"):
        train_model(TrainSettings(MODEL, Path("dataset"), epochs_iters=0))


@pytest.mark.parametrize(
    ("text", "kind", "ids"),
    [("cpu", "cpu", ()), ("gpu", "gpu", ()), ("gpu:3", "gpu", (3,)), ("gpu:0,1", "gpu", (0, 1))],
)
def test_devices(text: str, kind: str, ids: tuple[int, ...]) -> None:
    device = Device.parse(text)
    assert device == Device(kind, ids)
    assert str(device) == text
    assert device.process_count == max(1, len(ids))


@pytest.mark.parametrize(("written", "amp"), [(True, "O1"), (False, "OFF"), ("O1", "O1"), ("O2", "O2"), ("OFF", "OFF")])
def test_mixed_precision_in_each_spelling(written: bool | str, amp: str) -> None:
    config: dict[str, dict[str, Any]] = {
        "Global": {"model": MODEL, "dataset_dir": "d"},
        "Train": {"amp": written, "dy2st": False},
    }
    assert TrainSettings.from_config(config).amp == amp


def test_threads_are_the_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    settings = TrainSettings(MODEL, Path("d"))
    assert [settings.reader_count(processes) for processes in (1, 3, 8, 32)] == [16, 5, 2, 1]
    assert TrainSettings(MODEL, Path("d"), num_workers=0).reader_count(8) == 0


def test_config_and_back() -> None:
    settings = TrainSettings(MODEL, Path("dataset"), image_size=(64, 96), seed=7, amp="O1")
    config = settings.to_config()
    assert config["Global"] == {
        "mode": "train",
        "model": MODEL,
        "dataset_dir": "dataset",
        "device": "cpu",
        "output": "output",
    }
    assert TrainSettings.from_config(config) == settings
    square = TrainSettings(MODEL, Path("dataset"), image_size=(64, 64))
    assert (square.to_config()["Train"]["image_size"], square.size) == (64, (64, 64))


def test_warm_up_leaves_half_of_a_short_training() -> None:
    for epochs, warmup in ((20, 5), (3, 1), (1, 0)):
        assert TrainSettings(MODEL, Path("d"), epochs_iters=epochs, warmup_steps=5).warmup_epochs == warmup


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [cosine_rate(step, peak=1e-3, total_steps=110, warmup_steps=10) for step in range(111)]
    assert [rates[step] for step in (0, 5, 10, 110)] == pytest.approx([1e-6, (1e-6 + 1e-3) / 2, 1e-3, 1e-10])
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rate_is_that_of_paddle(paddle: Any) -> None:
    """The cosine part, against `paddle.optimizer.lr.CosineAnnealingDecay` as PaddleClas sets it up."""
    reference = paddle.optimizer.lr.CosineAnnealingDecay(2e-4, T_max=30, eta_min=1e-10)
    for step in range(30):
        rate = cosine_rate(step, peak=2e-4, total_steps=30, warmup_steps=0)
        assert rate == pytest.approx(reference.last_lr, rel=1e-9, abs=1e-15)
        reference.step()
