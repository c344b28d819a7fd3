"""`mlcls.paddle.archive` on archives that are as they should be, damaged, or evil."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlcls.errors import ModelFormatError
from mlcls.paddle import archive
from mlcls.paddle.archive import extract_model

NOISE = random.Random(0).randbytes(200_000)
MODEL = {"inference.yml": b"Global: {}\n", "inference.json": b"{}", "inference.pdiparams": NOISE}
FOLDER = "PP-LCNet_x1_0_ML_infer"
TOO_LONG = "headers of more than 8388608 bytes"
COMPRESSIONS = (bytes, gzip.compress, bz2.compress, lzma.compress)

Member = tuple[tarfile.TarInfo, bytes]
Compress = Callable[[bytes], bytes]


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


def body(members: list[Member]) -> bytes:
    """A plain tar without its end mark; a header's size is written as it stands, whatever data follows."""
    return b"".join(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512) for info, data in members)


def pax(members: list[Member], headers: dict[str, str]) -> bytes:
    """A tar whose members have pax headers."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        for info, data in members:
            info.pax_headers = headers
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


Pack = Callable[[list[Member] | bytes], Path]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Writes members, or bytes as they are, to a file."""

    def write(content: list[Member] | bytes) -> Path:
        path = tmp_path / "model.tar"
        path.write_bytes(content if isinstance(content, bytes) else body(content) + bytes(10_240))
        return path

    return write


def unpack(path: Path) -> dict[str, bytes]:
    """What lies in the new folder, which holds plain files and nothing else."""
    into = path.parent / "very" / "deep"
    shutil.rmtree(into, ignore_errors=True)
    extract_model(path, into)
    return {str(found.relative_to(into)): found.read_bytes() for found in into.iterdir()}


def refusal(path: Path) -> str:
    """The message of a failing extraction, before which nothing is written."""
    into = path.parent / "into"
    with pytest.raises(ModelFormatError) as caught:
        extract_model(path, into)
    assert not into.exists()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: expected ")
    return message


def refused_member(path: Path) -> str:
    """What is said about the member that is refused."""
    message = refusal(path)
    assert "; nothing was unpacked. Get the archive from its official source, or pack the model folder " in message
    return message.partition("folders inside one folder, but member ")[2].partition("; nothing was unpacked")[0]


def damage(path: Path) -> str:
    """What is said about the damage."""
    return refusal(path).partition("and is no tar, or a truncated or damaged one (")[2].partition("); download or")[0]


# --- good archives


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_official_layout(pack: Pack, compress: Compress) -> None:
    """One top-level folder; the compression is told from the content, not from the file's name."""
    others = [member(f"{FOLDER}/readme.txt", b"x"), member(f"{FOLDER}/old/inference.json", b"x"), member("x/y", b"x")]
    content = body([member(FOLDER, type=tarfile.DIRTYPE), *model(), *others]) + bytes(1024)
    assert unpack(pack(compress(content))) == MODEL


@pytest.mark.parametrize("prefix", ["", "./"])
def test_flat_layout(pack: Pack, prefix: str) -> None:
    """No top-level folder, as `tar -C model .` packs it."""
    assert unpack(pack([member("./", type=tarfile.DIRTYPE), *model(prefix), member("old/old.inference.yml")])) == MODEL


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar"])
def test_archive_of_the_tar_command(tmp_path: Path, form: str) -> None:
    """With long names and an empty folder."""
    folder = tmp_path / FOLDER / ("n" * 70) / ("m" * 70)
    (folder / "empty").mkdir(parents=True)
    for name, data in MODEL.items():
        (folder / name).write_bytes(data)
    path = tmp_path / "model.tar.gz"
    subprocess.run(["tar", f"--format={form}", "-czf", path, "-C", tmp_path, FOLDER], check=True)
    assert unpack(path) == MODEL


def test_what_macos_adds_is_ignored(pack: Pack) -> None:
    """AppleDouble files, also with an `inference.yml` of theirs, and pax headers."""
    link = member("__MACOSX/link", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    extra = [member(f"._{FOLDER}"), member(f"{FOLDER}/._inference.yml"), member("__MACOSX/x/inference.yml", b"no")]
    headers = {"LIBARCHIVE.xattr.com.apple.provenance": "AQ", "mtime": "1.5"}
    assert unpack(pack(pax([*extra, link, *model()], headers))) == MODEL


def test_permissions_are_not_the_archives(pack: Pack) -> None:
    members = model()
    for info, _ in members:
        info.mode = 0o7777
    path = pack(members)
    unpack(path)
    assert all(not found.stat().st_mode & 0o7111 for found in (path.parent / "very" / "deep").iterdir())


# --- evil archives


EVIL: list[tuple[Member, str]] = [
    (member("/etc/evil", b"x"), "'/etc/evil' has an absolute path"),
    (member("../evil", b"x"), "'../evil' has '..' in its path"),
    (member("a/..", type=tarfile.DIRTYPE), "'a/..' has '..' in its path"),
    (member("__MACOSX/../evil", b"x"), "'__MACOSX/../evil' has '..' in its path"),
    (member("../" + "n" * 300), f"'../{'n' * 196}... has '..' in its path"),
    (member("a", type=tarfile.SYMTYPE, linkname="b"), "'a' is a link"),
    (member("a", type=tarfile.LNKTYPE, linkname=f"{FOLDER}/inference.yml"), "'a' is a link"),
    (member("a", type=tarfile.CHRTYPE), "'a' is a device or of another special type"),
    (member("a", type=tarfile.FIFOTYPE), "'a' is a device or of another special type"),
    (member("a", type=b"Z"), "'a' is a device or of another special type"),
    (member("a", type=tarfile.GNUTYPE_SPARSE), "'a' is a sparse file"),
    (member("a\nb", b"x"), r"'a\nb' has unprintable characters in its name"),
    (member("a\u202egpj", b"x"), r"'a\u202egpj' has unprintable characters in its name"),
    (member(f"./{FOLDER}//inference.json", b"y"), f"'./{FOLDER}//inference.json' occurs twice"),
]


@pytest.mark.parametrize(("evil", "said"), EVIL)
def test_evil_member(pack: Pack, evil: Member, said: str) -> None:
    """Refused by name, before anything is written, wherever it stands."""
    for members in ([evil, *model()], [*model(), evil]):
        assert refused_member(pack(members)) == said or "twice" in said


def test_evil_name_in_a_pax_header(pack: Pack) -> None:
    """The header's name counts, not the plain one."""
    assert refused_member(pack(pax(model(), {"path": "../\x00evil"}))).startswith(r"'../\x00evil' has unprintable")


def test_number_of_members(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored members count."""
    assert archive.MAX_MEMBERS == 1000
    path = pack([member("._1"), member("._2"), *model()])
    monkeypatch.setattr(archive, "MAX_MEMBERS", 5)
    assert unpack(path) == MODEL
    monkeypatch.setattr(archive, "MAX_MEMBERS", 4)
    assert refused_member(path) == f"'{FOLDER}/inference.pdiparams' is more than the 4 members that are allowed"


def test_size_of_all_members(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the headers, with ignored members."""
    path = pack([member("._1", b"1234567"), *model()])
    total = 7 + sum(map(len, MODEL.values()))
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", total)
    assert unpack(path) == MODEL
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", total - 1)
    assert refused_member(path).endswith(
        f"{len(NOISE)} bytes, {total} with those before it; at most {total - 1} are allowed"
    )


def test_bomb_is_refused_by_its_header(pack: Pack) -> None:
    """Before its bytes are unpacked: they are not even there."""
    size = archive.MAX_UNPACKED_BYTES + 1
    path = pack(gzip.compress(body([member("bomb", size=size)]) + bytes(512)))
    said = f"'bomb' has {size} bytes, {size} with those before it; at most {1 << 32} are allowed"
    assert refused_member(path) == said


def with_header(info: tarfile.TarInfo, at: int, value: bytes) -> bytes:
    """A header with other bytes at one place, and the checksum that fits them."""
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("in_pax", [True, False], ids=["pax", "base-256"])
def test_negative_size(pack: Pack, in_pax: bool) -> None:
    """It would send a reader round in circles."""
    size = (-512).to_bytes(12, "big", signed=True)
    content = pax([member("a")], {"size": "-1024"}) if in_pax else with_header(member("a")[0], 124, size) + bytes(1024)
    assert refused_member(pack(content)).startswith("'a' has -")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [archive.MAX_HEADER_BYTES, 2**40, -512])
def test_extended_header_that_is_too_large(pack: Pack, kind: bytes, size: int) -> None:
    """Else tarfile would read it into memory whole."""
    field = ((1 << 95) | size if size > 0 else size % (1 << 96)).to_bytes(12, "big")
    header = with_header(member("x", type=kind)[0], 124, field)
    assert damage(pack(gzip.compress(body(model()) + header + bytes(9_000_000)))) == TOO_LONG


def test_sparse_map_without_end(pack: Pack) -> None:
    """Its numbers are read from the file's data, and each takes more memory than its two bytes."""
    header = member("x", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", type=tarfile.XHDTYPE)
    content = gzip.compress(body([header, member("a", size=1 << 30)]) + b"9" * 9 + b"\n0" * 5_000_000)
    assert damage(pack(content)) == TOO_LONG


def test_extended_headers_without_end(pack: Pack) -> None:
    """For each of them tarfile calls itself."""
    assert damage(pack([member("x", b"12 path=xyz\n", type=tarfile.XHDTYPE)] * 5000))


# --- damaged archives


@pytest.mark.parametrize("compress", COMPRESSIONS)
def test_truncated_archive(pack: Pack, compress: Compress) -> None:
    """Cut in a header, in a member, between two members, before the end mark, or near the end of the stream."""
    whole = body(model())
    content = compress(whole + bytes(10_240))
    cuts = [600, 1024, 2048, 2100, 100_000, len(whole) - 1, len(whole), len(whole) + 511]
    for size in cuts if compress is bytes else [100, 100_000, len(content) - 9, len(content) - 1]:
        assert damage(pack(content[:size])), size


def test_archive_that_ends_between_two_members(pack: Pack) -> None:
    """It has an `inference.yml` and looks complete to tarfile."""
    assert damage(pack(body(model())[:2048])) == "no valid header at byte 2048"
    assert len(unpack(pack(body(model())[:2048] + bytes(512)))) == 2


@pytest.mark.parametrize(
    "broken",
    [
        body([member("x", b"22 GNU.sparse.map=1,x\n", type=tarfile.XHDTYPE), member("a")]),
        with_header(member("a", type=tarfile.GNUTYPE_SPARSE)[0], 482, b"\1"),
    ],
    ids=["ValueError", "IndexError"],
)
def test_errors_of_parsing(pack: Pack, broken: bytes) -> None:
    """Tarfile lets them through as they are."""
    assert damage(pack(body(model()) + broken))


@pytest.mark.parametrize("position", [3, 1024 + 3])
def test_broken_header(pack: Pack, position: int) -> None:
    """To tarfile it is the end."""
    data = bytearray(body(model()) + bytes(1024))
    data[position] ^= 1
    assert damage(pack(bytes(data))) == ("bad checksum" if position == 3 else "no valid header at byte 1024")


@pytest.mark.parametrize("compress", [gzip.compress, lambda data: bz2.compress(data, 1), lzma.compress])
def test_broken_compression(pack: Pack, compress: Compress) -> None:
    """Wherever the bit is wrong; with bzip2, after its first block of 100 kB."""
    content = compress(body(model()) + bytes(10_240))
    for position in (130_000, 170_000, len(content) - 6):
        broken = bytearray(content)
        broken[position] ^= 4
        assert damage(pack(bytes(broken))), position


def test_checksum_of_the_compression(pack: Pack) -> None:
    """A wrong bit in the weights that gzip's format alone does not show."""
    broken = bytearray(gzip.compress(body(model()) + bytes(10_240), compresslevel=0))
    broken[broken.index(NOISE[1000:1010])] ^= 1
    assert damage(pack(bytes(broken))).startswith("CRC check failed")


def test_what_follows_the_end(pack: Pack) -> None:
    """Padding is fine, a bomb is not."""
    assert unpack(pack(body(model()) + bytes(500_000))) == MODEL
    assert damage(pack(gzip.compress(body(model()) + bytes(9_000_000)))) == TOO_LONG


@pytest.mark.parametrize("content", [b"", b"short", b"<!DOCTYPE html>\n" * 99, b"PK\3\4" + NOISE, NOISE])
def test_not_a_tar(pack: Pack, content: bytes) -> None:
    """The message shows what came."""
    assert (
        f"expected a PaddleX inference model as .tar, .tar.gz, .tar.bz2 or .tar.xz, got a file of {len(content)} bytes "
        f"that starts with {content[:16]!r} and is no tar, "
    ) in refusal(pack(content))


# --- what is in it, and where it goes


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([], "got 0 folders in an archive with: nothing; "),
        ([member("a/inference.yml", type=tarfile.DIRTYPE), member("b")], "got 0 folders in an archive with: a/inf"),
        ([member(f"x{index}") for index in range(500)], "...; unpack it and pass the folder of one model"),
        ([*model("a/"), *model("")], "got 2 folders in an archive with: a, .; unpack it and pass the folder of"),
    ],
)
def test_tar_without_one_model(pack: Pack, members: list[Member], words: str) -> None:
    assert words in refusal(pack(members))


def test_places_that_cannot_be_used(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "got: [Errno 2] No such file or directory" in refusal(tmp_path / "none.tar")
    (tmp_path / "folder.tar").mkdir()
    assert "got: [Errno 21] Is a directory" in refusal(tmp_path / "folder.tar")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    message = refusal(pack(model()))
    assert "into, got: [Errno 28] No space left on device; check both places and the free space." in message
