"""The result of one image, with the methods and file names of PaddleX's results."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mlcls_client.base.files import write_file
from mlcls_client.base.text import visible_json
from mlcls_client.errors import MlclsClientError
from mlcls_client.inputs.fetch import is_url, url_file_name
from mlcls_client.transport.contract import Answer

if TYPE_CHECKING:
    import os

    from PIL import Image

_KEYS: Final = ("input_path", "page_index", "class_ids", "scores", "label_names")
# What save_to_img writes; an input of any other kind is saved as PNG.
_SAVED_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
# The panel's small colored text suffers from chroma subsampling.
_SAVE_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    ".jpg": {"quality": 92, "subsampling": 0},
    ".jpeg": {"quality": 92, "subsampling": 0},
    ".webp": {"quality": 90},
}


class MultiLabelResult(dict[str, Any]):
    """The labels of one image: a dict with PaddleX's keys, which are attributes too.

    With `predict(on_error="yield")`, the result of an image without an answer has empty lists and one more key, `error`
    (str), which good results do not have.

    Attributes:
        input_path: Path or URL of the image; None for an image from memory.
        page_index: Number of the page of a PDF or TIFF file, from 0; None for a plain image.
        class_ids: Numbers of the labels above the threshold, by descending score.
        scores: Probabilities of these labels, 5 decimals.
        label_names: Names of these labels.
        error: Why there is no result (ImageRejectedError, InputError); None for a good result.

    Examples:
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...     res = next(model.predict("photo.png"))
        >>> res["label_names"], res.scores
        (['red'], [0.78431])
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
    class_ids: list[int]
    scores: list[float]
    label_names: list[str]

    def __init__(
        self,
        answer: Answer,
        input_path: str | None = None,
        page_index: int | None = None,
        encoded_image: bytes = b"",
        error: MlclsClientError | None = None,
    ) -> None:
        """Make the result of one image; `encoded_image` is the image as it was sent, on which `img` draws."""
        super().__init__(
            input_path=input_path,
            page_index=page_index,
            class_ids=list(answer.class_ids),
            scores=list(answer.scores),
            label_names=list(answer.label_names),
        )
        if error is not None:
            self["error"] = str(error.args[0])  # without the request id: the result does not depend on who asks
        self.error = error
        self._encoded_image = encoded_image
        # PaddleX's name of an image from memory: the time and a random number.
        self._memory_name = f"{int(time.time())}_{1000 + secrets.randbelow(9000)}"

    def __getattr__(self, name: str) -> Any:
        """Return the value of a key of the dict."""
        if name in _KEYS:
            return self[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def json(self) -> dict[str, dict[str, Any]]:
        """The result in PaddleX's form: `{"res": {...}}`, plain types only."""
        return {"res": json.loads(json.dumps(self))}

    @property
    def img(self) -> dict[str, Image.Image]:
        """The annotated picture: `{"res": PIL image}`, the photo with its labels in a panel below it.

        Raises:
            InputError: Pillow cannot decode the image.
            MlclsClientError: `error`, if the result has one.
        """
        if self.error is not None:
            raise self.error
        from mlcls_client.pictures.drawing import draw_labels, open_image

        return {"res": draw_labels(open_image(self._encoded_image), self.label_names, self.scores)}

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
        self, save_path: str | os.PathLike[str], indent: int | None = 4, ensure_ascii: bool = False
    ) -> None:
        """Write the result as JSON, without the outer `res`, as PaddleX does.

        Args:
            save_path: A file that ends in `.json`, or a folder, in which the file is `<input name>_res.json`, or
                `<input name>_<page index>_res.json` for a page.
            indent: Spaces per level; None for one line.
            ensure_ascii: Escape all non-ASCII characters.

        Raises:
            OutputError: The file cannot be written.
        """
        text = visible_json(json.dumps(self.json["res"], indent=indent, ensure_ascii=ensure_ascii))
        path = Path(save_path)
        if path.suffix.lower() != ".json":
            path = path / self.file_name("json")
        # A file name that is not UTF-8 is a lone surrogate here; its \udcxx form is a valid escape of JSON.
        write_file(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))

    def save_to_img(self, save_path: str | os.PathLike[str]) -> None:
        """Write the annotated picture.

        Args:
            save_path: A file with the suffix of an image format, or a folder, in which the file is
                `<input name>_res<input suffix>`, or `<input name>_<page index>_res<input suffix>` for a page; the
                suffix is `.png` unless the input is an image file.

        Raises:
            OutputError: The file cannot be written.
            InputError: Pillow cannot decode the image.
            MlclsClientError: `error`, if the result has one.
        """
        from PIL import Image

        picture = self.img["res"]
        path = Path(save_path)
        if path.suffix.lower() not in _SAVED_SUFFIXES:
            path = path / self.file_name("img")
        suffix = path.suffix.lower()
        file_format = Image.registered_extensions()[suffix]
        write_file(path, lambda file: picture.save(file, format=file_format, **_SAVE_OPTIONS.get(suffix, {})))

    def save_all(self, save_path: str | os.PathLike[str]) -> None:
        """Write the JSON file and the annotated picture into a folder, as PaddleX does."""
        self.save_to_json(save_path)
        self.save_to_img(save_path)
