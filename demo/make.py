"""The steps of `make demo-model`: scenes, training, and the figures of Paddle, ONNX and the served ensemble."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

import mlcls
from demo.colors import COLORS
from demo.dataset import SETS, write_demo_dataset, write_test_images
from demo.recipe import DEMO_NAME, DemoRecipe
from mlcls.base.files import staged_folder, write_text
from mlcls.engines.gate import LIMITS
from mlcls.engines.runner_selection import open_runner
from mlcls.errors import ParityError
from mlcls.evaluation.evaluate import Evaluation, evaluate
from mlcls.releases.importing import import_model
from mlcls.repository.models import Repository
from mlcls.training.run_folder import BEST, INFERENCE, LATEST, RESULT_FILE
from mlcls.training.train import train_model

FIGURES_FILE: Final = "figures.json"
_RECIPE_FILE: Final = "recipe.json"
_SHOWN: Final = ("MultiLabelMAP", "MultiLabelMAP_11point", "CF1", "OF1")


def make_demo_model(recipe: DemoRecipe, work: Path, target: Path) -> dict[str, Any]:
    """Make the demo model; steps that an interrupted run has finished are skipped.

    Args:
        recipe: Sizes and seed.
        work: Folder for dataset, training and model repository; the next run with the same recipe reuses it.
        target: Folder for the inference model, its figures and its curves; replaced at the end.

    Returns:
        The figures, as in `figures.json`.

    Raises:
        ParityError: ONNX or the served ensemble differs from Paddle by more than the gate's limit for FP32.
        MlclsError: A step fails.
    """
    text = json.dumps(dataclasses.asdict(recipe), indent=2) + "\n"
    recipe_file = work / _RECIPE_FILE
    if work.exists() and (not recipe_file.is_file() or recipe_file.read_text(encoding="utf-8") != text):
        shutil.rmtree(work)
    write_text(recipe_file, text)
    run = _train(recipe, work)
    inference = run / BEST / INFERENCE
    figures = {"recipe": dataclasses.asdict(recipe), "labels": list(COLORS), "sets": _evaluate(recipe, work, inference)}
    with staged_folder(target) as staging:
        shutil.copytree(inference, staging / INFERENCE)
        shutil.copyfile(run / "curves" / "curves.png", staging / "curves.png")
        write_text(staging / FIGURES_FILE, json.dumps(figures, indent=2) + "\n")
    return figures


def format_figures(figures: dict[str, Any]) -> str:
    """Return the figures as a table."""
    lines = [f"{'':10}{'runner':12}{'images':>8}" + "".join(f"{name:>23}" for name in _SHOWN)]
    for name, measured in figures["sets"].items():
        for runner, metrics in measured["runners"].items():
            lines.append(
                f"{name:10}{runner:12}{measured['images']:8}" + "".join(f"{metrics[shown]:23.4f}" for shown in _SHOWN)
            )
        lines.append(f"{'':10}highest difference of a score from Paddle's: {measured['highest_difference']:.1e}")
    return "\n".join(lines)


def _train(recipe: DemoRecipe, work: Path) -> Path:
    dataset, run = work / "dataset", work / "run"
    if not dataset.exists():
        write_demo_dataset(dataset, recipe.train_scenes, recipe.val_scenes, recipe.side, recipe.seed)
    result = run / RESULT_FILE
    if result.is_file() and json.loads(result.read_text(encoding="utf-8"))["done_flag"]:
        return run
    settings = recipe.train_settings(dataset, run)
    if (run / LATEST / f"{LATEST}.pdparams").is_file():
        settings = msgspec.structs.replace(settings, resume_path=str(run / LATEST))
    train_model(settings)
    return run


def _evaluate(recipe: DemoRecipe, work: Path, inference: Path) -> dict[str, Any]:
    root = work / "model_repository"
    spec = import_model(str(inference), Repository(root), name=DEMO_NAME).spec
    test = work / "test"
    if not test.exists():
        write_test_images(test, recipe.test_scenes, recipe.test_crops, spec.transform, recipe.seed)
    sets = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(mlcls.serve(DEMO_NAME, repository=root))
        model = Repository(root).active(spec.name)
        words = {"paddle": f"paddle={inference}", "onnx": "onnxruntime", "served": f"served={server.grpc_url}"}
        runners = {name: open_runner(word, model, stack) for name, word in words.items()}
        for name, file in SETS.items():
            sets[name] = _compare(
                {key: evaluate(runner, test / file, spec.thresholds) for key, runner in runners.items()}
            )
    return sets


def _compare(evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """Return the figures of one set; the first runner is the reference."""
    reference = next(iter(evaluations.values()))
    differences = [float(np.abs(each.scores - reference.scores).max()) for each in evaluations.values()]
    limit = LIMITS["fp32"].max_difference
    if max(differences) > limit:
        raise ParityError(f"Expected scores within {limit:g} of Paddle's, got a difference of {max(differences):.1e}.")
    return {
        "images": len(reference.targets),
        "highest_difference": max(differences),
        "runners": {name: dict(each.metrics.overall) for name, each in evaluations.items()},
        "average_precision": {row.label: row.average_precision for row in reference.metrics.per_class},
    }
