"""What the three Triton backends share: their version folder, their spec, BYTES tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlcls.errors import RepositoryError
from mlcls.model_spec import FILE_NAME, ModelSpec
from mlcls.paddlex_model import sha256_of


def version_folder(args: Mapping[str, str]) -> Path:
    """The version folder of a model, from the arguments that Triton gives to `initialize`."""
    return Path(args["model_repository"]) / args["model_version"]


def load_spec(args: Mapping[str, str]) -> ModelSpec:
    """The spec in a model's version folder.

    Raises:
        SpecError: It is missing or wrong.
    """
    return ModelSpec.read(version_folder(args) / FILE_NAME)


def verify_file(path: Path, sha256: str | None) -> None:
    """Refuses a model file that is not the one the spec was written for.

    Raises:
        RepositoryError: The file is missing or has another digest.
    """
    if not path.is_file():
        raise RepositoryError(f"{path} does not exist; import the model: mlcls import MODEL.")
    if sha256_of(path) != sha256:
        raise RepositoryError(
            f"{path} is not the file that the spec beside it was written for (its SHA-256 differs): damaged, or copied "
            f"from another model; import the model again."
        )


def encode_texts(texts: Sequence[str]) -> npt.NDArray[np.object_]:
    """A BYTES tensor (N, 1) of UTF-8 texts."""
    return np.array([text.encode() for text in texts], dtype=np.object_).reshape(-1, 1)


def decode_texts(tensor: npt.NDArray[np.object_]) -> list[str]:
    """The texts of a BYTES tensor (N, 1)."""
    return [bytes(item).decode() for item in tensor.ravel()]
