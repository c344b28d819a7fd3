"""The result of one image, with the methods and file names of PaddleX's results."""

from __future__ import annotations

import json
import mimetypes
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mlcls_client.base.files import FileNames, write_file
from mlcls_client.base.text import visible_json
from mlcls_client.errors import MlclsClientError, OutputError
from mlcls_client.inputs.fetch import is_url, url_file_name
from mlcls_client.transport.contract import Answer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

_KEYS: Final = ("input_path", "page_index", "class_ids", "scores", "label_names")
# PaddleX's key of the image. It is not among the keys, because it is decoded when it is asked for.
_IMAGE_KEY: Final = "input_img"
# What save_to_img writes; an input of any other kind is saved as PNG.
_SAVED_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pnm"),
)
# The panel's small colored text suffers from chroma subsampling.
_SAVE_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "JPEG": {"quality": 92, "subsampling": 0},
    "WEBP": {"quality": 90},
}


class MultiLabelResult(dict[str, Any]):
    """The N labels of one image: a dict with PaddleX's keys, which are attributes too.

    As in PaddleX, `res["input_img"]` is the image, an array (H, W, 3) uint8 RGB. It is decoded each time, and is not
    among the keys.

    With `predict(on_error="yield")`, the result of an image without an answer has no labels and one more key, `error` (str),
    which good results do not have.

    Attributes:
        input_path: Path or URL of the image; None for an image from memory.
        page_index: Number of the page of a PDF or TIFF file, from 0; None for a plain image.
        class_ids: Numbers of the labels above the threshold, by descending score: an array (N,) int64.
        scores: Probabilities of these labels, 5 decimals: an array (N,) float64.
        label_names: Names of these labels, a list.
        error: Why there is no result (ImageRejectedError, InputError); None for a good result.

    Examples:
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...     res = next(model.predict("photo.png"))
        >>> res["label_names"], res.scores
        (['red'], array([0.78431]))
        >>> res["input_img"].shape
        (60, 80, 3)
        >>> res.print(format_json=True, indent=None)
        {"res": {"input_path": "photo.png", "page_index": null, "class_ids": [0], "scores": [0.78431], "label_names": ["red"]}}
        >>> res.save_all("output/")
        >>> sorted(os.listdir("output"))
        ['photo_res.json', 'photo_res.png']
        >>> res.img["res"].width
        320
    """  # noqa: E501

    input_path: str | None
    page_index: int | None
    class_ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    label_names: list[str]

    def __init__(
        self,
        answer: Answer,
        input_path: str | None = None,
        page_index: int | None = None,
        encoded_image: bytes = b"",
        error: MlclsClientError | None = None,
        file_names: FileNames | None = None,
    ) -> None:
        """Make the result of one image.

        Args:
            answer: The server's answer.
            input_path: Path or URL of the image.
            page_index: Number of the page.
            encoded_image: The image as it was sent, on which `img` draws.
            error: Why there is no result.
            file_names: The names under which the results of one model are saved in folders.
        """
        import numpy as np

        super().__init__(
            input_path=input_path,
            page_index=page_index,
            class_ids=np.array(answer.class_ids, np.int64),
            scores=np.array(answer.scores, np.float64),
            label_names=list(answer.label_names),
        )
        if error is not None:
            self["error"] = str(error.args[0])  # without the request id: the result does not depend on who asks
        self.error = error
        self._encoded_image = encoded_image
        # PaddleX's name of an image from memory: the time and a random number.
        self._memory_name = f"{int(time.time())}_{1000 + secrets.randbelow(9000)}"
        self._file_names = FileNames() if file_names is None else file_names
        # The same image is saved in the same file again; images from memory are never the same.
        self._file_owner = (input_path or secrets.token_hex(8), page_index)

    def __getattr__(self, name: str) -> Any:
        """Return the value of a key of the dict; for PaddleX's `str`, the dict in its form with arrays."""
        if name in _KEYS:
            return self[name]
        if name == "str":  # not a property, which would hide the type `str` in this class
            return {"res": dict(self)}
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __missing__(self, key: str) -> Any:
        """Return the decoded image for `input_img`."""
        if key != _IMAGE_KEY:
            raise KeyError(key)
        import numpy as np

        return np.array(self._open_image())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and _to_plain(self) == _to_plain(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    @property
    def json(self) -> dict[str, dict[str, Any]]:
        """The result in PaddleX's form: `{"res": {...}}`, plain types only."""
        return {"res": _to_plain(self)}

    @property
    def img(self) -> dict[str, Image.Image]:
        """The annotated picture: `{"res": PIL image}`, the photo with its labels in a panel below it.

        Raises:
            InputError: Pillow cannot decode the image.
            MlclsClientError: `error`, if the result has one.
        """
        from mlcls_client.pictures.drawing import draw_labels

        return {"res": draw_labels(self._open_image(), self.label_names, self.scores.tolist())}

    def _open_image(self) -> Image.Image:
        if self.error is not None:
            raise self.error
        from mlcls_client.pictures.drawing import open_image

        return open_image(self._encoded_image)

    def file_name(self, kind: Literal["img", "json"]) -> str:
        """Return the name of the file that `save_to_img` or `save_to_json` writes into a folder."""
        path = self.input_path or self._memory_name
        name = Path(url_file_name(path) if is_url(path) else path)
        page = "" if self.page_index is None else f"_{self.page_index}"
        picture_suffix = name.suffix if name.suffix.lower() in _SAVED_SUFFIXES else ".png"
        return f"{name.stem}{page}_res{picture_suffix if kind == 'img' else '.json'}"

    def print(
        self,
        format_json: bool = False,
        indent: int = 4,
        ensure_ascii: bool = False,
        *,
        json_format: bool | None = None,
    ) -> None:
        """Print the result on standard output.

        PaddleX's tutorial calls the first parameter `format_json`, its code `json_format`; both are accepted. Without
        an argument, PaddleX prints the dict on one line, so that is the default.

        Args:
            format_json: Print indented JSON instead of a dict on one line.
            indent: Spaces per level of the JSON.
            ensure_ascii: Escape all non-ASCII characters in the JSON.
            json_format: The same as `format_json`, which it overrides.
        """
        if format_json if json_format is None else json_format:
            print(visible_json(json.dumps(self.json, indent=indent, ensure_ascii=ensure_ascii)))
        else:
            print(self.json)

    def save_to_json(
        self,
        save_path: str | os.PathLike[str],
        indent: int | None = 4,
        ensure_ascii: bool = False,
        **options: Any,
    ) -> None:
        """Write the result as JSON, without the outer `res`, as PaddleX does.

        Args:
            save_path: A file that ends in `.json`, or a folder, in which the file is `<input name>_res.json`, or
                `<input name>_<page index>_res.json` for a page. In a folder, a name that another image of this model
                has got becomes `<name>_2.json` and so on.
            indent: Spaces per level; None for one line.
            ensure_ascii: Escape all non-ASCII characters.
            options: Further arguments of `json.dumps`, such as `sort_keys`.

        Raises:
            OutputError: The file cannot be written, or `save_path` is neither a folder nor a JSON file.
        """
        text = visible_json(json.dumps(self.json["res"], indent=indent, ensure_ascii=ensure_ascii, **options))
        path = self._choose_path(save_path, "json", (".json",))
        # A file name that is not UTF-8 is a lone surrogate here; its \udcxx form is a valid escape of JSON.
        write_file(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))

    def save_to_img(self, save_path: str | os.PathLike[str]) -> None:
        """Write the annotated picture.

        Args:
            save_path: A file with the suffix of an image format, or a folder, in which the file is
                `<input name>_res<input suffix>`, or `<input name>_<page index>_res<input suffix>` for a page; the
                suffix is `.png` unless the input is an image file. In a folder, a name that another image of this model
                has got becomes `<name>_2<suffix>` and so on.

        Raises:
            OutputError: The file cannot be written, or `save_path` is a file of a format that is not written.
            InputError: Pillow cannot decode the image.
            MlclsClientError: `error`, if the result has one.
        """
        from PIL import Image

        picture = self.img["res"]
        path = self._choose_path(save_path, "img", _SAVED_SUFFIXES)
        file_format = Image.registered_extensions()[path.suffix.lower()]
        write_file(path, lambda file: picture.save(file, format=file_format, **_SAVE_OPTIONS.get(file_format, {})))

    def save_all(self, save_path: str | os.PathLike[str]) -> None:
        """Write the JSON file and the annotated picture into a folder, as PaddleX does."""
        self.save_to_json(save_path)
        self.save_to_img(save_path)

    def _choose_path(
        self, save_path: str | os.PathLike[str], kind: Literal["img", "json"], suffixes: Sequence[str]
    ) -> Path:
        """Return the file that is meant: a file with one of these suffixes, or this result's file in a folder."""
        path = Path(save_path)
        is_folder = path.is_dir() or os.fspath(save_path).endswith(os.sep)
        if path.suffix.lower() in suffixes and not is_folder:
            return path
        file_type, _ = mimetypes.guess_type(path.name)
        if not is_folder and file_type is not None and file_type.startswith(("image/", "text/", "application/json")):
            raise OutputError(
                f"Expected a folder, or the name of a file that ends in {', '.join(suffixes)}, got {str(path)!r}."
            )
        return self._file_names.choose(path, self.file_name(kind), self._file_owner)


def _to_plain(result: dict[str, Any]) -> dict[str, Any]:
    """Return the same content with the types of JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(result, default=_list_or_text))
    return plain


def _list_or_text(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)
