"""YAML within limits, and nothing but plain values."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlcls.base.yaml_file import MAX_ALIASES, MAX_BYTES, MAX_DEPTH, YamlError, parse_yaml, read_yaml
from mlcls.errors import ConfigError, SpecError
from mlcls.paddle.inference_yml import read_inference_yml
from mlcls.paddlex.config import read_config


def test_plain_values() -> None:
    text = "a: [1, 0x10, 1_000, 1.5, .inf, true, null, x]\nb: &list [1]\nc: *list\n"
    text += "d: {<<: {e: 0, f: 2}, <<: {g: 3}, e: 1, 1: 2, '1': 3}\n"
    document = parse_yaml(text)
    assert document["a"] == [1, 16, 1000, 1.5, float("inf"), True, None, "x"]
    assert document["b"] is document["c"], "an alias is the same object, not a copy"
    assert document["d"] == {"e": 1, "f": 2, "g": 3, 1: 2, "1": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: [", "expected the node content"),
        ("a: *b", "undefined alias"),
        ("a: \x1b[31m", "special characters are not allowed"),
        ("a: 2026-13-45", "month must be in"),
        ("a: {b: 1, c: 2, b: 3}", "the key 'b' twice in one mapping, line 1"),
        ("a: 1\nb: 2\n'a': 3\n", "the key 'a' twice in one mapping, line 3"),
        (f"a: {'9' * 1001}", "a number of more than 1000 characters"),
        ("a: b\nc: 1:30", "'1:30' without quotes, line 2, which is a number in base 60"),
        ("a: 190:20:30.15", "'190:20:30.15' without quotes, line 1, which is a number in base 60"),
        (f"a: 1{':1' * 400_000}", "without quotes, line 1, which is a number in base 60"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested too deeply"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(MAX_DEPTH + 1)), "nested too deeply, more than 50 levels"),
        ("a0: &a0 {}\n" + "".join(f"a{n}: &a{n} {{<<: *a{n - 1}}}\n" for n in range(1, 900)) + "<<: *a899", "deeply"),
        ("a: &a 1\nb: [" + "*a, " * (MAX_ALIASES + 1) + "]", "aliases"),
        ("".join(f"k{number}: 1\n" for number in range(10_001)), "a mapping of more than 10000 keys"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(YamlError, match=words):
        parse_yaml(text)
    assert time.monotonic() - start_s < 60, "a bomb takes for ever, not some seconds"


def test_merged_mappings_do_not_multiply() -> None:
    """Newer versions of PyYAML take each pair once, older ones ten times at each level, to which there is a limit."""
    levels = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    with contextlib.suppress(YamlError):
        assert parse_yaml("\n".join(["a0: &a0 {x: 1}", *levels]))["a11"] == {"x": 1}


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text("a: é", encoding="utf-8")
    assert read_yaml(path) == {"a": "é"}
    path.write_bytes(b"a: \xff")
    with pytest.raises(YamlError, match="utf-8"):
        read_yaml(path)
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(YamlError, match=f"{MAX_BYTES + 1} bytes"):
        read_yaml(path)
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none.yml")


def test_every_reader_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "inference.yml").write_text("[" * 60)
    with pytest.raises(SpecError, match="nested too deeply"):
        read_inference_yml(tmp_path / "inference.yml")
    with pytest.raises(ConfigError, match="nested too deeply"):
        read_config(tmp_path / "inference.yml")
    # by aliases, ten times as many sections at each level
    levels = [
        f"a{level}: &a{level} {{{', '.join(f'{k}: *a{level - 1}' for k in 'abcdefghij')}}}" for level in range(1, 40)
    ]
    (tmp_path / "config.yaml").write_text("\n".join(["a0: &a0 {}", *levels]))
    with pytest.raises(ConfigError, match="unknown key a0"):
        read_config(tmp_path / "config.yaml")


def test_brackets_are_counted_before_the_scanner_looks_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compares each with all that are open, and would look at a thousand."""
    seen = []
    fetch = yaml.scanner.Scanner.fetch_flow_collection_start

    def watch(self: Any, token_class: Any) -> None:
        seen.append(token_class)
        fetch(self, token_class)

    monkeypatch.setattr(yaml.scanner.Scanner, "fetch_flow_collection_start", watch)
    with pytest.raises(YamlError, match="nested too deeply"):
        parse_yaml("a: " + "[" * 3000)
    assert len(seen) <= MAX_DEPTH
