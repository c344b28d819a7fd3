"""Open a PaddleX inference model from a folder, an archive, a URL or by the name of an official model."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlcls.base.download import fetch
from mlcls.base.files import held_folder
from mlcls.errors import MissingExtraError, ModelFormatError
from mlcls.model.catalog import OFFICIAL_MODELS
from mlcls.paddle.archive import extract_model
from mlcls.paddle.model import PaddleXModel


@contextlib.contextmanager
def open_source(source: str) -> Iterator[PaddleXModel]:
    """Open a model from a folder, an archive, the http(s) URL of one, or by the name of an official model.

    Unpacked files are removed when the block ends; downloads stay in the cache.

    Raises:
        DownloadError: The URL or the official model cannot be downloaded.
        ModelFormatError: The source is none of these, or not a PaddleX model.
        SpecError: Its `inference.yml` asks for something that mlcls cannot do.
    """
    path = Path(source)
    if path.is_dir():
        yield PaddleXModel.open(path)
        return
    url = source if source.lower().startswith(("http://", "https://")) else None
    if source in OFFICIAL_MODELS and not path.exists():
        url = OFFICIAL_MODELS[source].inference_url
    if url is None and not path.is_file():
        raise ModelFormatError(
            f"Expected a folder, a .tar archive, an http(s) URL or one of {', '.join(OFFICIAL_MODELS)}, got "
            f"{source!r}, which is none of them."
        )
    try:
        archive = path if url is None else fetch(url, "mlcls import {}")
    except ModuleNotFoundError as error:
        raise MissingExtraError("convert", str(error.name)) from error
    with held_folder(Path(tempfile.gettempdir()), "mlcls-source-") as temporary:
        folder = temporary / "model"
        try:
            extract_model(archive, folder)
        except ModelFormatError:
            if url is not None:  # so that the next try downloads it again
                archive.unlink(missing_ok=True)
            raise
        yield PaddleXModel.open(folder)
