"""Names in the model repository: steps, files, and parameters of the configurations."""

from __future__ import annotations

import re
from typing import Final

from mlcls.errors import RepositoryError

PREPROCESS_SUFFIX: Final = "_preprocess"
ENGINE_SUFFIX: Final = "_engine"
POSTPROCESS_SUFFIX: Final = "_postprocess"
STEP_SUFFIXES: Final = (PREPROCESS_SUFFIX, ENGINE_SUFFIX, POSTPROCESS_SUFFIX)

# Number of the version that an import makes; the names of its steps end in no number.
FIRST_VERSION: Final = 1

CONFIG_FILE: Final = "config.pbtxt"
LABELS_FILE: Final = "labels.txt"
# In the version folder of an ensemble: which version it replaced. Beside these folders: the last number in use.
VERSION_FILE: Final = "version.json"
LAST_NUMBER_FILE: Final = ".mlcls-last-version"

ONNX_FILE: Final = "model.onnx"
FP16_FILE: Final = "model.fp16.onnx"
INT8_FILE: Final = "model.int8.onnx"
PLAN_FILE: Final = "model.plan"

# Parameters of the backend `mlcls_engine`: the threads of one engine, and its precision.
THREADS_PARAMETER: Final = "threads"
PRECISION_PARAMETER: Final = "precision"

# Parameter of the backend `mlcls_preprocess` with the image settings, as JSON; left out if they are the defaults.
IMAGES_PARAMETER: Final = "images"

VERSION_NUMBER: Final = re.compile(r"[1-9]\d{0,8}")
# The name of a step: the model's name, the suffix, and the version's number.
STEP_NAME: Final = re.compile(rf"(?P<model>.+)(?:{'|'.join(STEP_SUFFIXES)})(?:_(?P<version>[1-9]\d{{0,8}}))?")


def step_name(name: str, suffix: str, version: int = FIRST_VERSION) -> str:
    """Return the name of the Triton model that is a step of one version: `NAME_engine`, `NAME_engine_2`."""
    return name + suffix if version == FIRST_VERSION else f"{name}{suffix}_{version}"


def ensemble_labels_file(version: int) -> str:
    """Return the path of a version's label list in the ensemble's folder."""
    return LABELS_FILE if version == FIRST_VERSION else f"{version}/{LABELS_FILE}"


def check_name(name: str) -> None:
    """Check that a model's name cannot be the name of another model's step.

    Raises:
        RepositoryError: It ends like the name of a step.
    """
    if STEP_NAME.fullmatch(name):
        raise RepositoryError(
            f"Expected a name that does not end in {' or '.join(STEP_SUFFIXES)} or one of these with a number, got "
            f"{name!r}."
        )
