"""Programs that no package of the project installs."""

from __future__ import annotations

import os
import shutil
from typing import Final

import pytest

from support.processes import ROOT

# Where `make test` puts them: folder of the program, target of make.
_FOLDERS: Final = {"prometheus": "usr/bin", "helm": "."}


def find_program(name: str, package: str) -> str:
    """Return the path of a program that make installs, or of the system's.

    Raises:
        pytest.skip.Exception: There is neither.
    """
    folders = [str(ROOT / ".tools" / package / _FOLDERS[package]), os.environ["PATH"]]
    program = shutil.which(name, path=os.pathsep.join(folders))
    if program is None:
        pytest.skip(f"{name} is not installed (make .tools/{package}/.installed)")
    return program
