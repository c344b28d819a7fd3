"""Documents with a schema: JSON files, and parsed YAML or options, read into typed, frozen objects by msgspec.

A document is one class, whose fields are its keys, with types and limits. msgspec checks what comes from outside; this
module adds to its errors what they lack: the document's name, the key in the user's notation, and the value that came.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from mlcls.base.text import clip
from mlcls.errors import MlclsError

T = TypeVar("T")
D = TypeVar("D", bound="Document")

# A number that is neither NaN nor infinite; JSON has no others, YAML and Python do.
Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]

# One step of a path in msgspec's messages: `.name` or `[0]`.
_STEP: Final = re.compile(r"([^.\[\]]+)(?![^\[]*\])|\[([^\]]+)\]")
_UNIONS: Final = (typing.Union, types.UnionType)


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every document; `convert`, `decode` and `change` check one, its constructor checks no types or limits."""


class VersionedDocument(Document, frozen=True, tag_field="schema_version", tag=1):
    """Base of the documents of whole files, which have the key `schema_version`, always 1 so far."""


def decode(text: str | bytes, kind: type[T], error: type[MlclsError], origin: str, remedy: str = "") -> T:
    """Read a JSON text into a type, such as a `Document`; errors call it `origin` and end with the `remedy`.

    Raises:
        MlclsError: `error`; the text is not JSON, a key is unknown or missing, or a value is wrong.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as fault:
        raise error(_join(f"{origin}: expected a JSON document, got invalid JSON ({fault})", remedy)) from None
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, VersionedDocument):
        value = {"schema_version": None} | value  # msgspec would not miss it
    return convert(value, kind, error, origin, remedy)


def convert(
    value: Any, kind: type[T], error: type[MlclsError], origin: str = "", remedy: str = "", *, strict: bool = True
) -> T:
    """Read a parsed document, made of dicts, lists and plain values, like `decode`.

    A text becomes a path where one is wanted and, unless `strict`, a number, true, false or null.

    Raises:
        MlclsError: `error`; a key is unknown or missing, or a value is wrong.
    """
    try:
        return msgspec.convert(value, kind, strict=strict, dec_hook=_read_text)
    except (msgspec.ValidationError, RecursionError) as fault:
        text = _describe(str(fault), value, kind)
        raise error(_join(f"{origin}: {text}" if origin else text, remedy)) from None


def change(document: D, error: type[MlclsError], **values: Any) -> D:
    """Return a checked copy of a document with other values.

    Raises:
        MlclsError: `error`; a value is wrong.
    """
    return convert({**msgspec.to_builtins(document), **values}, type(document), error)


def read(path: Path, kind: type[T], error: type[MlclsError], remedy: str) -> T:
    """Read a JSON file, like `decode`; `remedy` is also what to do if there is no such file.

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


def _read_text(wanted: type[T], found: object) -> T:
    if not isinstance(found, str):
        raise TypeError(f"expected str, got {clip(found)}")
    return wanted(found)  # type: ignore[call-arg]  # a path, so far


def _join(text: str, remedy: str) -> str:
    return f"{text}; {remedy}." if remedy else f"{text}."


def _describe(fault: str, document: Any, kind: object) -> str:
    """Return msgspec's message with the key first and the value that came: `a.b[0]: expected int >= 1, got 0`."""
    message, _, place = fault.replace(" - at `key` in `$", " - at `$[key]").partition(" - at `$")
    place, of_key = place.rstrip("`").removeprefix("[key]"), place.startswith("[key]")
    message, key = message.replace("`", ""), ""
    value, wanted, owner = document, kind, kind
    for name, index in _STEP.findall(place):
        owner, wanted = wanted, _type_within(wanted, name)
        if index == "...":  # how msgspec writes the key of a mapping
            name = next(key for key, item in value.items() if not _fits(item, wanted))
        value = value[int(index)] if index.isdigit() else value.get(name)
        key += f"[{index}]" if index.isdigit() else f".{clip(str(name))[1:-1]}"
    key = key.lstrip(".")
    if of_key:
        wanted = next((parts[0] for option in _options(wanted) if (parts := typing.get_args(option))), str)
        key, value = f"a key of {key or 'the document'}", next(name for name in value if not _fits(name, wanted))
    prefix = f"{key}." if key else ""
    keys = ", ".join(key for option in _options(wanted) for key in getattr(option, "__struct_encode_fields__", ()))
    if unknown := re.fullmatch(r"Object contains unknown field (.*)", message, re.DOTALL):
        return f"unknown key {clip(prefix + unknown[1])[1:-1]}; expected only {keys}"
    if missing := re.fullmatch(r"Object missing required field (.*)", message):
        return f"missing key {prefix}{missing[1]}; expected {keys}"
    if message.endswith("out of range"):
        message = "Expected a number in its type's range"
    elif wanted is None and hasattr(owner, "__struct_config__"):
        message = f"Expected {owner.__struct_config__.tag}"
    elif message.startswith("Invalid enum value"):
        choices = [str(choice) for option in _options(wanted) for choice in typing.get_args(option)]
        message = f"Expected {'one of ' if len(choices) > 1 else ''}{', '.join(choices)}"
    if message.startswith("Expected"):
        message = re.sub(", got [^ ]*", "", message).replace("Expected", "expected")
        message = re.sub(r"float [<>]= -?1\.79\S*", "a finite number", message) + f", got {clip(value)}"
    elif re.match(r"\w+: ", message):  # a rule of the document itself, about one of its keys
        return prefix + message
    return f"{key}: {message}" if key else message


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


def _options(kind: Any) -> list[Any]:
    """Return the types that a type stands for: without annotations, and those of a union one by one."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _options(parts[0])
    return [option for part in parts for option in _options(part)] if origin in _UNIONS else [kind]


def _type_within(kind: object, field: str) -> Any:
    """Return the type of a field of a document, or of the items of a list or mapping if `field` is empty."""
    for option in _options(kind):
        if field and hasattr(option, "__struct_fields__"):
            return {info.encode_name: info.type for info in msgspec.structs.fields(option)}.get(field)
        if parts := typing.get_args(option):
            return parts[0] if parts[-1] is ... else parts[-1]
    return None
