"""The `mlcls` command: fast help, one line for each error, and the documented exit statuses."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcls import __version__, cli, commands
from mlcls.errors import MissingExtraError, MlclsError, RepositoryError, RestartsExhaustedError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.model.spec import ModelSpec
from mlcls.repository.configurations import write_configs
from mlcls.repository.models import Repository
from support.processes import mlcls_command

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = tuple(command.NAME for command in commands.COMMANDS)

# Packages that no answer to `--help` needs, and that take long to import.
HEAVY = {
    "numpy", "cv2", "PIL", "yaml", "paddle", "paddle2onnx", "paddleclas", "onnx", "onnxruntime", "onnxslim", "openvino",
    "tritonclient", "pytriton", "grpc", "google", "simplejpeg", "sklearn", "scipy", "httpx", "tqdm",
}  # fmt: skip


@pytest.fixture(autouse=True)
def same_signal_handlers() -> Iterator[None]:
    """`mlcls serve` sets handlers of its own."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command; returns its exit status and what it prints."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            status = cli.main(list(map(str, arguments)))
        except SystemExit as end:
            status = int(end.code or 0)
        return status, *capsys.readouterr()

    return run


def run_module(**options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlcls.cli", "models"]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, **options)


# --- help and models


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from mlcls.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print('modules', *sorted(sys.modules))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (0, "")
    assert "\nstatus 0\n" in process.stdout
    modules = process.stdout.split("\nmodules ")[1].split()
    assert "mlcls.cli" in modules
    assert not [name for name in modules if name.split(".")[0] in HEAVY]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--help"], 0, "usage: mlcls"),
        (["--version"], 0, f"mlcls {__version__}\n"),
        *(([command, "--help"], 0, f"usage: mlcls {command}") for command in COMMANDS),
        ([], 2, "usage: mlcls"),
        (["unknown"], 2, "invalid choice: 'unknown'"),
        (["models", "more"], 2, "unrecognized arguments: more"),
        (["import"], 2, "required: MODEL"),
        (["export", "ResNet50_ML"], 2, "required: --output"),
        (["serve"], 2, "required: MODEL"),
        (["serve", "a", "--target", "tpu"], 2, "invalid choice: 'tpu'"),
        (["serve", "a", "--http-port", "http"], 2, "invalid int value: 'http'"),
        (["repository", "--chek"], 2, "unrecognized arguments: --chek"),
    ],
)
def test_help_and_wrong_usage(run: Run, arguments: list[str], status: int, text: str) -> None:
    found, out, err = run(*arguments)
    assert found == status
    assert text in (err if status else out)


def test_help_lists_commands(run: Run) -> None:
    words = {line.split()[0] for line in run("--help")[1].splitlines() if line.startswith("    ")}
    assert words >= set(COMMANDS)


def test_models(run: Run) -> None:
    head, *rows = run("models")[1].splitlines()
    assert head.split() == ["model", "mAP", "(%)", "size", "(MB)", "inference", "model"]
    assert [row.split() for row in rows] == [
        [model.name, f"{model.mean_average_precision:.2f}", f"{model.size_mb:.1f}", model.inference_url]
        for model in OFFICIAL_MODELS.values()
    ]
    assert ["ResNet50_ML", "83.50", "108.9"] in [row.split()[:3] for row in rows]


def test_module_can_be_run() -> None:
    process = run_module(stdout=subprocess.PIPE)
    assert process.returncode == 0
    assert len(process.stdout.splitlines()) == 7


@pytest.mark.parametrize("buffering", ["", "1"])
def test_reader_that_is_gone(buffering: str) -> None:
    """`mlcls models | head -1`, with buffered and unbuffered output."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        process = run_module(stdout=output, env={**os.environ, "PYTHONUNBUFFERED": buffering})
    assert (process.returncode, process.stderr) == (0, "")


# --- export: sizes and labels


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments that the command passes to `export_model`, which does nothing here."""
    calls: list[dict[str, Any]] = []

    def export_model(architecture: str, folder: Path, **options: Any) -> None:
        calls.append({"architecture": architecture, "folder": folder, **options})

    monkeypatch.setattr("mlcls.training.export.export_model", export_model)
    return calls


@pytest.mark.parametrize(
    ("text", "size"), [("448", (448, 448)), ("96x64", (96, 64)), ("1x1", (1, 1)), ("00448x32", (448, 32))]
)
def test_size(run: Run, exports: list[dict[str, Any]], text: str, size: tuple[int, int]) -> None:
    assert run("export", "ResNet50_ML", "--output", "out", "--size", text)[0] == 0
    assert exports[0]["size"] == size


@pytest.mark.parametrize(
    "text", ["", "x", "448x", "x448", "448X448", "448x448x3", "4.5", "-448", "448 x 448", "123456"]
)
def test_wrong_size(run: Run, exports: list[dict[str, Any]], text: str) -> None:
    status, _, err = run("export", "ResNet50_ML", "--output", "out", f"--size={text}")
    assert (status, exports) == (2, [])
    assert f"argument --size: expected HEIGHTxWIDTH like 448x448, or one number, got {text!r}" in err


def test_options_of_export(run: Run, exports: list[dict[str, Any]], tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\r\n\n  犬 \nred panda\n", encoding="utf-8")
    options = ["--labels", labels, "--threshold", "0.3", "--weights", "w.pdparams", "--without-sigmoid"]
    fresh, warning = run("export", "ResNet50_ML", "--output", "out")[1].splitlines()
    (trained,) = run("export", "ResNet50_ML", "--output", "out", *options, "--photos", "a", "b")[1].splitlines()
    defaults = {"architecture": "ResNet50_ML", "folder": Path("out"), "labels": None, "size": None, "threshold": None}
    defaults |= {"weights": None, "seed": 0, "photos": [], "with_sigmoid": True}
    given = {"labels": ["cat", "犬", "red panda"], "threshold": 0.3, "weights": Path("w.pdparams")}
    assert exports == [defaults, {**defaults, **given, "with_sigmoid": False, "photos": [Path("a"), Path("b")]}]
    assert fresh == "out: ResNet50_ML, COCO's 80 labels, freshly initialized (seed 0)"
    assert "nothing was trained" in warning
    assert "3 labels, weights of w.pdparams" in trained


@pytest.mark.parametrize("content", [None, b"caf\xe9\n"])
def test_labels_that_cannot_be_read(
    run: Run, exports: list[dict[str, Any]], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    status, _, err = run("export", "ResNet50_ML", "--output", "out", "--labels", path)
    assert (status, exports, err.count("\n")) == (1, [], 1)
    assert err.startswith(f"mlcls export: {path}: expected a UTF-8 text file with one label per line, got: ")


# --- errors


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    def fail_with(error: BaseException) -> None:
        def run(_: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr(commands.models, "run", run)

    return fail_with


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RepositoryError("Expected more, got less."), 1, "Expected more, got less."),
        (MissingExtraError("convert", "paddle2onnx"), 1, str(MissingExtraError("convert", "paddle2onnx"))),
        (RestartsExhaustedError("text"), 3, "text"),
        (
            OSError(28, "No space left on device", "/a/b"),
            1,
            "/a/b: No space left on device; free some space on its disk.",
        ),
        (OSError(28, "No space left on device"), 1, "No space left on device; free some space on its disk."),
        (
            OSError(5, "Input/output error", "a", None, "b"),
            1,
            "a -> b: Input/output error; check this path and its disk.",
        ),
        (OSError(111, "Connection refused"), 1, "Connection refused."),
        (OSError("without a number"), 1, "without a number"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_error_is_one_line(
    run: Run, fail_with: Callable[[BaseException], None], error: BaseException, status: int, text: str
) -> None:
    fail_with(error)
    assert run("models") == (status, "", f"mlcls models: {text}\n")


def test_output_that_cannot_be_written() -> None:
    with open("/dev/full", "wb") as full:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        command = mlcls_command("models")
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    text = "mlcls models: standard output: No space left on device; free some space on its disk.\n"
    assert (process.returncode, process.stderr) == (1, text)


def test_fault_is_not_hidden(run: Run, fail_with: Callable[[BaseException], None]) -> None:
    fail_with(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run("models")


def test_unknown_source(run: Run, tmp_path: Path) -> None:
    status, _, err = run("import", "no-such-model", "--repository", tmp_path / "models")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("mlcls import: Expected a folder, a .tar archive, an http(s) URL or one of ")
    assert not (tmp_path / "models").exists()


# --- repository


@pytest.fixture
def copied_repository(tmp_path: Path) -> Path:
    """The committed repository, without weights."""
    ignored = shutil.ignore_patterns("*.onnx", "*.plan", ".mlcls-staging-*")
    return Path(shutil.copytree(ROOT / "model_repository", tmp_path / "models", ignore=ignored))


def test_committed_repository_is_fresh(run: Run) -> None:
    status, out, err = run("repository", "--check", "--repository", ROOT / "model_repository")
    assert (status, err) == (0, "")
    assert out.endswith(" models, all files as generated\n")


def test_edited_repository_is_stale(run: Run, copied_repository: Path) -> None:
    command = ("repository", "--repository", copied_repository)
    assert run(*command, "--check")[0] == 0
    config = copied_repository / "ResNet50_ML_engine" / "configs" / "gpu.pbtxt"
    config.write_text(config.read_text().replace("max_queue_size: 128", "max_queue_size: 0"))
    (copied_repository / "ResNet50_ML" / "labels.txt").unlink()
    before = config.read_text()
    status, _, err = run(*command, "--check")
    assert status == 1
    assert sorted(err.splitlines()) == [
        f"{copied_repository}/ResNet50_ML/labels.txt: missing",
        f"{copied_repository}/ResNet50_ML_engine/configs/gpu.pbtxt: differs from what the generator writes",
        "mlcls repository: 2 files are stale; run `mlcls repository`",
    ]
    assert config.read_text() == before
    status, out, _ = run(*command)
    assert (status, out.count("wrote ")) == (0, 2)
    assert f"wrote {config}\n" in out
    assert run(*command, "--check")[0] == 0


def test_extra_config_must_be_removed(run: Run, copied_repository: Path) -> None:
    shutil.copytree(copied_repository / "ResNet50_ML_engine", copied_repository / "Other")
    for options in (["--check"], []):
        status, _, err = run("repository", "--repository", copied_repository, *options)
        assert status == 1
        assert f"{copied_repository}/Other/config.pbtxt: belongs to no model" in err
    assert (copied_repository / "Other" / "config.pbtxt").is_file()


def test_custom_model_that_is_not_imported(run: Run, copied_repository: Path, custom_spec: ModelSpec) -> None:
    write_configs(Repository(copied_repository), custom_spec)
    status, _, err = run("repository", "--check", "--repository", copied_repository)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"mlcls repository: The custom model animals-v2 in {copied_repository} is not imported ")


def test_repository_of_the_environment(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "a" / "models"
    monkeypatch.setenv("MLCLS_MODEL_REPOSITORY", str(named))
    assert run("repository", "--check")[0] == 1
    assert not named.exists()
    assert run("repository")[1].endswith(f"{named}: 6 models, all files as generated\n")
    assert run("repository", "--check")[0] == 0
    monkeypatch.delenv("MLCLS_MODEL_REPOSITORY")
    monkeypatch.chdir(tmp_path)
    assert "model_repository: 6 models" in run("repository")[1]
    assert (tmp_path / "model_repository" / "ResNet50_ML" / "config.pbtxt").is_file()


# --- serve


@pytest.fixture
def no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for the embedded server means that the options passed the checks."""

    def embedded_installation() -> None:
        raise MlclsError("looked for the server")

    monkeypatch.setattr("mlcls.server.installation.embedded_installation", embedded_installation)


@pytest.mark.usefixtures("no_installation")
@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "::1", "192.0.2.1", "example.invalid", "", "127.0.0.1.example.invalid"]
)
def test_public_address_is_refused(run: Run, host: str) -> None:
    status, out, err = run("serve", "ResNet50_ML", f"--host={host}")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("mlcls serve: The embedded tritonserver is older than the security fixes ")
    assert f"expected --host 127.0.0.1, got {host}. Use the container" in err


@pytest.mark.usefixtures("no_installation")
@pytest.mark.parametrize("options", [[], ["--host=127.0.0.1"], ["--host=localhost"], ["--probe-interval=0"]])
def test_options_that_are_allowed(run: Run, options: list[str]) -> None:
    assert run("serve", "ResNet50_ML", *options) == (1, "", "mlcls serve: looked for the server\n")


@pytest.mark.usefixtures("no_installation")
@pytest.mark.parametrize(
    ("option", "value", "limits"),
    [
        ("--poll", "0", "0.1 to 3600"),
        ("--drain-timeout", "-1", "0 to 3600"),
        ("--hang-timeout", "0", "0.5 to 86400"),
        ("--probe-interval", "-1", "0 to 3600"),
        ("--probe-timeout", "nan", "0.1 to 3600"),
        ("--max-restarts", "0", "1 to 1000000"),
        ("--restart-window", "inf", "1 to 604800"),
        ("--restart-pause", "31", "0 to 30"),
        ("--trace-rate", "1000001", "1 to 1000000"),
    ],
)
def test_options_out_of_range(run: Run, option: str, value: str, limits: str) -> None:
    status, _, err = run("serve", "ResNet50_ML", f"{option}={value}")
    assert status == 1
    assert err.startswith(f"mlcls serve: Expected {option} {limits}, got ")


@pytest.fixture
def fake_tritonserver(tmp_path: Path) -> Path:
    """A folder that looks like a Triton without engines, and cannot be started."""
    root = tmp_path / "tritonserver"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "tritonserver").write_text("#!/bin/false\n")
    (root / "backends").mkdir()
    return root


def test_what_another_tritonserver_cannot_serve(run: Run, fake_tritonserver: Path, tmp_path: Path) -> None:
    """With another server than the embedded one, every address is allowed."""
    root = tmp_path / "models"
    assert run("repository", "--repository", root)[0] == 0
    for folder, name, target, text in (
        (tmp_path, "ResNet50_ML", "embedded", f"Expected bin/tritonserver and backends/ in {tmp_path}, got a folder"),
        (fake_tritonserver, "ResNet50_ML", "embedded", "has no weights yet"),
        (fake_tritonserver, "ResNet", "embedded", "has no model 'ResNet'"),
        (fake_tritonserver, "ResNet50_ML", "cpu", "needs Triton's backend 'onnxruntime'"),
        (fake_tritonserver, "ResNet50_ML", "gpu", "needs Triton's backend 'tensorrt'"),
    ):
        options = ["--host", "0.0.0.0", "--tritonserver", folder, "--target", target, "--repository", root]
        status, _, err = run("serve", name, *options)
        assert status == 1
        assert text in err
