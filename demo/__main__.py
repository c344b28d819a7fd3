"""Train the demo model from scratch and measure it: `make demo-model`, up to an hour on two cores."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from demo.make import format_figures, make_demo_model
from demo.recipe import DemoRecipe
from mlcls.errors import MlclsError


def main() -> int:
    """Parse the arguments, make the demo model and print its figures."""
    parser = argparse.ArgumentParser("python -m demo", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/demo_model"), help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("demo_model"), help="default: %(default)s")
    for name, default in dataclasses.asdict(DemoRecipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help="default: %(default)s")
    values = vars(parser.parse_args())
    work, output = values.pop("work"), values.pop("output")
    try:
        print(format_figures(make_demo_model(DemoRecipe(**values), work, output)))
    except MlclsError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Written to {output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
