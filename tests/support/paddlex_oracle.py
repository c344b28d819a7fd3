"""What PaddleX itself says; run by the Python of `.venv-paddlex`, which has PaddleX but not mlcls.

python tests/support/paddlex_oracle.py ANSWERS.json predict IMAGE_FOLDER MODEL_FOLDER [MODEL_FOLDER ...]
python tests/support/paddlex_oracle.py ANSWERS.json check CONFIG.yaml OUTPUT DATASET [DATASET ...]
python tests/support/paddlex_oracle.py ANSWERS.json read IMAGE_FOLDER
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Otherwise PaddleX checks whether its model hosts can be reached, even for a model on disk.
os.environ["PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"] = "True"


def predict(image_folder: str, *model_folders: str) -> dict[str, Any]:
    """Return each image's result and the raw scores behind it, by the names of model folder and file."""
    images = sorted(Path(image_folder).iterdir())
    return {Path(folder).name: _ask_model(Path(folder), images) for folder in model_folders}


def _ask_model(model_folder: Path, images: list[Path]) -> dict[str, Any]:
    import yaml
    from paddlex import create_model

    name = yaml.safe_load((model_folder / "inference.yml").read_text(encoding="utf-8"))["Global"]["model_name"]
    model = create_model(model_name=name, model_dir=str(model_folder), device="cpu")
    predictor = model._predictor  # `create_model` returns a wrapper without access to the raw scores
    raw: list[Any] = []
    run = predictor.runner

    def record(x: Any) -> Any:
        outputs = run(x=x)
        raw.append(outputs[0])
        return outputs

    predictor.runner = record
    answers = {}
    for image in images:
        (result,) = model.predict(str(image), batch_size=1)
        answers[image.name] = {"scores": raw[-1][0].tolist(), "result": result.json["res"]}
    return answers


def check(config: str, output: str, *datasets: str) -> dict[str, Any]:
    """Return the result of PaddleX's checker for each dataset, or the text of its error under `error`.

    A dataset named `by_paddlex` is in COCO format, and PaddleX converts it first.
    """
    import paddlex.modules.multilabel_classification.dataset_checker  # noqa: F401  (registers the checker)
    from paddlex.modules.base.dataset_checker import build_dataset_checker
    from paddlex.utils.config import get_config

    results: dict[str, Any] = {}
    for dataset in datasets:
        name = Path(dataset).name
        overrides = [f"Global.dataset_dir='{dataset}'", f"Global.output='{output}/{name}'"]
        if name == "by_paddlex":
            overrides += ["CheckDataset.convert.enable=True", "CheckDataset.convert.src_dataset_type='COCO'"]
        try:
            results[name] = dict(build_dataset_checker(get_config(config, overrides)).check())
        except Exception as error:  # AssertionError is one of its errors
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    return results


def read(image_folder: str) -> dict[str, Any]:
    """Return shape and SHA-256 of the pixels (H, W, 3) uint8 RGB by file name; null if PaddleX cannot read the file."""
    from paddlex.inference.common.reader import ReadImage

    reader = ReadImage(format="RGB")
    answers: dict[str, Any] = {}
    for path in sorted(Path(image_folder).iterdir()):
        try:
            (pixels,) = reader([str(path)])
        except Exception:  # PaddleX raises a bare Exception, cv2 its own
            answers[path.name] = None
        else:
            answers[path.name] = {"shape": list(pixels.shape), "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    return answers


if __name__ == "__main__":
    target, question, *arguments = sys.argv[1:]
    questions: dict[str, Callable[..., dict[str, Any]]] = {"predict": predict, "check": check, "read": read}
    found = questions[question](*arguments)
    Path(target).write_text(json.dumps(found), encoding="utf-8")
