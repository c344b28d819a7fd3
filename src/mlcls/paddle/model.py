"""A PaddleX inference model on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

from mlcls.base.documents import convert
from mlcls.base.files import sha256_of
from mlcls.errors import ModelFormatError, SpecError
from mlcls.model.spec import ModelSpec
from mlcls.paddle.inference_yml import INFERENCE_YML, InferenceConfig, read_inference_yml

# Possible names of the graph file, the newer format (Paddle's PIR) first.
GRAPH_NAMES: Final = ("inference.json", "inference.pdmodel")
PARAMETERS_NAME: Final = "inference.pdiparams"


@dataclasses.dataclass(frozen=True)
class PaddleXModel:
    """The folder and the files of a PaddleX inference model, and the content of its `inference.yml`."""

    folder: Path
    graph: Path
    parameters: Path
    config: InferenceConfig

    @classmethod
    def open(cls, folder: Path) -> PaddleXModel:
        """Read a model folder.

        Raises:
            ModelFormatError: A file is missing or empty.
            SpecError: `inference.yml` asks for something that mlcls cannot do.
        """
        if not folder.is_dir():
            raise ModelFormatError(f"Expected the folder of a PaddleX inference model, got {folder}, which is not one.")
        present = {path.name for path in folder.iterdir() if path.is_file()}
        missing = [name for name in (INFERENCE_YML, PARAMETERS_NAME) if name not in present]
        graphs = [name for name in GRAPH_NAMES if name in present]
        if not graphs:
            missing.append(" or ".join(GRAPH_NAMES))
        if missing:
            raise ModelFormatError(
                f"{folder}: expected a PaddleX inference model ({' or '.join(GRAPH_NAMES)}, {PARAMETERS_NAME}, "
                f"{INFERENCE_YML}), got a folder without {', '.join(missing)}."
            )
        for name in (graphs[0], PARAMETERS_NAME):
            if (folder / name).stat().st_size == 0:
                raise ModelFormatError(f"{folder / name}: expected a model file, got an empty one; copy it again.")
        config = read_inference_yml(folder / INFERENCE_YML)
        return cls(folder, folder / graphs[0], folder / PARAMETERS_NAME, config)

    def make_spec(self, name: str | None = None) -> ModelSpec:
        """Return the spec before conversion, with the hashes of the source files; the model's name is the default.

        Raises:
            SpecError: The name or a label is not allowed.
        """
        sources = (self.graph, self.parameters, self.folder / INFERENCE_YML)
        fields = {
            "name": self.config.model_name if name is None else name,
            "architecture": self.config.model_name,
            "labels": self.config.labels,
            "thresholds": self.config.thresholds,
            "transform": self.config.transform,
            "source_sha256": {path.name: sha256_of(path) for path in sources},
        }
        return convert(fields, ModelSpec, SpecError)
