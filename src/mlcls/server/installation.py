"""Where a tritonserver is, and what it needs to run the Python backends of this project."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from mlcls.errors import MissingExtraError, RepositoryError, ServerError

BACKENDS: Final = ("mlcls_preprocess", "mlcls_engine", "mlcls_postprocess")

# Environment variable that names the folder of the Python backends.
BACKENDS_VARIABLE: Final = "MLCLS_PYTHON_BACKENDS"

# Environment of the server unless the caller's sets it: malloc keeps the memory of a decoded photo for the next one
# instead of returning it. The page faults cost as much as decoding: decoding and resizing a 640x480 JPEG on one core
# takes 6.5 ms without this and 4.3 ms with it.
ALLOCATOR_VARIABLES: Final = {name: str(256 << 20) for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")}


@dataclasses.dataclass(frozen=True)
class TritonInstallation:
    """One tritonserver.

    Attributes:
        executable: The `tritonserver` program.
        backends: Folder with its backends.
        library_folders: Folders that the dynamic linker must search.
        stub: Stub process of the python backend for the running Python's version, if it is not beside the backend.
    """

    executable: Path
    backends: Path
    library_folders: tuple[Path, ...]
    stub: Path | None = None

    def assemble_backends(self, folder: Path) -> None:
        """Fill an empty folder with all backends: Triton's own, and links to the three of this project."""
        for backend in sorted(self.backends.iterdir()):
            if backend.name != "python" or self.stub is None:
                (folder / backend.name).symlink_to(backend)
        if self.stub is not None:
            python = folder / "python"
            python.mkdir()
            for file in sorted((self.backends / "python").iterdir()):
                if file.is_file():  # pip compiles bytecode into a folder
                    # not linked: Triton loads no library through a link that leaves the folder
                    shutil.copyfile(file, python / file.name)
            stub = python / self.stub.name
            shutil.copyfile(self.stub, stub)
            stub.chmod(0o755)  # a wheel keeps no run bit
        own = find_backends()
        for name in BACKENDS:
            (folder / name).symlink_to(own / name)

    def environment(self) -> dict[str, str]:
        """Return the environment variables of the server process."""
        # The stub process embeds an isolated Python: it ignores PYTHONPATH and uses the environment of the first
        # `python3` on the PATH.
        path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
        libraries = [*map(str, self.library_folders), os.environ.get("LD_LIBRARY_PATH", "")]
        joined = os.pathsep.join(filter(None, libraries))
        return {**ALLOCATOR_VARIABLES, **os.environ, "PATH": path, "LD_LIBRARY_PATH": joined}


def embedded_installation() -> TritonInstallation:
    """Return the tritonserver of the wheel `nvidia-pytriton`.

    Raises:
        MissingExtraError: The wheel is not installed.
        ServerError: It has no stub for the running Python, or this Python has no shared library.
    """
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("serve", "nvidia-pytriton")
    package = Path(next(iter(spec.submodule_search_locations)))
    root = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServerError(
            f"The embedded tritonserver has no Python stub for Python {version}; run mlcls with Python 3.10 to 3.12."
        )
    return TritonInstallation(
        executable=root / "bin" / "tritonserver",
        backends=root / "backends",
        library_folders=(package.parent / "nvidia_pytriton.libs", _python_library_folder(version)),
        stub=stub,
    )


def system_installation(root: Path) -> TritonInstallation:
    """Return the tritonserver of a folder laid out like `/opt/tritonserver` in NVIDIA's container.

    Raises:
        ServerError: The folder has no tritonserver.
    """
    root = root.absolute()  # Triton does not take relative paths
    installation = TritonInstallation(root / "bin" / "tritonserver", root / "backends", (root / "lib",))
    if not installation.executable.is_file() or not installation.backends.is_dir():
        raise ServerError(f"Expected bin/tritonserver and backends/ in {root}, got a folder without them.")
    return installation


def find_backends() -> Path:
    """Return the folder of the three Python backends: `$MLCLS_PYTHON_BACKENDS`, beside the package, or the checkout's.

    Raises:
        RepositoryError: It does not exist.
    """
    package = Path(__file__).resolve().parents[1]
    named = os.environ.get(BACKENDS_VARIABLE)
    candidates = [Path(named)] if named else [package / "python_backends", package.parents[1] / "python_backends"]
    for candidate in candidates:
        if all((candidate / name / "model.py").is_file() for name in BACKENDS):
            return candidate.resolve()
    raise RepositoryError(
        f"Expected the folder of the Python backends ({', '.join(BACKENDS)}) at "
        f"{' or '.join(map(str, candidates))}, got none there; set {BACKENDS_VARIABLE}."
    )


def _python_library_folder(version: str) -> Path:
    """Return the folder of `libpythonX.Y.so.1.0`, which the stub process is linked to."""
    name = f"libpython{version}.so.1.0"
    folders = [Path(str(sysconfig.get_config_var("LIBDIR"))), Path(sys.base_prefix) / "lib"]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        folders += [Path("/usr/lib") / multiarch, Path("/lib") / multiarch]
    for folder in folders:
        if (folder / name).exists():
            return folder
    raise ServerError(
        f"The embedded tritonserver needs the shared library {name}, which this Python ({sys.base_prefix}) does not "
        f"have. On Debian and Ubuntu: apt-get install libpython{version}; with pyenv: build it with --enable-shared."
    )
