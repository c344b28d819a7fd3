"""`make quickstart`: labels photos on a real Triton server, from a PaddleX model to an annotated picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlcls.errors import MlclsError
from scripts.quickstart_steps import run_quickstart

_DEMO_MODEL = Path(__file__).resolve().parent.parent / "demo_model" / "inference"


def main() -> int:
    """Parses the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, nargs="*", help="photos or folders (default: two sample photos)")
    parser.add_argument("--model", default="PP-LCNet_x1_0_ML", help="official model (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/quickstart"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("output"), help="default: %(default)s")
    parser.add_argument("--demo-model", type=Path, default=_DEMO_MODEL, help="taken where MODEL is out of reach")
    arguments = parser.parse_args()
    try:
        return run_quickstart(arguments.model, arguments.images, arguments.work, arguments.output, arguments.demo_model)
    except MlclsError as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
