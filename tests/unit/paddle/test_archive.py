"""`mlcls.paddle.archive` on archives that are as they should be, damaged, or evil."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from mlcls.base.files import STAGING_PREFIX
from mlcls.errors import ModelFormatError
from mlcls.paddle import archive
from mlcls.paddle.archive import extract_model

NOISE = random.Random(0).randbytes(200_000)
MODEL = {"inference.yml": b"Global: {}\n", "inference.json": b"{}", "inference.pdiparams": NOISE}
FOLDER = "PP-LCNet_x1_0_ML_infer"

Format = Literal[0, 1, 2]
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = b"", **fields: Any) -> Member:
    """One member, a regular file unless `fields` say otherwise."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def model(prefix: str = f"{FOLDER}/") -> list[Member]:
    """The members of a model below `prefix`."""
    return [member(prefix + name, data) for name, data in MODEL.items()]


def body(members: list[Member], form: Format = tarfile.GNU_FORMAT) -> bytes:
    """A plain tar without its end mark; a header's size is written as it stands, whatever data follows."""
    return b"".join(info.tobuf(form) + data + bytes(-len(data) % 512) for info, data in members)


def tar_bytes(members: list[Member], form: Format = tarfile.GNU_FORMAT) -> bytes:
    """A plain tar."""
    return body(members, form) + bytes(10_240)


@pytest.fixture
def pack(tmp_path: Path) -> Callable[..., Path]:
    """Writes members, or bytes as they are, to a file."""

    def write(content: list[Member] | bytes, name: str = "model.tar", **options: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else tar_bytes(content, **options))
        return path

    return write


def tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    """What lies directly in a folder."""
    return [entry.name for entry in folder.iterdir()]


def refusal(path: Path, **options: Any) -> str:
    """The message of a failing extraction, which leaves no trace, beside an old folder and beside none."""
    parent = path.parent / "out"
    messages = []
    for name in ("old", "none"):
        into = parent / name
        shutil.rmtree(parent, ignore_errors=True)
        (parent / "old").mkdir(parents=True)
        (parent / "old" / "before").write_bytes(b"before")
        with pytest.raises(ModelFormatError) as caught:
            extract_model(path, into, **options)
        messages.append(str(caught.value).replace(str(into), "INTO"))
        assert {str(entry.relative_to(parent)) for entry in parent.rglob("*")} == {"old", "old/before"}
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]
    assert messages[0].startswith(f"{path}: expected ")
    return messages[0]


def refused_member(path: Path, **options: Any) -> str:
    """What is said about the member that is refused."""
    start = f"{path}: expected plain files and folders inside one folder, but member "
    end = (
        "; nothing was unpacked. Get the archive from its official source, or pack the model folder again with tar."
    )  # fmt: skip
    message = refusal(path, **options)
    assert message.startswith(start)
    assert message.endswith(end)
    return message.removeprefix(start).removesuffix(end)


def refusal_at(path: Path, name: str) -> str:
    """The message of a failing extraction to one place beside the archive."""
    into = path.parent / name
    entries = sorted(path.parent.rglob("*"))
    with pytest.raises(ModelFormatError) as caught:
        extract_model(path, into)
    assert sorted(path.parent.rglob("*")) == entries
    return str(caught.value)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_official_layout(
    pack: Callable[..., Path], tmp_path: Path, compress: Callable[[bytes], bytes], form: Format
) -> None:
    """One top-level folder; the compression is told from the content, not from the file's name."""
    path = pack(compress(tar_bytes([member(FOLDER, type=tarfile.DIRTYPE), *model()], form=form)))
    into = tmp_path / "very" / "deep" / "into"
    assert extract_model(path, into) == into / FOLDER
    assert tree(into / FOLDER) == MODEL
    assert names(into) == [FOLDER]
    assert names(into.parent) == ["into"]


@pytest.mark.parametrize("prefix", ["", "./"])
def test_flat_layout(pack: Callable[..., Path], tmp_path: Path, prefix: str) -> None:
    """No top-level folder, as `tar -C model .` packs it."""
    path = pack([member("./", type=tarfile.DIRTYPE), *model(prefix), member("old/old.inference.yml")])
    assert extract_model(path, tmp_path / "into") == tmp_path / "into"
    assert tree(tmp_path / "into") == {**MODEL, "old/old.inference.yml": b""}


def test_archive_of_the_tar_command(tmp_path: Path) -> None:
    """With long names and an empty folder."""
    folder = tmp_path / FOLDER / ("n" * 70) / ("m" * 70)
    folder.mkdir(parents=True)
    (tmp_path / FOLDER / "empty").mkdir()
    for name, data in MODEL.items():
        (folder / name).write_bytes(data)
    for form in ("gnu", "pax", "ustar"):
        path = tmp_path / f"{form}.tar.gz"
        subprocess.run(["tar", f"--format={form}", "-czf", path, "-C", tmp_path, FOLDER], check=True)
        into = tmp_path / form
        assert extract_model(path, into) == into / folder.relative_to(tmp_path)
        assert tree(into / folder.relative_to(tmp_path)) == MODEL
        assert (into / FOLDER / "empty").is_dir()


def test_what_macos_adds_is_ignored(pack: Callable[..., Path], tmp_path: Path) -> None:
    """AppleDouble files, also with an `inference.yml` of theirs, and pax headers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        extra = [member(f"._{FOLDER}"), member(f"{FOLDER}/._inference.yml"), member("__MACOSX/x/inference.yml", b"no")]
        link = member("__MACOSX/link", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        for info, data in [*extra, link, *model()]:
            info.pax_headers = {"LIBARCHIVE.xattr.com.apple.provenance": "AQ", "mtime": "1.5"}
            tar.addfile(info, io.BytesIO(data))
    into = tmp_path / "into"
    assert extract_model(pack(buffer.getvalue()), into) == into / FOLDER
    assert {str(path.relative_to(into)) for path in into.rglob("*")} == {
        FOLDER,
        *(f"{FOLDER}/{name}" for name in MODEL),
    }


def test_permissions_are_not_the_archives(pack: Callable[..., Path], tmp_path: Path) -> None:
    """Nor those of the umask, nor those of the temporary folder."""
    members = [member(FOLDER, type=tarfile.DIRTYPE, mode=0), *model(), *model("a/b/")[1:]]
    for info, _ in members:
        info.mode = 0o7777 if info.isfile() else 0
    path = pack(members)
    before = os.umask(0o077)
    try:
        extract_model(path, tmp_path / "into")
    finally:
        os.umask(before)
    entries = [tmp_path / "into", *(tmp_path / "into").rglob("*")]
    assert len(entries) == 9
    for entry in entries:
        assert stat.S_IMODE(entry.stat().st_mode) == (0o755 if entry.is_dir() else 0o644)


def test_old_folder_is_replaced(pack: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing of it is left, and it may be given through a link."""
    real = tmp_path / "models" / "real"
    (real / "sub").mkdir(parents=True)
    (real / "sub" / "before").touch()
    into = tmp_path / "into"
    into.symlink_to(real)
    assert extract_model(pack(model()), into) == into / FOLDER
    assert into.is_symlink()
    assert names(real) == [FOLDER]
    assert names(real.parent) == ["real"]


@pytest.mark.usefixtures("without_exchange")
def test_old_folder_stays_when_the_last_step_fails(
    pack: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder has been moved away by then, and is moved back."""
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if source.name.startswith(STAGING_PREFIX):
            raise OSError(5, "Input/output error")
        rename(source, target)

    path = pack(model())
    monkeypatch.setattr(os, "rename", fail)
    message = refusal(path)
    assert message == (
        f"{path}: expected to unpack it into INTO, got: [Errno 5] Input/output error; free that place or choose "
        "another folder."
    )


@pytest.mark.usefixtures("without_exchange")
def test_old_folder_that_cannot_be_put_back_is_not_deleted(
    pack: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in the temporary folder."""
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if target == into:
            raise OSError(5, "Input/output error")
        rename(source, target)

    into = tmp_path / "out" / "into"
    into.mkdir(parents=True)
    (into / "before").touch()
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ModelFormatError, match="Input/output error"):
        extract_model(pack(model()), into)
    (kept,) = into.parent.rglob("before")
    assert kept.parent.parent.name.startswith(STAGING_PREFIX)


def test_disk_that_is_full(pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in the middle of a file."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    path = pack(model())
    monkeypatch.setattr(Path, "chmod", full)
    assert "got: [Errno 28] No space left on device" in refusal_at(path, "into")


def test_file_in_the_place_of_the_folder(pack: Callable[..., Path], tmp_path: Path) -> None:
    """It is not replaced."""
    (tmp_path / "into").write_bytes(b"mine")
    assert "into exists and is not a folder; " in refusal_at(pack(model()), "into")
    assert (tmp_path / "into").read_bytes() == b"mine"


EVIL: list[tuple[str, list[Member], str]] = [
    ("absolute", [member("/etc/evil", b"x")], "'/etc/evil' has an absolute path"),
    ("dotdot", [member("../evil", b"x")], "'../evil' has '..' in its path"),
    ("inner-dotdot", [member("a/../../evil", b"x")], "'a/../../evil' has '..' in its path"),
    ("dotdot-folder", [member("a/..", type=tarfile.DIRTYPE)], "'a/..' has '..' in its path"),
    ("ignored-dotdot", [member("__MACOSX/../evil", b"x")], "'__MACOSX/../evil' has '..' in its path"),
    ("symlink", [member("a", type=tarfile.SYMTYPE, linkname="b")], "'a' is a symbolic link"),
    ("hardlink", [member("a", type=tarfile.LNKTYPE, linkname=f"{FOLDER}/inference.yml")], "'a' is a hard link"),
    ("char-device", [member("a", type=tarfile.CHRTYPE)], "'a' is a device"),
    ("block-device", [member("a", type=tarfile.BLKTYPE)], "'a' is a device"),
    ("fifo", [member("a", type=tarfile.FIFOTYPE)], "'a' is a FIFO"),
    ("sparse", [member("a", type=tarfile.GNUTYPE_SPARSE)], "'a' is a sparse file"),
    ("unknown", [member("a", type=b"Z")], "'a' is of the unknown type b'Z'"),
    ("newline", [member("a\nb", b"x")], r"'a\nb' has a name with control or other unprintable characters"),
    ("escape", [member("\x1b[2J", b"x")], r"'\x1b[2J' has a name with control or other unprintable characters"),
    ("bidi", [member("a\u202egpj", b"x")], r"'a\u202egpj' has a name with control or other unprintable characters"),
    ("no-name", [member("./.", b"x")], "'./.' is a file without a name"),
    ("twice", [member("a", b"x"), member("a", b"y")], "'a' occurs twice"),
    ("twice-otherwise", [member("a/b", b"x"), member("./a//b", b"y")], "'./a//b' occurs twice"),
    ("below-file", [member("a", b"x"), member("a/b/c", b"y")], "'a/b/c' lies below 'a', which is a file"),
    ("below-later-file", [member("a/b", b"y"), member("a", b"x")], "'a/b' lies below 'a', which is a file"),
]


@pytest.mark.parametrize(("evil", "said"), [case[1:] for case in EVIL], ids=[case[0] for case in EVIL])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_evil_member(
    pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, evil: list[Member], said: str, first: bool
) -> None:
    """Refused by name, before anything is written."""
    path = pack([*evil, *model()] if first else [*model(), *evil])
    monkeypatch.setattr(archive, "_write_members", lambda *_: pytest.fail("something was written"))
    assert refused_member(path) == said


def test_evil_name_in_a_pax_header(pack: Callable[..., Path]) -> None:
    """The header's name counts, not the plain one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in model():
            info.pax_headers = {"path": "../\x00evil"}
            tar.addfile(info, io.BytesIO(data))
    assert refused_member(pack(buffer.getvalue())) == (
        r"'../\x00evil' has a name with control or other unprintable characters"
    )


def test_long_name_is_shown_in_part(pack: Callable[..., Path]) -> None:
    """A message is one line."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../" + "n" * 5000))
    assert refused_member(pack(buffer.getvalue())) == f"'../{'n' * 197}' has '..' in its path"


def test_number_of_members(pack: Callable[..., Path], tmp_path: Path) -> None:
    """Ignored members count."""
    path = pack([member("._1"), member("._2"), *model()])
    assert refused_member(path, max_members=4) == (
        f"'{FOLDER}/inference.pdiparams' is more than the 4 members that are allowed"
    )
    assert extract_model(path, tmp_path / "into", max_members=5)
    assert archive.MAX_MEMBERS == 1000
    path = pack([*model(), *(member(str(index)) for index in range(998))])
    assert refused_member(path) == "'997' is more than the 1000 members that are allowed"


def test_size_of_all_members(pack: Callable[..., Path], tmp_path: Path) -> None:
    """By the headers, with ignored members."""
    path = pack([member("._1", b"1234567"), *model()])
    total = 7 + sum(map(len, MODEL.values()))
    assert refused_member(path, max_unpacked_bytes=total - 1) == (
        f"'{FOLDER}/inference.pdiparams' has {len(NOISE)} bytes, {total} with those before it; "
        f"at most {total - 1} are allowed"
    )
    assert extract_model(path, tmp_path / "into", max_unpacked_bytes=total)


def test_bomb_is_refused_by_its_header(pack: Callable[..., Path]) -> None:
    """Before its bytes are unpacked: they are not even there."""
    size = archive.MAX_UNPACKED_BYTES + 1
    bomb, _ = member("bomb", size=size)
    path = pack(gzip.compress(bomb.tobuf() + bytes(512)))
    said = f"'bomb' has {size} bytes, {size} with those before it; at most {1 << 32} are allowed"
    assert refused_member(path) == said


def test_bytes_are_counted_while_they_are_written(pack: Callable[..., Path], tmp_path: Path) -> None:
    """The headers are not the only guard."""
    path = pack(model())
    folder = tmp_path / "folder"
    folder.mkdir()
    with path.open("rb") as file:
        source = archive._Source(path, file)
        members = archive._list_members(source, 9, 10**9)
        with pytest.raises(ModelFormatError, match="passes the limit of 100000 bytes in all while being written"):
            archive._write_members(folder, source, members, 100_000)
    assert sum(map(len, tree(folder).values())) <= 100_000


def test_archive_that_shrinks_while_it_is_unpacked(pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It was complete when its members were listed."""
    path = pack(model())
    make = tempfile.mkdtemp

    def shrink(**options: Any) -> str:
        os.truncate(path, 50_000)
        return str(make(**options))

    monkeypatch.setattr(tempfile, "mkdtemp", shrink)
    with pytest.raises(ModelFormatError, match="ends early at byte"):
        extract_model(path, path.parent / "into")
    assert names(path.parent) == ["model.tar"]


def with_header(info: tarfile.TarInfo, at: int, value: bytes) -> bytes:
    """A header with other bytes at one place, and the checksum that fits them."""
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def negative_size(in_pax: bool) -> bytes:
    """A header whose size points backwards, in its base-256 form or in a pax header."""
    info, _ = member("a")
    if in_pax:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            info.pax_headers = {"size": "-1024"}
            tar.addfile(info)
        return buffer.getvalue()
    return with_header(info, 124, (-512).to_bytes(12, "big", signed=True)) + bytes(1024)


@pytest.mark.parametrize("in_pax", [True, False], ids=["pax", "base-256"])
def test_negative_size(pack: Callable[..., Path], in_pax: bool) -> None:
    """It would send a reader round in circles."""
    assert refused_member(pack(negative_size(in_pax))).startswith("'a' has -")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [65_537, 2**40, -512])
def test_extended_header_that_is_too_large(pack: Callable[..., Path], kind: bytes, size: int) -> None:
    """Else tarfile would read it into memory whole."""
    field = ((1 << 95) | size if size > 0 else size % (1 << 96)).to_bytes(12, "big")
    header = with_header(member("x", type=kind)[0], 124, field)
    message = refusal(pack(gzip.compress(body(model()) + header + bytes(100_000))))
    assert "got a damaged one (an extended header of " in message
    assert "bytes, expected at most 65536); download or copy it again." in message


def test_extended_headers_without_end(pack: Callable[..., Path]) -> None:
    """For each of them tarfile calls itself."""
    header = member("x", b"12 path=xyz\n", type=tarfile.XHDTYPE)
    assert "got a damaged one (" in refusal(pack([header] * 5000))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_truncated_archive(pack: Callable[..., Path], compress: Callable[[bytes], bytes]) -> None:
    """Cut in a header, in a member, between two members, before the end mark, or near the end of the stream."""
    whole = body(model())
    cuts = [600, 1024, 1030, 2048, 2100, 100_000, len(whole) - 1, len(whole), len(whole) + 511]
    content = compress(tar_bytes(model()))
    if compress is not bytes:
        cuts = [100, 100_000, len(content) - 9, len(content) - 1]
    for size in cuts:
        path = pack(content[:size])
        assert refusal(path) == (
            f"{path}: expected a complete tar, got one that ends early at byte {size}; download or copy it again."
        ), size


def test_archive_that_ends_between_two_members(pack: Callable[..., Path]) -> None:
    """It has an `inference.yml` and looks complete to tarfile."""
    data = tar_bytes(model())
    path = pack(data[:2048])
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"{FOLDER}/inference.yml", f"{FOLDER}/inference.json"]
    assert "ends early at byte 2048; " in refusal(path)
    path = pack(data[:2048] + bytes(512))
    assert extract_model(path, path.parent / "into")


def test_truncated_archive_of_the_oldest_form(pack: Callable[..., Path], tmp_path: Path) -> None:
    """Before POSIX, headers had no magic number."""
    data = b"".join(with_header(info, 257, bytes(8)) + data + bytes(-len(data) % 512) for info, data in model())
    assert extract_model(pack(data + bytes(1024)), tmp_path / "into") == tmp_path / "into" / FOLDER
    assert "got one that ends early at byte 2000; " in refusal(pack(data[:2000]))


@pytest.mark.parametrize(
    "broken",
    [
        body([member("x", b"22 GNU.sparse.map=1,x\n", type=tarfile.XHDTYPE), member("a")]),
        with_header(member("a", type=tarfile.GNUTYPE_SPARSE)[0], 482, b"\1"),
    ],
    ids=["ValueError", "IndexError"],
)
def test_errors_of_parsing(pack: Callable[..., Path], broken: bytes) -> None:
    """Tarfile lets them through as they are."""
    path = pack(body(model()) + broken)
    with tarfile.open(path) as tar, pytest.raises((ValueError, IndexError)):
        tar.getmembers()
    assert ": expected a complete tar, got " in refusal(path)


def test_broken_header(pack: Callable[..., Path]) -> None:
    """To tarfile it is the end."""
    data = bytearray(tar_bytes(model()))
    data[1024 + 3] ^= 1
    assert "got a damaged one (no valid header at byte 1024); download or copy it again." in refusal(pack(bytes(data)))
    data = bytearray(tar_bytes(model()))
    data[3] ^= 1
    assert "got a damaged one (bad checksum); " in refusal(pack(bytes(data)))


@pytest.mark.parametrize("compress", [gzip.compress, lambda data: bz2.compress(data, 1), lzma.compress])
def test_broken_compression(pack: Callable[..., Path], compress: Callable[[bytes], bytes]) -> None:
    """Wherever the bit is wrong; with bzip2, after its first block of 100 kB."""
    content = compress(tar_bytes(model()))
    for position in (130_000, 170_000, len(content) - 6):
        broken = bytearray(content)
        broken[position] ^= 4
        assert "expected a complete tar, got a damaged one (" in refusal(pack(bytes(broken)))


def test_checksum_of_the_compression(pack: Callable[..., Path]) -> None:
    """A wrong bit in the weights that gzip's format alone does not show."""
    content = gzip.compress(tar_bytes(model()), compresslevel=0)
    position = content.index(NOISE[1000:1010])
    broken = bytearray(content)
    broken[position] ^= 1
    assert "got a damaged one (BadGzipFile: CRC check failed" in refusal(pack(bytes(broken)))


def test_what_follows_the_end(pack: Callable[..., Path], tmp_path: Path) -> None:
    """Padding is fine, a bomb is not."""
    data = tar_bytes(model())
    assert extract_model(pack(data + bytes(500_000)), tmp_path / "into")
    path = pack(gzip.compress(data + bytes(3_000_000)))
    assert "got a damaged one (more than 1048576 bytes after its end mark); " in refusal(path)


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (b"", "b''"),
        (b"short", "b'short'"),
        (b"<!DOCTYPE html>\n" * 99, repr(b"<!DOCTYPE html>\n")),
        (b"PK\3\4" + NOISE, repr(b"PK\3\4" + NOISE[:12])),
        (NOISE, repr(NOISE[:16])),
    ],
    ids=["empty", "short", "html", "zip", "noise"],
)
def test_not_a_tar(pack: Callable[..., Path], content: bytes, start: str) -> None:
    """The message shows what came, also out of a compressed file."""
    for packed in (content, gzip.compress(content)):
        path = pack(packed)
        assert refusal(path) == (
            f"{path}: expected a PaddleX inference model as .tar, .tar.gz, .tar.bz2 or .tar.xz, got a file of "
            f"{len(packed)} bytes that is no tar and starts with {start}."
        )


def test_tar_without_a_model(pack: Callable[..., Path]) -> None:
    """The message says what is in it."""
    path = pack([])
    assert "with inference.yml, got an archive with: nothing; export the model with PaddleX" in refusal(path)
    path = pack([member("a/inference.yaml"), member("a/inference.yml", type=tarfile.DIRTYPE)])
    assert "got an archive with: a/inference.yaml, a/inference.yml; export" in refusal(path)
    path = pack([member(f"x{index}") for index in range(12)])
    assert "x0, x1, x2, x3, x4, x5, x6, x7, x8, x9 and 2 more; export" in refusal(path)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("n" * 5000))
    assert f"with: {'n' * 200}; export" in refusal(pack(buffer.getvalue()))


def test_tar_with_several_models(pack: Callable[..., Path]) -> None:
    """The message names them."""
    message = refusal(pack([*model("a/"), *model("b/c/"), *model("")]))
    assert message.endswith(
        ": expected one folder with inference.yml, got 3: a, b/c, .; unpack it and pass the folder of one model."
    )


def test_archive_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, or a folder."""
    assert "got: [Errno 2] No such file or directory" in refusal(tmp_path / "none.tar")
    (tmp_path / "folder.tar").mkdir()
    assert "got: [Errno 21] Is a directory" in refusal(tmp_path / "folder.tar")


def test_python_without_a_compression(pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Some builds of Python lack a module."""
    path = pack(lzma.compress(tar_bytes(model())))
    monkeypatch.setitem(sys.modules, "lzma", None)
    assert "got a damaged one (ModuleNotFoundError: " in refusal(path)
