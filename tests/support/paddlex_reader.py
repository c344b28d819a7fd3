"""Image files as PaddleX's own reader decodes them; run by the Python of `.venv-paddlex`, which does not have mlcls.

    python tests/support/paddlex_reader.py PIXELS.json IMAGE_FOLDER

Writes the shape and the SHA-256 of the pixels (H, W, 3) uint8 RGB, or null if PaddleX cannot read the file, by file
name.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

# Otherwise PaddleX checks whether its model hosts can be reached.
os.environ["PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"] = "True"


def read_image(reader: Any, path: Path) -> dict[str, Any] | None:
    """Return shape and digest of one file's pixels."""
    try:
        (pixels,) = reader([str(path)])
    except Exception:  # PaddleX raises a bare Exception, cv2 its own
        return None
    return {"shape": list(pixels.shape), "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}


def main() -> None:
    target, folder = map(Path, sys.argv[1:])
    from paddlex.inference.common.reader import ReadImage

    reader = ReadImage(format="RGB")
    answers = {path.name: read_image(reader, path) for path in sorted(folder.iterdir())}
    target.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
