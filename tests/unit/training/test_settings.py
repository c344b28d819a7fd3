"""Settings of a training: what is accepted, and what each wrong value is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from mlcls.errors import ModelFormatError, TrainingError
from mlcls.training.optimization import CosineSchedule
from mlcls.training.settings import Device, TrainSettings

MODEL = "PP-LCNet_x1_0_ML"


def test_defaults_are_the_recipe() -> None:
    settings = TrainSettings(MODEL, Path("dataset"))
    assert (settings.learning_rate, settings.weight_decay, settings.ema_decay) == (1e-4, 1e-4, 0.9997)
    assert (settings.transform.height, settings.transform.width) == (448, 448)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs_iters": 0}, "epochs_iters: expected an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size: expected an integer of at least 1, got 2.5"),
        ({"batch_size": True}, "batch_size: expected an integer of at least 1, got True"),
        ({"num_classes": 0}, "num_classes: expected an integer of at least 1, got 0"),
        ({"learning_rate": 0}, "learning_rate: expected a number between 0.0 and 10.0, got 0"),
        ({"learning_rate": "0.1"}, "learning_rate: expected a number between 0.0 and 10.0, got '0.1'"),
        ({"learning_rate": math.nan}, "learning_rate: expected a number"),
        ({"weight_decay": -1}, "weight_decay: expected a number from 0 to below 1, got -1"),
        ({"ema_decay": 1}, "ema_decay: expected a number from 0 to below 1, got 1"),
        ({"amp": "yes"}, "amp: expected true or false, got 'yes'"),
        ({"image_size": (16, 64)}, "image_size: expected height and width of at least 32"),
        ({"image_size": 31}, "image_size: expected height and width of at least 32"),
        ({"image_size": (64, 64, 3)}, "image_size: expected height and width of at least 32"),
        ({"resume_path": 3}, "resume_path: expected a path or null, got 3"),
        ({"device": "tpu"}, "device: expected cpu, gpu:0 or gpu:0,1"),
        ({"device": "gpu:0,0"}, "device: expected cpu, gpu:0 or gpu:0,1 with each number once"),
        ({"device": "gpu:"}, "device: expected cpu"),
        ({"gradient_clip": -1}, "gradient_clip: expected a number of at least 0, got -1"),
        ({"gradient_clip": "1"}, "gradient_clip: expected a number of at least 0, got '1'"),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError) as caught:
        TrainSettings(MODEL, Path("dataset"), **values)
    assert message in str(caught.value)


def test_an_unknown_architecture() -> None:
    with pytest.raises(ModelFormatError, match="not one of the six"):
        TrainSettings("AlexNet", Path("dataset"))


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (MODEL, {"backbone_scale": 0.4}, "backbone_scale: expected 0.25 or 0.35 or 0.5 or 0.75 or 1.0"),
        ("ResNet50_ML", {"backbone_scale": 0.5}, "backbone_scale: expected 1.0 for ResNet50_ML, got 0.5"),
        (MODEL, {"decoder_width": 100}, "decoder_width: expected a multiple of 24, got 100"),
        (MODEL, {"decoder_width": 0}, "decoder_width: expected a multiple of 24, got 0"),
        (MODEL, {"decoder_width": 96.0}, "decoder_width: expected a multiple of 24, got 96.0"),
    ],
)
def test_sizes_that_there_are_none_of(model: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        TrainSettings(model, Path("dataset"), **values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind", "ids"),
    [("cpu", "cpu", (0,)), ("gpu", "gpu", (0,)), ("gpu:3", "gpu", (3,)), ("gpu:0,1", "gpu", (0, 1))],
)
def test_devices(text: str, kind: str, ids: tuple[int, ...]) -> None:
    assert Device.parse(text) == Device(kind, ids)


def test_config_and_back() -> None:
    settings = TrainSettings(MODEL, Path("dataset"), image_size=(64, 96), pretrain_weight_path="", seed=7, amp=True)
    config = settings.to_config()
    assert config["Global"] == {
        "mode": "train",
        "model": MODEL,
        "dataset_dir": "dataset",
        "device": "cpu",
        "output": "output",
    }
    assert config["Train"]["pretrain_weight_path"] is None
    assert TrainSettings.from_config(config) == settings
    config["Train"]["lerning_rate"] = 1
    with pytest.raises(TrainingError, match="unknown setting 'lerning_rate'"):
        TrainSettings.from_config(config)


def test_one_number_makes_a_square() -> None:
    config = TrainSettings(MODEL, Path("dataset"), image_size=(64, 64)).to_config()
    assert config["Train"]["image_size"] == 64
    assert TrainSettings.from_config(config).image_size == (64, 64)


def test_warm_up_leaves_half_of_a_short_training() -> None:
    assert TrainSettings(MODEL, Path("d"), epochs_iters=20, warmup_steps=5).warmup_epochs == 5
    assert TrainSettings(MODEL, Path("d"), epochs_iters=3, warmup_steps=5).warmup_epochs == 1
    assert TrainSettings(MODEL, Path("d"), epochs_iters=1, warmup_steps=5).warmup_epochs == 0


def test_schedule_warms_up_and_decays() -> None:
    schedule = CosineSchedule(1e-3, total_steps=110, warmup_steps=10)
    rates = [schedule.learning_rate(step) for step in range(111)]
    assert rates[0] == 1e-6
    assert rates[5] == pytest.approx((1e-6 + 1e-3) / 2)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx(0.5e-3, rel=1e-6)
    assert rates[85] == pytest.approx(1e-3 * (1 + math.cos(0.75 * math.pi)) / 2, rel=1e-6)
    assert rates[110] == pytest.approx(1e-10)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_schedule_without_warm_up() -> None:
    assert CosineSchedule(1e-3, total_steps=4, warmup_steps=0).learning_rate(0) == pytest.approx(1e-3)


def test_schedule_is_that_of_paddle() -> None:
    """The cosine part, against `paddle.optimizer.lr.CosineAnnealingDecay` as PaddleClas sets it up."""
    from mlcls.paddle.runtime import import_paddle

    paddle = import_paddle("train")
    reference = paddle.optimizer.lr.CosineAnnealingDecay(2e-4, T_max=30, eta_min=1e-10)
    schedule = CosineSchedule(2e-4, total_steps=30, warmup_steps=0)
    for step in range(30):
        assert schedule.learning_rate(step) == pytest.approx(reference.last_lr, rel=1e-9, abs=1e-15)
        reference.step()
