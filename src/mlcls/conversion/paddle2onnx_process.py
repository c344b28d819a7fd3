"""Run paddle2onnx in a process of its own, since its C++ part ends the process on a damaged graph."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mlcls.base.files import held_folder, naming
from mlcls.conversion.onnx_file import read_onnx
from mlcls.errors import ConversionError, MissingExtraError

if TYPE_CHECKING:
    import onnx

OPSET: Final = 17
_TIMEOUT_S: Final = 900


def convert_paddle_graph(graph_path: Path, parameters_path: Path) -> onnx.ModelProto:
    """Convert a Paddle graph with paddle2onnx, without edits.

    Raises:
        ConversionError: paddle2onnx failed; the text has the last line of its output.
        MissingExtraError: The extra `convert` is not installed.
    """
    from importlib.util import find_spec

    for package in ("paddle2onnx", "paddle", "onnx"):
        if find_spec(package) is None:
            raise MissingExtraError("convert", package)
    with held_folder(Path(tempfile.gettempdir()), "mlcls-onnx-") as folder:
        target = folder / "raw.onnx"
        command = [sys.executable, "-m", __name__, str(graph_path), str(parameters_path), str(target)]
        try:
            process = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ConversionError(f"{graph_path}: paddle2onnx did not end within {_TIMEOUT_S} s.") from None
        if process.returncode != 0 or not target.exists():
            raise ConversionError(
                f"{graph_path}: paddle2onnx could not convert it ({_last_words(process)}). Expected an inference "
                f"model of paddle 3 with all its parameters in {parameters_path.name}; export or copy it again."
            )
        return read_onnx(target)


def _last_words(process: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (process.stdout + "\n" + process.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    end = f"exit status {process.returncode}" if process.returncode >= 0 else f"signal {-process.returncode}"
    return f"{end}: {(errors or lines or ['no output'])[-1][:300]}"


def main(graph_path: str, parameters_path: str, target: str) -> None:
    """Convert a graph and write the ONNX file; the process runs this."""
    import paddle2onnx

    # paddle2onnx's own optimization stays off: it installs packages with pip at run time, and mlcls edits the graph.
    model: bytes | None = paddle2onnx.export(
        graph_path,
        parameters_path,
        None,
        opset_version=OPSET,
        auto_upgrade_opset=False,
        enable_optimize=False,
        optimize_tool="none",
    )
    if not model:
        raise SystemExit("error: paddle2onnx returned no graph")
    with naming(target):
        Path(target).write_bytes(model)


if __name__ == "__main__":
    main(*sys.argv[1:])
