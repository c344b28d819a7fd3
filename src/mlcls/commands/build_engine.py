"""The command `mlcls build-engine`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mlcls.commands.options import add_photo_options, add_repository_option

NAME: Final = "build-engine"
SUMMARY: Final = "Build another engine of an imported model, and keep it only if it gives the model's answers."

# Each engine's builder, `module:function`; it takes a `BuildRequest` and yields lines for the user.
ENGINES: Final[Mapping[str, str]] = {
    "fp16": "mlcls.engines.fp16.build:build",
    "int8": "mlcls.engines.int8.build:build",
    "tensorrt": "mlcls.engines.tensorrt.build:build_plan",
    "tensorrt-rtx": "mlcls.engines.tensorrt.build:build_rtx_engines",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", metavar="MODEL", help="name of an imported model")
    parser.add_argument(
        "--engine",
        required=True,
        choices=ENGINES,
        help="fp16: model.fp16.onnx; int8: model.int8.onnx for `mlcls serve --target int8`, calibrated on your "
        "--photos; tensorrt: model.plan for this machine's GPU and `mlcls serve --target gpu`; tensorrt-rtx: engines "
        "for the GPUs of --compute-capability, built without a GPU and not served",
    )
    add_photo_options(parser, "for calibration and comparison")
    parser.add_argument(
        "--compute-capability",
        nargs="+",
        default=[],
        metavar="X.Y",
        help="tensorrt-rtx: GPU architectures to build for, e.g. 7.5 (or SM75), 8.6, 8.9, 12.0",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="tensorrt-rtx: folder for the engines")
    parser.add_argument(
        "--version", type=int, metavar="N", help="version of the model, staged or not (default: the active one)"
    )
    add_repository_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Build an engine and print its report."""
    from mlcls.engines.building import BuildRequest
    from mlcls.errors import ConversionError
    from mlcls.repository.models import Repository

    if arguments.engine != "tensorrt-rtx" and (arguments.compute_capability or arguments.output):
        raise ConversionError(
            f"Expected --compute-capability and --output with --engine tensorrt-rtx only, got them with --engine "
            f"{arguments.engine}."
        )
    module, function = ENGINES[arguments.engine].split(":")
    build = getattr(importlib.import_module(module), function)
    repository, name, number = Repository(arguments.repository), arguments.model, arguments.version
    version = repository.active(name) if number is None else repository.version(name, number)
    photos, capabilities = tuple(arguments.photos), tuple(arguments.compute_capability)
    for line in build(BuildRequest(version, photos, capabilities, arguments.output, arguments.annotations)):
        print(line, flush=True)
    return 0
