"""PaddleX's own answers; run by the Python of `.venv-paddlex`, which has PaddleX but not mlcls.

    python tests/support/paddlex_oracle.py ANSWERS.json IMAGE_FOLDER MODEL_FOLDER [MODEL_FOLDER ...]

Writes PaddleX's own result and the raw scores behind it, by the model folder's name and the image's file name.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# Otherwise PaddleX checks whether its model hosts can be reached, even for a model on disk.
os.environ["PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"] = "True"


def ask_paddlex(model_folder: Path, images: list[Path]) -> dict[str, Any]:
    """Run PaddleX's predictor on one image after the other."""
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


def main() -> None:
    target, image_folder, *model_folders = map(Path, sys.argv[1:])
    images = sorted(image_folder.iterdir())
    answers = {folder.name: ask_paddlex(folder, images) for folder in model_folders}
    target.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
