"""PaddleX's `main.py`: `python scripts/main.py -c configs/MODEL.yaml -o Key.Sub=value` is `mlcls paddlex`."""

from __future__ import annotations

import sys

from mlcls.cli import main

if __name__ == "__main__":
    sys.exit(main(["paddlex", *sys.argv[1:]]))
