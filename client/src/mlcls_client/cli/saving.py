"""The files of many results in one folder: PaddleX's names, and none written twice."""

import os
from pathlib import Path
from typing import Literal, TypeAlias

from mlcls_client.result import MultiLabelResult

SavedKind: TypeAlias = Literal["img", "json"]


class ResultSaver:
    """Saves under PaddleX's names; a name that this saver has used already gets a number."""

    def __init__(self, folder: Path, kind: SavedKind) -> None:
        """Make a saver.

        Args:
            folder: Where the files go; made as needed.
            kind: `img` for annotated pictures, `json` for JSON files.
        """
        self._folder = folder
        self._kind = kind
        self._used: set[str] = set()

    def save(self, result: MultiLabelResult) -> Path:
        """Write the file of one result.

        Returns:
            Its path.

        Raises:
            OutputError: The file cannot be written.
            InputError: Pillow cannot decode the image.
        """
        name = result.picture_name if self._kind == "img" else result.json_name
        stem, suffix = os.path.splitext(name)
        number = 2
        while name.casefold() in self._used:
            name = f"{stem}_{number}{suffix}"
            number += 1
        self._used.add(name.casefold())
        (result.save_to_img if self._kind == "img" else result.save_to_json)(self._folder / name)
        return self._folder / name
