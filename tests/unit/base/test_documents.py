from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta

from mlcls.base.documents import Document, Finite, VersionedDocument, change, convert, decode, read, to_json
from mlcls.base.text import clip
from mlcls.errors import SpecError


class Part(Document, frozen=True):
    count: Annotated[int, Meta(ge=1, le=5)] = 2
    share: Annotated[float, Meta(ge=0, lt=1)] = 0.5
    sizes: tuple[int, ...] = ()
    color: Literal["red", "blue"] | None = None
    weight: Finite = 1.0

    def __post_init__(self) -> None:
        if self.count == 3:
            raise ValueError("count: expected anything but 3")


class Whole(VersionedDocument, frozen=True):
    name: str
    part: Part = Part()
    parts: dict[str, Part] = {}  # noqa: RUF012 (msgspec copies it)
    kinds: dict[Literal["a", "b"], int] = {}  # noqa: RUF012


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
        ({"part": {"count": 3}}, "part.count: expected anything but 3"),
        ({"part": [1]}, "part: expected object, got [1]"),
        ({"part": {"colour": 1}}, "unknown key part.colour; expected only count, share, sizes, color, weight"),
        ({"parts": {"w": {}, "x": {"count": 9}}}, "parts.x.count: expected int <= 5, got 9"),
        ({"part": {"share": 1 << 2000}}, f"part.share: expected a number in its type's range, got {clip(1 << 2000)}"),
        ({"part": {"weight": float("inf")}}, "part.weight: expected a finite number, got inf"),
        ({"part": {"weight": float("nan")}}, "part.weight: expected a finite number, got nan"),
        ({"kinds": {"a": 1, "c": 2}}, "a key of kinds: expected one of a, b, got 'c'"),
        ({"schema_version": 2}, "schema_version: expected 1, got 2"),
        ({"schema_version": True}, "schema_version: expected 1, got True"),
        ({"parts": {1: {}}}, "a key of parts: expected str, got 1"),
        ({"\x1b[31m": 2}, r"unknown key \x1b[31m; expected only name, part, parts, kinds"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        convert({"name": "n"} | changes, Whole, SpecError, "here", "write it anew")

    assert str(caught.value) == f"here: {text}; write it anew."


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SpecError, match=r"^here: missing key name; expected name, part, parts, kinds\.$"):
        convert({}, Whole, SpecError, "here")
    with pytest.raises(SpecError, match=r"^here: schema_version: expected 1, got None\.$"):
        decode('{"name": "n"}', Whole, SpecError, "here")


def test_a_copy_with_other_values_is_checked() -> None:
    whole = Whole("n", Part(4))

    assert change(whole, SpecError, name="m") == Whole("m", Part(4))
    with pytest.raises(SpecError, match=r"^count: expected int <= 5, got 9\.$"):
        change(whole.part, SpecError, count=9)


@pytest.mark.parametrize("text", ["", "{", '{"name": NaN}', "9" * 5000, "[" * 100_000, b"\xff"], ids=repr)
def test_what_is_not_json_is_an_error(text: str | bytes) -> None:
    with pytest.raises(SpecError, match=r"^here: expected a JSON document, got invalid JSON"):
        decode(text, Whole, SpecError, "here")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Any) -> None:
    with pytest.raises(SpecError, match=r"whole\.json does not exist; import the model\.$"):
        read(tmp_path / "whole.json", Whole, SpecError, "import the model")
    with pytest.raises(SpecError, match="cannot be read: "):
        read(tmp_path, Whole, SpecError, "import the model")
