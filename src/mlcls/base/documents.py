"""Documents with a schema: JSON files, and parsed YAML or options, read into typed, frozen objects by msgspec.

A document is one class, whose fields are its keys, with types and limits. msgspec checks what comes from outside; this
module adds to its errors what they lack: the document's name, the key in the user's notation, and the value that came.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from mlcls.base.text import clip
from mlcls.errors import MlclsError

T = TypeVar("T")

# One step of a path in msgspec's messages: `.name` or `[0]`.
_STEP: Final = re.compile(r"([^.\[\]]+)(?![^\[]*\])|\[([^\]]+)\]")


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every document; `convert` and `decode` check one, its constructor does not check types or limits."""


def decode(text: str | bytes, kind: type[T], error: type[MlclsError], origin: str, remedy: str = "") -> T:
    """Read a JSON text.

    Args:
        text: The JSON text.
        kind: What to read it into, a `Document` for example.
        error: What to raise.
        origin: What errors call the document: its path, usually.
        remedy: What errors tell the user to do.

    Raises:
        MlclsError: `error`; the text is not JSON, a key is unknown or missing, or a value is wrong.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as fault:
        raise error(_join(f"{origin}: expected a JSON document, got invalid JSON ({fault})", remedy)) from None
    return convert(value, kind, error, origin, remedy)


def convert(value: Any, kind: type[T], error: type[MlclsError], origin: str = "", remedy: str = "") -> T:
    """Read a parsed document, made of dicts, lists and plain values. See `decode` for the arguments.

    Raises:
        MlclsError: `error`; a key is unknown or missing, or a value is wrong.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as fault:
        text = _describe(str(fault), value, kind)
        raise error(_join(f"{origin}: {text}" if origin else text, remedy)) from None


def read(path: Path, kind: type[T], error: type[MlclsError], remedy: str) -> T:
    """Read a JSON file. See `decode` for the arguments; `remedy` is also what to do if there is no such file.

    Raises:
        MlclsError: `error`; the file cannot be read, or is not such a document.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise error(_join(f"{path} does not exist", remedy)) from None
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault}.") from None
    return decode(text, kind, error, str(path), remedy)


def to_json(document: object) -> str:
    """Return the indented JSON text of a document, with a line break at its end."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def _join(text: str, remedy: str) -> str:
    return f"{text}; {remedy}." if remedy else f"{text}."


def _describe(fault: str, document: Any, kind: object) -> str:
    """Return msgspec's message with the key first and the value that came: `a.b[0]: expected int >= 1, got 0`."""
    message, _, place = fault.replace(" - at `key` in `$", " as each key - at `$").partition(" - at `$")
    message, key = message.replace("`", ""), place.rstrip("`").lstrip(".")
    value, wanted = document, kind
    for name, index in _STEP.findall(key):
        # msgspec's messages write "[...]" for a key of a mapping, so the value there is not known
        known = isinstance(value, (dict, list)) and index != "..."
        value = (value.get(name) if name else value[int(index)]) if known else None
        wanted = _type_within(wanted, name)
    prefix = f"{key}." if key else ""
    if unknown := re.fullmatch(r"Object contains unknown field (.*)", message, re.DOTALL):
        return f"unknown key {clip(prefix + unknown[1])[1:-1]}; expected only {', '.join(_keys(wanted))}"
    if missing := re.fullmatch(r"Object missing required field (.*)", message):
        return f"missing key {prefix}{missing[1]}; expected {', '.join(_keys(wanted))}"
    if message.startswith("Invalid enum value"):
        message = f"Expected one of {', '.join(map(str, _choices(wanted)))}"
    if message.startswith("Expected"):
        message = "e" + re.sub(", got [^ ]*", "", message[1:]) + ("" if "..." in key else f", got {clip(value)}")
    return f"{key}: {message}" if key else message


def _type_within(kind: object, field: str) -> object:
    """Return the type of a field of a document, or of the items of a list or mapping if `field` is empty."""
    for option in (kind, *typing.get_args(kind)):
        if field and isinstance(option, type) and issubclass(option, msgspec.Struct):
            return typing.get_type_hints(option).get(field)
    return None if field else next(reversed(typing.get_args(kind)), None)


def _keys(kind: object) -> Iterator[str]:
    for option in (kind, *typing.get_args(kind)):
        yield from getattr(option, "__struct_encode_fields__", ())


def _choices(kind: object) -> Iterator[object]:
    for option in typing.get_args(kind):
        yield from typing.get_args(option) or ([] if option is type(None) else [option])
