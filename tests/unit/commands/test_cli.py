"""The `mlcls` command: fast help, one line for each error, and the documented exit statuses."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlcls import __version__, cli, commands
from mlcls.errors import MissingExtraError, MlclsError, RepositoryError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.model.spec import ModelSpec
from mlcls.repository.configurations import write_configs
from mlcls.repository.models import Repository

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = tuple(command.NAME for command in commands.COMMANDS)

# Packages that no answer to `--help` needs, and that take long to import.
HEAVY = {
    *("numpy", "cv2", "PIL", "yaml", "paddle", "paddle2onnx", "paddleclas", "onnx", "onnxruntime", "onnxslim"),
    *("openvino", "tritonclient", "pytriton", "grpc", "google", "simplejpeg", "sklearn", "scipy", "httpx", "tqdm"),
}


def run_python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(autouse=True)
def same_signal_handlers() -> Iterator[None]:
    """`mlcls serve` sets handlers of its own."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


# --- help


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    process = run_python(
        "import sys\n"
        "from mlcls.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print('modules', *sorted(sys.modules))\n"
    )
    assert process.returncode == 0, process.stderr
    assert "\nstatus 0\n" in process.stdout
    modules = process.stdout.split("\nmodules ")[1].split()
    assert "mlcls.cli" in modules
    assert not [name for name in modules if name.split(".")[0] in HEAVY]
    assert process.stderr == ""


def test_help_lists_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    words = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")}
    assert words >= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: mlcls {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"mlcls {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["unknown"], ["models", "more"], ["import"], ["export", "ResNet50_ML"], ["serve"], ["--unknown"]),
        *(["serve", "a", "--target", "tpu"], ["serve", "a", "--http-port", "http"], ["repository", "--chek"]),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: mlcls" in capsys.readouterr().err


# --- models


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "mAP", "(%)", "size", "(MB)", "inference", "model"]
    assert [row.split() for row in rows] == [
        [model.name, f"{model.mean_average_precision:.2f}", f"{model.size_mb:.1f}", model.inference_url]
        for model in OFFICIAL_MODELS.values()
    ]
    assert ["ResNet50_ML", "83.50", "108.9"] in [row.split()[:3] for row in rows]


def test_module_can_be_run() -> None:
    process = subprocess.run([sys.executable, "-m", "mlcls.cli", "models"], capture_output=True, text=True, timeout=60)
    assert process.returncode == 0
    assert len(process.stdout.splitlines()) == 7


@pytest.mark.parametrize(
    "buffering",
    [
        "",
        "1",
    ],
)
def test_reader_that_is_gone(buffering: str) -> None:
    """`mlcls models | head -1`, with buffered and unbuffered output."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": buffering}
    try:
        process = subprocess.run(
            [sys.executable, "-m", "mlcls.cli", "models"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=environment,
        )
    finally:
        os.close(writer)
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
def test_size(exports: list[dict[str, Any]], text: str, size: tuple[int, int]) -> None:
    assert cli.main(["export", "ResNet50_ML", "--output", "out", "--size", text]) == 0
    assert exports[0]["size"] == size


@pytest.mark.parametrize(
    "text", ["", "x", "448x", "x448", "448X448", "448x448x3", "4.5", "-448", "448 x 448", "123456"]
)
def test_wrong_size(exports: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["export", "ResNet50_ML", "--output", "out", f"--size={text}"])
    assert end.value.code == 2
    message = f"argument --size: expected HEIGHTxWIDTH like 448x448, or one number, got {text!r}"
    assert message in capsys.readouterr().err
    assert not exports


def test_defaults_of_export(exports: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "ResNet50_ML", "--output", "out"]) == 0
    assert exports == [
        {"architecture": "ResNet50_ML", "folder": Path("out"), "labels": None, "size": None, "threshold": None}
        | {"weights": None, "seed": 0, "photos": [], "with_sigmoid": True}
    ]
    out = capsys.readouterr().out
    assert out.startswith("out: ResNet50_ML, COCO's 80 labels, freshly initialized (seed 0)\n")
    assert "nothing was trained" in out


def test_options_of_export(exports: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\r\n\n  犬 \nred panda\n", encoding="utf-8")
    arguments = ["--output", "out", "--labels", str(labels), "--threshold", "0.3", "--weights", "w.pdparams"]
    assert cli.main(["export", "ResNet50_ML", *arguments, "--without-sigmoid", "--photos", "a", "b"]) == 0
    assert exports[0]["labels"] == ["cat", "犬", "red panda"]
    assert exports[0]["threshold"] == 0.3
    assert exports[0]["weights"] == Path("w.pdparams")
    assert exports[0]["with_sigmoid"] is False
    assert exports[0]["photos"] == [Path("a"), Path("b")]
    assert "3 labels, weights of w.pdparams" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"caf\xe9\n"])
def test_labels_that_cannot_be_read(
    exports: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["export", "ResNet50_ML", "--output", "out", "--labels", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mlcls export: {path}: expected a UTF-8 text file with one label per line, got: ")
    assert error.count("\n") == 1
    assert not exports


# --- errors


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(commands.models, "run", run)


def test_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, RepositoryError("Expected more, got less."))
    assert cli.main(["models"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "mlcls models: Expected more, got less.\n")


def test_missing_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, MissingExtraError("convert", "paddle2onnx"))
    assert cli.main(["models"]) == 1
    assert "'paddle2onnx', which is not installed" in capsys.readouterr().err


def test_exit_code_is_that_of_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = MlclsError("text")
    error.exit_code = 7
    fail_with(monkeypatch, error)
    assert cli.main(["models"]) == 7


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert cli.main(["models"]) == 130
    assert capsys.readouterr().err == "mlcls models: interrupted\n"


def test_fault_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["models"])


def test_unknown_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "no-such-model", "--repository", str(tmp_path / "models")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mlcls import: Expected a folder, a .tar archive, an http(s) URL or one of ")
    assert error.count("\n") == 1
    assert not (tmp_path / "models").exists()


# --- repository


@pytest.fixture
def copied_repository(tmp_path: Path) -> Path:
    """The committed repository, without weights."""
    ignored = shutil.ignore_patterns("*.onnx", "*.plan", ".mlcls-staging-*")
    return Path(shutil.copytree(ROOT / "model_repository", tmp_path / "models", ignore=ignored))


def check(root: Path) -> int:
    return cli.main(["repository", "--check", "--repository", str(root)])


def test_committed_repository_is_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(ROOT / "model_repository") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.endswith(" models, all files as generated\n")


def test_edited_repository_is_stale(copied_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(copied_repository) == 0
    config = copied_repository / "ResNet50_ML_engine" / "configs" / "gpu.pbtxt"
    config.write_text(config.read_text().replace("max_queue_size: 128", "max_queue_size: 0"))
    (copied_repository / "ResNet50_ML" / "labels.txt").unlink()
    before = config.read_text()
    capsys.readouterr()
    assert check(copied_repository) == 1
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"{copied_repository}/ResNet50_ML/labels.txt: missing",
        f"{copied_repository}/ResNet50_ML_engine/configs/gpu.pbtxt: differs from what the generator writes",
        "mlcls repository: 2 files are stale; run `mlcls repository`",
    ]
    assert config.read_text() == before
    assert cli.main(["repository", "--repository", str(copied_repository)]) == 0
    out = capsys.readouterr().out
    assert f"wrote {config}\n" in out
    assert out.count("wrote ") == 2
    assert check(copied_repository) == 0


def test_extra_config_must_be_removed(copied_repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(copied_repository / "ResNet50_ML_engine", copied_repository / "Other")
    for arguments in (["repository", "--check"], ["repository"]):
        capsys.readouterr()
        assert cli.main([*arguments, "--repository", str(copied_repository)]) == 1
        assert f"{copied_repository}/Other/config.pbtxt: belongs to no model" in capsys.readouterr().err
    assert (copied_repository / "Other" / "config.pbtxt").is_file()


def test_repository_is_written_from_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "a" / "models"
    assert check(root) == 1
    assert not root.exists()
    assert cli.main(["repository", "--repository", str(root)]) == 0
    assert capsys.readouterr().out.endswith(f"{root}: 6 models, all files as generated\n")
    assert check(root) == 0


def test_custom_model_that_is_not_imported(
    copied_repository: Path, custom_spec: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    write_configs(Repository(copied_repository), custom_spec)
    capsys.readouterr()
    assert check(copied_repository) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"mlcls repository: The custom model animals-v2 in {copied_repository} is not imported ")
    assert error.count("\n") == 1


def test_repository_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLCLS_MODEL_REPOSITORY", str(tmp_path / "named"))
    assert cli.main(["repository"]) == 0
    assert (tmp_path / "named" / "ResNet50_ML" / "config.pbtxt").is_file()
    monkeypatch.delenv("MLCLS_MODEL_REPOSITORY")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["repository"]) == 0
    assert (tmp_path / "model_repository" / "ResNet50_ML" / "config.pbtxt").is_file()
    assert "model_repository: 6 models" in capsys.readouterr().out


# --- serve


@pytest.fixture
def no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for the embedded server means that the address passed the check."""

    def embedded_installation() -> None:
        raise MlclsError("looked for the server")

    monkeypatch.setattr("mlcls.server.installation.embedded_installation", embedded_installation)


@pytest.mark.usefixtures("no_installation")
@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "::1", "192.0.2.1", "example.invalid", "", "127.0.0.1.example.invalid"]
)
def test_public_address_is_refused(capsys: pytest.CaptureFixture[str], host: str) -> None:
    assert cli.main(["serve", "ResNet50_ML", f"--host={host}"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("mlcls serve: The embedded tritonserver is older than the security fixes ")
    assert f"expected --host 127.0.0.1, got {host}. Use the container" in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.usefixtures("no_installation")
@pytest.mark.parametrize("host", [[], ["--host", "127.0.0.1"], ["--host", "localhost"]])
def test_own_address_is_allowed(capsys: pytest.CaptureFixture[str], host: list[str]) -> None:
    assert cli.main(["serve", "ResNet50_ML", *host]) == 1
    assert capsys.readouterr().err == "mlcls serve: looked for the server\n"


def test_folder_without_tritonserver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With another server than the embedded one, every address is allowed."""
    assert cli.main(["serve", "ResNet50_ML", "--host", "0.0.0.0", "--tritonserver", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"mlcls serve: Expected bin/tritonserver and backends/ in {tmp_path}, got a folder without them.\n"
    )


@pytest.fixture
def fake_tritonserver(tmp_path: Path) -> Path:
    """A folder that looks like a Triton without engines, and cannot be started."""
    root = tmp_path / "tritonserver"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "tritonserver").write_text("#!/bin/false\n")
    (root / "backends").mkdir()
    return root


def test_model_that_is_not_imported(
    fake_tritonserver: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "models"
    assert cli.main(["repository", "--repository", str(root)]) == 0
    arguments = ["--tritonserver", str(fake_tritonserver), "--repository", str(root)]
    for name, text in (("ResNet50_ML", "has no weights yet"), ("ResNet", "has no model 'ResNet'")):
        capsys.readouterr()
        assert cli.main(["serve", name, *arguments]) == 1
        assert text in capsys.readouterr().err
    for target, backend in (("cpu", "onnxruntime"), ("gpu", "tensorrt")):
        assert cli.main(["serve", "ResNet50_ML", *arguments, "--target", target]) == 1
        assert f"needs Triton's backend '{backend}'" in capsys.readouterr().err
