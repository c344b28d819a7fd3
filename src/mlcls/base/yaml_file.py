"""The one place where YAML is read: plain values only, within limits.

A YAML file of a few lines can expand to more than the memory of a machine: an alias stands for all that its anchor has,
and merge keys (`<<`) multiply it. PaddleX itself writes aliases for lists that are one object, so they must be allowed.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

from mlcls.base.text import clip

# 10,000 labels with their thresholds take a third of this; a megabyte takes about five seconds to read.
MAX_BYTES: Final = 2 * 1024**2
MAX_DEPTH: Final = 50
MAX_ALIASES: Final = 1000
# Keys of one mapping, including those from merge keys.
MAX_MERGED_KEYS: Final = 10_000
MAX_NUMBER_CHARACTERS: Final = 1000
_MERGE: Final = "tag:yaml.org,2002:merge"
_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class YamlError(Exception):
    """A text is not YAML, or exceeds a limit."""


def read_yaml(path: Path) -> Any:
    """Read a YAML file: dicts, lists, strings, numbers, booleans, dates, None; an alias is the object of its anchor.

    Raises:
        YamlError: The file is not YAML in UTF-8, has a tag that makes an object or a key twice, or exceeds a limit.
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise YamlError(f"a file of {size} bytes, at most {MAX_BYTES} are read")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise YamlError(str(error)) from None
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; see `read_yaml`.

    Raises:
        YamlError: The text is not YAML, has a tag that makes an object or a key twice, or exceeds a limit.
    """
    import yaml

    try:
        return yaml.load(text, Loader=_bounded_loader())  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, a number of too many digits
        raise YamlError(str(error)) from None
    except RecursionError:
        raise YamlError("a document that is nested too deeply") from None


@functools.lru_cache(maxsize=1)
def _bounded_loader() -> Any:
    import yaml

    class BoundedLoader(yaml.SafeLoader):
        """PyYAML's loader of plain values, with the limits of this module."""

        def __init__(self, stream: str) -> None:
            super().__init__(stream)
            self._depth = self._aliases = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                self._aliases += 1
                if self._aliases > MAX_ALIASES:
                    raise YamlError(f"more than {MAX_ALIASES} aliases")
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise YamlError(f"a document that is nested too deeply, more than {MAX_DEPTH} levels")
            node = super().compose_node(parent, index)
            self._depth -= 1
            return node

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:  # PyYAML itself takes the last
                    if (key.tag, key.value) in seen:
                        raise YamlError(
                            f"the key {clip(key.value)} twice in one mapping, line {key.start_mark.line + 1}"
                        )
                    seen.add((key.tag, key.value))
            return node

        def fetch_flow_collection_start(self, token_class: Any) -> None:
            # before the scanner looks ahead, which takes time that grows with the square of the depth
            if self.flow_level >= MAX_DEPTH:
                raise YamlError(f"a document that is nested too deeply, more than {MAX_DEPTH} levels")
            super().fetch_flow_collection_start(token_class)

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > MAX_MERGED_KEYS:
                raise YamlError(f"a mapping of more than {MAX_MERGED_KEYS} keys")

        def construct_scalar(self, node: Any) -> Any:
            if node.tag in _NUMBERS:
                if ":" in node.value:  # 1:30 is 90 in YAML 1.1, and nobody means it
                    line = node.start_mark.line + 1
                    raise YamlError(f"{clip(node.value)} without quotes, line {line}, which is a number in base 60")
                if len(node.value) > MAX_NUMBER_CHARACTERS:
                    raise YamlError(f"a number of more than {MAX_NUMBER_CHARACTERS} characters")
            return super().construct_scalar(node)

    return BoundedLoader
