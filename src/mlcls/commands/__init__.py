"""The subcommands of `mlcls`: modules that import what they need when they run.

Each has its `NAME`, a `SUMMARY` in one line, `add_arguments(parser)`, and `run(arguments)`, which returns a status.
"""

from __future__ import annotations

from types import ModuleType
from typing import Final

from mlcls.commands import (
    build_engine,
    calibrate,
    doctor,
    evaluate,
    export,
    health,
    import_model,
    models,
    paddlex,
    predict,
    publish,
    repository,
    rollback,
    serve,
    tune,
    verify,
    versions,
)

# In the order of `mlcls --help`.
COMMANDS: Final[tuple[ModuleType, ...]] = (
    models,
    export,
    import_model,
    build_engine,
    verify,
    calibrate,
    evaluate,
    publish,
    rollback,
    versions,
    repository,
    tune,
    serve,
    health,
    doctor,
    predict,
    paddlex,
)
