"""Change the files and texts that the library parses itself; each must be read, or refused with an error of mlcls."""

from __future__ import annotations

import dataclasses
import io
import random
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.endurance.fuzzing.mutations import mutate
from mlcls.errors import MlclsError
from mlcls.images.settings import ImageSettings
from mlcls.model.catalog import official_spec
from mlcls.model.postprocess import parse_thresholds
from mlcls.model.spec import ModelSpec
from mlcls.paddle.archive import extract_model
from mlcls.paddle.inference_yml import INFERENCE_YML, format_inference_yml, read_inference_yml
from mlcls.repository.settings import ModelSettings, ServingSettings

_LABELS: Final = ("cat", "犬", "fox")
_SLOW_S: Final = 5.0
_TOKEN: Final = re.compile(r"[^\s,:\[\]{}]+")
# Values that parsers stumble over.
_VALUES: Final = (
    "", "null", "~", "true", "-1", "0", "1e999", "-1e999", ".nan", ".inf", "NaN", "Infinity", "9" * 5000, "1.5", "0x7f",
    "[]", "{}", "[[[[1]]]]", "{a: 1, a: 2}", "!!python/object/apply:os.system ['true']", "&a [*a]", "*a", "<<",
    "2026-01-01", "\ud7ff", "\x00", "\ufeff", "'", '"', "---", "...", "%YAML 1.1", "- ", "? ", ": ", "|", ">", "\t",
    "../../x", "/etc/passwd", "💥" * 50, '{"default": 0.5}', '{"default": true}', '{"default": 0.5, "0": null}',
    "[" * 3000, '{"a":' * 3000,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Parser:
    """One parser of the library.

    Attributes:
        seeds: Good inputs by name.
        parse: Parses an input in an empty folder. Errors other than `MlclsError` are faults, and so is a returned text.
        is_text: Whether inputs are UTF-8 text; then words are changed too.
    """

    seeds: Mapping[str, bytes]
    parse: Callable[[bytes, Path], str | None]
    is_text: bool = True


def fuzz_parser(name: str, cases: int, seed: int) -> list[str]:
    """Change the inputs of one parser.

    Args:
        name: One of `PARSERS`.
        cases: Number of changed inputs.
        seed: The same seed makes the same changes.

    Returns:
        The findings, each with its input.
    """
    parser, faults = PARSERS[name], []
    for case in range(cases):
        chance = random.Random(f"{seed}:{name}:{case}")
        data = _change(chance, parser)
        with tempfile.TemporaryDirectory(prefix="mlcls-fuzz-") as folder:
            began = time.process_time()
            try:
                fault = parser.parse(data, Path(folder))
            except MlclsError:
                fault = None
            except Exception as error:
                fault = f"{type(error).__name__}: {error}"
            seconds = time.process_time() - began
        if fault is None and seconds > _SLOW_S:
            fault = f"took {seconds:.1f} s of CPU time"
        if fault is not None:
            faults.append(f"case {case}: {fault[:300]}; the input: {data[:300]!r}")
    return faults


def _change(chance: random.Random, parser: Parser) -> bytes:
    if not parser.is_text or chance.random() < 0.4:
        return mutate(chance, parser.seeds)[1]
    text = parser.seeds[chance.choice(sorted(parser.seeds))].decode()
    for _ in range(chance.choice((1, 1, 2, 4))):
        tokens = list(_TOKEN.finditer(text))
        if tokens:
            token = chance.choice(tokens)
            text = text[: token.start()] + chance.choice(_VALUES) + text[token.end() :]
    return text.encode("utf-8", "replace")


def _parse_inference_yml(data: bytes, folder: Path) -> None:
    (folder / INFERENCE_YML).write_bytes(data)
    read_inference_yml(folder / INFERENCE_YML)


def _parse_text(parse: Callable[[str], object]) -> Callable[[bytes, Path], None]:
    def parse_bytes(data: bytes, _: Path) -> None:
        parse(data.decode("utf-8", "replace"))

    return parse_bytes


def _extract_archive(data: bytes, folder: Path) -> str | None:
    archive, target = folder / "model.tar", folder / "model"
    archive.write_bytes(data)
    try:
        extract_model(archive, target)
    finally:
        entries = sorted(path for path in folder.rglob("*") if path not in (archive, target))
        outside = [path.name for path in entries if target not in path.parents]
        others = [path.name for path in entries if path.is_symlink() or not (path.is_file() or path.is_dir())]
    return f"unexpected files {outside or others}" if outside or others else None


def _make_specs() -> dict[str, ModelSpec]:
    spec = official_spec("PP-LCNet_x1_0_ML")
    small = msgspec.structs.replace(spec, labels=_LABELS, thresholds=(0.5, 0.3, 0.75))
    return {"same thresholds": msgspec.structs.replace(small, thresholds=(0.5,) * 3), "own thresholds": small}


def _make_archives() -> dict[str, bytes]:
    archives = {}
    files = {"inference.json": b"{}", "inference.pdiparams": bytes(2000), INFERENCE_YML: b"Global: {}\n"}
    for mode in ("", "gz", "bz2", "xz"):
        for form, name in ((tarfile.PAX_FORMAT, "pax"), (tarfile.GNU_FORMAT, "gnu")):
            buffer = io.BytesIO()
            options: dict[str, Any] = {"fileobj": buffer, "mode": f"w:{mode}", "format": form}
            with tarfile.open(**options) as archive:
                for path, content in files.items():
                    member = tarfile.TarInfo(f"{'long' * 40}/模型_infer/{path}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
                for path, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
                    if mode == "" and name == "gnu":
                        member = tarfile.TarInfo(f"model_infer/{path}")
                        member.type, member.linkname = kind, "../../outside"
                        archive.addfile(member)
            archives[f"{name} {mode}"] = buffer.getvalue()
    return archives


_SPECS: Final = _make_specs()
_SETTINGS: Final = ModelSettings(
    max_batch_size=16,
    targets={"embedded": ServingSettings(3, 2, 1)},
    images=ImageSettings(formats=("JPEG",), jpeg_oversampling=2.0),
)

# By what they read.
PARSERS: Final[Mapping[str, Parser]] = {
    "inference.yml": Parser(
        {name: format_inference_yml(spec).encode() for name, spec in _SPECS.items()}, _parse_inference_yml
    ),
    "archive": Parser(_make_archives(), _extract_archive, is_text=False),
    "threshold": Parser(
        {"number": b"0.5", "mapping": '{"default": 0.5, "0": 0.3, "犬": 0.7}'.encode(), "list": b"[0.1, 0.2, 0.3]"},
        _parse_text(lambda text: parse_thresholds(text, _LABELS)),
    ),
    "serving.json": Parser({"settings": _SETTINGS.to_json().encode()}, _parse_text(ModelSettings.from_json)),
    "model_spec.json": Parser(
        {name: spec.to_json().encode() for name, spec in _SPECS.items()}, _parse_text(ModelSpec.from_json)
    ),
}
