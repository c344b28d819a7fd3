"""The `mlcls` command. Each subcommand imports what it needs when it runs, so that `mlcls --help` answers at once."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from mlcls import __version__
from mlcls.errors import MissingExtraError, MlclsError, SpecError
from mlcls.serve_command import add_serve_arguments, run_serve

#: Environment variable that names the model repository.
REPOSITORY_VARIABLE: Final = "MLCLS_MODEL_REPOSITORY"

_USAGE_STATUS: Final = 2
_INTERRUPTED_STATUS: Final = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        argv: Arguments; by default those of the process.

    Returns:
        0 where it did what was asked, 1 where it could not, 2 for wrong usage, 130 where it was interrupted.
    """
    arguments = _build_parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        status = run(arguments)
        sys.stdout.flush()  # a reader that has enough must be noticed here
        return status
    except MlclsError as error:
        print(f"mlcls {arguments.command}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # whoever read the output has enough; keep Python from complaining when it flushes on exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder without permission
        print(f"mlcls {arguments.command}: {error}", file=sys.stderr)
        return MlclsError.exit_code
    except KeyboardInterrupt:
        print(f"mlcls {arguments.command}: interrupted", file=sys.stderr)
        return _INTERRUPTED_STATUS


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlcls", description="Serve PaddleX image multi-label classification models on Triton Inference Server."
    )
    parser.add_argument("--version", action="version", version=f"mlcls {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_models(commands)
    _add_export(commands)
    _add_import(commands)
    _add_repository(commands)
    serve = _add_command(commands, "serve", "Serve models of the repository with a tritonserver.", run_serve)
    add_serve_arguments(serve)
    _add_repository_option(serve)
    _add_predict(commands)
    return parser


Commands = argparse._SubParsersAction  # argparse has no public name for it


def _add_command(
    commands: Commands[argparse.ArgumentParser], name: str, summary: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    return parser


def _add_repository_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path(os.environ.get(REPOSITORY_VARIABLE, "model_repository")),
        metavar="DIR",
        help=f"Triton model repository (default: ${REPOSITORY_VARIABLE} or ./model_repository)",
    )


def _add_models(commands: Commands[argparse.ArgumentParser]) -> None:
    _add_command(commands, "models", "List the six official models.", _run_models)


def _run_models(_: argparse.Namespace) -> int:
    from mlcls.catalog import OFFICIAL_MODELS

    width = max(map(len, OFFICIAL_MODELS))
    print(f"{'model':{width}}  {'mAP (%)':>7}  {'size (MB)':>9}  inference model")
    for model in OFFICIAL_MODELS.values():
        print(f"{model.name:{width}}  {model.mean_average_precision:7.2f}  {model.size_mb:9.1f}  {model.inference_url}")
    return 0


def _add_export(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "export",
        "Export a freshly initialised or a trained model as a PaddleX inference model.",
        _run_export,
    )
    parser.add_argument("architecture", metavar="ARCHITECTURE", help="one of the six models, see `mlcls models`")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the inference model")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="trained .pdparams; without, the model is fresh")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="one label a line (default: COCO's 80)")
    parser.add_argument("--size", type=_parse_size, metavar="HxW", help="input height and width (default: 448x448)")
    parser.add_argument("--threshold", type=float, metavar="T", help="threshold of every label (default: 0.5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of a fresh model (default: %(default)s)")
    parser.add_argument(
        "--photos", type=Path, nargs="+", default=[], metavar="FILE", help="photos that a fresh model is adjusted to"
    )
    parser.add_argument("--without-sigmoid", action="store_true", help="let the graph end in logits")


def _run_export(arguments: argparse.Namespace) -> int:
    from mlcls.paddlex_export import export_model

    labels = _read_labels(arguments.labels) if arguments.labels else None
    report = export_model(
        arguments.architecture,
        arguments.output,
        labels=labels,
        size=arguments.size,
        threshold=arguments.threshold,
        weights=arguments.weights,
        seed=arguments.seed,
        photos=arguments.photos,
        with_sigmoid=not arguments.without_sigmoid,
    )
    origin = f"weights of {report.weights}" if report.weights else f"freshly initialised (seed {arguments.seed})"
    described = "COCO's 80 labels" if labels is None else f"{len(labels)} labels"
    print(f"{report.folder}: {arguments.architecture}, {described}, {origin}")
    if report.weights is None:
        print("Its labels mean nothing: nothing was trained.")
    return 0


def _add_import(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands,
        "import",
        "Convert a PaddleX inference model, check it against Paddle and put it into the model repository.",
        _run_import,
    )
    parser.add_argument("source", metavar="MODEL", help="a folder, a .tar, a URL, or the name of an official model")
    parser.add_argument("--name", help="name under which it is served (default: PaddleX's)")
    parser.add_argument(
        "--photos", type=Path, nargs="+", default=[], metavar="FILE", help="photos for the check (default: two samples)"
    )
    _add_repository_option(parser)


def _run_import(arguments: argparse.Namespace) -> int:
    from mlcls.paddlex_import import import_model

    print(f"Converting {arguments.source} and comparing it with Paddle ...", flush=True)
    report = import_model(arguments.source, arguments.repository, name=arguments.name, photos=arguments.photos)
    spec = report.spec
    print(
        f"{spec.name}: {spec.num_labels} labels, {spec.transform.height}x{spec.transform.width}, "
        f"source ended in {'a sigmoid, cut off' if spec.source_activation == 'sigmoid' else 'logits'}"
    )
    print(report.parity)
    if report.parity.is_blind:
        print(
            f"The model hardly tells the photos apart (scores differ by {report.parity.spread:.1e} at most), so that "
            f"this comparison says little. Is it trained? Give photos of its labels with --photos.",
            file=sys.stderr,
        )
    print(f"Written to {arguments.repository}. Serve it: mlcls serve {spec.name}")
    return 0


def _add_repository(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands, "repository", "Write the configurations of the model repository, or check them.", _run_repository
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is stale")
    _add_repository_option(parser)


def _run_repository(arguments: argparse.Namespace) -> int:
    from mlcls import repository

    root: Path = arguments.repository
    specs = repository.expected_specs(root)
    if not arguments.check:
        for spec in specs:
            for path in repository.write_configs(root, spec):
                print(f"wrote {path}")
    stale = repository.find_stale(root, specs)
    for file in stale:
        print(f"{root}/{file}", file=sys.stderr)
    if stale:
        remedy = "run `mlcls repository`" if arguments.check else "remove what is not generated"
        print(f"mlcls repository: {len(stale)} files are stale; {remedy}", file=sys.stderr)
        return 1
    print(f"{root}: {len(specs)} models, all files as generated")
    return 0


def _add_predict(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add_command(
        commands, "predict", "Label images with a served model (the same as mlcls-client).", _run_predict
    )
    try:
        from mlcls_client.cli import add_predict_arguments
    except ModuleNotFoundError:
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see mlcls-client predict --help")
    else:
        add_predict_arguments(parser)


def _run_predict(arguments: argparse.Namespace) -> int:
    try:
        from mlcls_client.cli import run_predict
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("mlcls_client"):
            raise MlclsError(
                "This needs the client, which is not installed: pip install ./client (in a checkout: make build)."
            ) from None
        raise MissingExtraError("serve", str(error.name)) from error
    return run_predict(arguments)


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH like 448x448, or one number, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _read_labels(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: expected a UTF-8 text file with one label a line, got: {error}.") from None
    return [line.strip() for line in lines if line.strip()]


if __name__ == "__main__":
    sys.exit(main())
