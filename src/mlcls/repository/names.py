"""Names in the model repository: steps, files, and parameters of the configurations."""

from __future__ import annotations

from typing import Final

PREPROCESS_SUFFIX: Final = "_preprocess"
ENGINE_SUFFIX: Final = "_engine"
POSTPROCESS_SUFFIX: Final = "_postprocess"
STEP_SUFFIXES: Final = (PREPROCESS_SUFFIX, ENGINE_SUFFIX, POSTPROCESS_SUFFIX)

# Number of the version that an import makes; its folders have no number in their names.
FIRST_VERSION: Final = 1

LABELS_FILE: Final = "labels.txt"
ONNX_FILE: Final = "model.onnx"
FP16_FILE: Final = "model.fp16.onnx"
INT8_FILE: Final = "model.int8.onnx"
PLAN_FILE: Final = "model.plan"

# Parameter of the backend `mlcls_engine` with the threads of one engine.
THREADS_PARAMETER: Final = "threads"
PRECISION_PARAMETER: Final = "precision"

# Parameter of the backend `mlcls_preprocess` with the image settings, as JSON; left out where they are the defaults.
IMAGES_PARAMETER: Final = "images"


def step_name(name: str, suffix: str, version: int = FIRST_VERSION) -> str:
    """Return the name of the Triton model that is a step of one version: `NAME_engine`, `NAME_engine_2`."""
    return name + suffix if version == FIRST_VERSION else f"{name}{suffix}_{version}"


def ensemble_labels_file(version: int) -> str:
    """Return the path of a version's label list in the ensemble's folder."""
    return LABELS_FILE if version == FIRST_VERSION else f"{version}/{LABELS_FILE}"
