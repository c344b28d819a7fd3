from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from mlcls.base.documents import Document, convert, decode, read, to_json
from mlcls.errors import SpecError


class Part(Document, frozen=True):
    count: Annotated[int, Meta(ge=1, le=5)] = 2
    share: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    sizes: tuple[int, ...] = ()
    color: Literal["red", "blue"] | None = None

    def __post_init__(self) -> None:
        if self.count == 3:
            raise ValueError("count: expected anything but 3")


class Whole(Document, frozen=True):
    name: str
    part: Part = Part()
    parts: dict[str, Part] = {}  # noqa: RUF012 (msgspec copies it)


def test_a_document_survives_json() -> None:
    whole = Whole("né", Part(4, sizes=(1, 2), color="blue"), {"x": Part()})

    assert decode(to_json(whole), Whole, SpecError, "here") == whole


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": 1}, "name: expected str, got 1"),
        ({"part": {"count": 0}}, "part.count: expected int >= 1, got 0"),
        ({"part": {"count": True}}, "part.count: expected int, got True"),
        ({"part": {"share": float("nan")}}, "part.share: expected float >= 0.0, got nan"),
        ({"part": {"sizes": [1, "a"]}}, "part.sizes[1]: expected int, got 'a'"),
        ({"part": {"color": "green"}}, "part.color: expected one of red, blue, got 'green'"),
        ({"part": {"count": 3}}, "part: count: expected anything but 3"),
        ({"part": [1]}, "part: expected object, got [1]"),
        ({"part": {"colour": 1}}, "unknown key part.colour; expected only count, share, sizes, color"),
        ({"parts": {"x": {"count": "many"}}}, "parts[...].count: expected int"),
        ({"parts": {1: {}}}, "parts: expected str as each key, got {1: {}}"),
        ({"\x1b[31m": 2}, r"unknown key \x1b[31m; expected only name, part, parts"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        convert({"name": "n"} | changes, Whole, SpecError, "here", "write it anew")

    assert str(caught.value) == f"here: {text}; write it anew."


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SpecError, match=r"^here: missing key name; expected name, part, parts\.$"):
        convert({}, Whole, SpecError, "here")


@pytest.mark.parametrize("text", ["", "{", '{"name": NaN}', "9" * 5000, "[" * 100_000, b"\xff"], ids=repr)
def test_what_is_not_json_is_an_error(text: str | bytes) -> None:
    with pytest.raises(SpecError, match=r"^here: expected a JSON document, got invalid JSON"):
        decode(text, Whole, SpecError, "here")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(SpecError, match=r"whole\.json does not exist; import the model\.$"):
        read(tmp_path / "whole.json", Whole, SpecError, "import the model")
    with pytest.raises(SpecError, match="cannot be read: "):
        read(tmp_path, Whole, SpecError, "import the model")
