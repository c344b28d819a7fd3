"""The folder of backends that a server is started with."""

from __future__ import annotations

from pathlib import Path

from mlcls.server.installation import BACKENDS, TritonInstallation


def test_the_backends_of_a_wheel_whose_bytecode_is_compiled(tmp_path: Path) -> None:
    """As pip does: `__pycache__` lies beside the files of the Python backend."""
    backends, stub = tmp_path / "backends", tmp_path / "triton_python_backend_stub"
    (backends / "python" / "__pycache__").mkdir(parents=True)
    (backends / "python" / "triton_python_backend_utils.py").write_text("utils")
    stub.write_text("stub")
    folder = tmp_path / "assembled"
    folder.mkdir()
    TritonInstallation(tmp_path / "tritonserver", backends, (), stub).assemble_backends(folder)
    assert {path.name for path in folder.iterdir()} == {"python", *BACKENDS}
    assert {path.name: path.read_text() for path in (folder / "python").iterdir()} == {
        "triton_python_backend_utils.py": "utils",
        stub.name: "stub",
    }
