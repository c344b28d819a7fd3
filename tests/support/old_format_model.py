"""Write a small model in PaddleX's older format (`inference.pdmodel`); a program, because paddle's switches are global.

    python tests/support/old_format_model.py FOLDER

Paddle 3.3 still runs and converts this format, but cannot trace today's networks into it; hence the static program.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from mlcls.model.catalog import DEFAULT_TRANSFORM
from mlcls.model.spec import ModelSpec
from mlcls.paddle.inference_yml import format_inference_yml
from mlcls.paddle.runtime import import_paddle

SIZE = 64
LABELS = ("a", "b", "c")


def main(folder: Path) -> None:
    paddle = import_paddle("train")
    from paddle.pir_utils import OldIrGuard

    paddle.enable_static()
    paddle.seed(0)
    np.random.seed(0)
    with OldIrGuard():
        program, startup = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(program, startup):
            x = paddle.static.data("x", [None, 3, SIZE, SIZE], "float32")
            features = paddle.static.nn.conv2d(x, 8, 5, stride=4, act="relu")
            scores = paddle.static.nn.fc(features, len(LABELS), activation="sigmoid")
        executor = paddle.static.Executor(paddle.CPUPlace())
        executor.run(startup)
        paddle.static.save_inference_model(str(folder / "inference"), [x], [scores], executor, program=program)
    transform = msgspec.structs.replace(DEFAULT_TRANSFORM, height=SIZE, width=SIZE)
    spec = ModelSpec("old", "PP-LCNet_x1_0_ML", LABELS, (0.5,) * len(LABELS), transform)
    (folder / "inference.yml").write_text(format_inference_yml(spec), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
