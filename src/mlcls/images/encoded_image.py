"""Open an image file and check it: its format, size and number of frames, without decoding a pixel.

cv2 trusts a file's header: 59 bytes of a broken PNG cost it up to 2 GB, 138 bytes of a TIFF with a huge tile 1 GB, and
167 bytes of an animated PNG crash cv2 4.11. So the header is read here first, in 2 to 10 microseconds. Own code,
because Pillow's `Image.open` takes up to 160, looks at neither PNG chunks nor TIFF tiles, cannot open all that cv2 can
(signed TIFF), and decodes ICO files while opening them, which is why ICO is refused. AVIF files are opened by Pillow,
which decodes them anyway.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import struct
from collections.abc import Mapping
from typing import Final

from PIL import Image, UnidentifiedImageError

from mlcls.errors import ImageError
from mlcls.images.cost import check_cost, estimate_cost
from mlcls.images.formats import PNG_SIGNATURE, Damage, broken, sniff_format, too_complex, unsupported
from mlcls.images.kinds import LOSSLESS_FRAMES, check_bmp_kind, check_jpeg_kind, check_tiff_kind, is_read_by_pillow
from mlcls.images.settings import DEFAULT_IMAGE_SETTINGS, ImageSettings

# Segments of a JPEG file before its picture data; an ICC profile and extended XMP may each take 255.
_MAX_JPEG_SEGMENTS: Final = 4096
# Progressive JPEG files have about ten; libjpeg goes over the whole picture for each, which may be a few bytes long.
_MAX_JPEG_SCANS: Final = 100
_JPEG_MARKER: Final = re.compile(rb"\xff([^\0\xff])")
# In picture data, a marker that is neither stuffing nor a restart.
_JPEG_MARKER_AFTER_DATA: Final = re.compile(rb"\xff([^\0\xff\xd0-\xd7])")
# In TIFF strips: the start of a progressive frame; of one with several components; of a scan with one or two of them.
_JPEG_PROGRESSIVE: Final = re.compile(rb"\xff[\xc2\xca]\0[\x0b\x0e\x11\x14]")
_JPEG_COMPONENTS: Final = re.compile(rb"\xff[\xc0\xc1\xc9]\0[\x0e\x11\x14]")
_JPEG_PARTIAL_SCAN: Final = re.compile(rb"\xff\xda\0[\x08\x0a]")
_JPEG_SCAN: Final = b"\xff\xda"

_PNG_ANIMATION_CHUNKS: Final = (b"acTL", b"fcTL", b"fdAT")
# A chunk of picture data usually has 8 KiB or more.
_MAX_PNG_CHUNKS: Final = 65_536
# A still WebP file has up to six chunks; an animated one may have one more for each frame.
_WEBP_CHUNKS: Final = 4096
_GIF_IMAGE: Final = 0x2C
_GIF_EXTENSION: Final = 0x21
# A GIF file may have this many blocks, plus one for each this many bytes; a full block has 255.
_GIF_BLOCKS: Final = 65_536
_GIF_BLOCK_BYTES: Final = 64
_AVIF_SIZE: Final = re.compile(rb"ispe\0{4}(.{8})", re.DOTALL)
_AVIF_HEADER_BYTES: Final = 65_536
# Pillow's limit, twice `Image.MAX_IMAGE_PIXELS`, and libavif's.
_MOST_AVIF_PIXELS: Final = 178_956_970
_MOST_AVIF_SIDE: Final = 32_768
# Tags of a TIFF directory.
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_BITS, _COMPRESSION, _COLOR, _SAMPLES, _SAMPLE_FORMAT = 258, 259, 262, 277, 339
_TIFF_DEFAULTS: Final = dict.fromkeys((_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT), 0) | dict.fromkeys(
    (_BITS, _COMPRESSION, _COLOR, _SAMPLES, _SAMPLE_FORMAT), 1
)
_LARGE_TILE: Final = 4096
_JPEG_COMPRESSION: Final = 7
# Samples of a pixel by PNG's color type.
_PNG_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@dataclasses.dataclass(frozen=True)
class JpegSegments:
    """What stands before the picture data of a JPEG file: ITU-T T.81, section B.1.1."""

    channels: int
    app1: bytes  # the APP1 segments, EXIF among them, with their markers, in order
    scan_offset: int  # where the first scan begins, in bytes
    single_scan: bool  # whether it is sequential with one scan for all components: the picture is whole if that is
    lossless: bool  # whether its frame is: of these, libjpeg-turbo reads RGB only
    blocks: float  # of all components, for each block of one that is not subsampled: 1.5 for three components at 4:2:0


@dataclasses.dataclass(frozen=True)
class EncodedImage:
    """An image file that was opened: what its first bytes say, and what its decoder needs.

    Height and width are those before any EXIF orientation is applied.
    """

    data: bytes = dataclasses.field(repr=False)
    format: str
    height: int
    width: int
    frames: int = 1  # of an animation, or pages of a TIFF file; counted up to one more than the settings allow
    jpeg: JpegSegments | None = None
    still_chunks: tuple[tuple[int, int], ...] = ()  # start and end of the still chunks of an animated PNG file
    read_by_pillow: bool = False  # a TIFF file that cv2 cannot read and Pillow can
    stored_bytes: float = 0.0  # of PNG and TIFF: bytes of a pixel before compression
    stored_pixels: int = 0  # of TIFF: those of all tiles together, which may be more than height times width
    scans: float = 0.0  # of a JPEG picture, if it is read in several; one component that is not subsampled counts 1
    pillow: Image.Image | None = None  # an AVIF file as Pillow opened it


def open_image(data: bytes | memoryview, settings: ImageSettings = DEFAULT_IMAGE_SETTINGS) -> EncodedImage:
    """Open a whole image file, if the settings accept files of this length and format.

    Height and width are 1 or more and not checked yet.

    Raises:
        ImageError: Too many bytes, not an image, a format or kind that is not supported or not accepted, or a file
            that is certainly truncated or corrupt.
    """
    size_bytes = memoryview(data).nbytes
    if size_bytes > settings.max_bytes:
        text = f"image: expected at most {settings.max_bytes} bytes, got {size_bytes}; send a smaller file."
        raise ImageError(text, "too_many_bytes")
    data = bytes(data)
    name = sniff_format(data)
    if name not in settings.formats:
        accepted = " or ".join(filter(None, (", ".join(settings.formats[:-1]), settings.formats[-1])))
        text = f"image: expected {accepted}, which is all that this model accepts, got {name} ({size_bytes} bytes)"
        raise ImageError(f"{text}; convert it.", "format_not_allowed")
    try:
        image = _READERS[name](data, settings.max_frames + 1)
    except (struct.error, IndexError):  # a field lies beyond the last byte
        raise broken(name, data, "its header is cut off", "truncated") from None
    if image.height < 1 or image.width < 1:
        raise broken(name, data, f"its header says height {image.height}, width {image.width}")
    return image


def check_image(image: EncodedImage, settings: ImageSettings) -> None:
    """Check the size and the number of frames of an opened image, and what decoding it takes.

    Raises:
        ImageError: It is over a limit.
    """
    check_size(image.height, image.width, settings)
    if image.frames > settings.max_frames:
        text = f"image: expected at most {settings.max_frames} frames or pages, got more; send one of them."
        raise ImageError(text, "too_many_frames")
    check_cost(estimate_cost(image), image, settings)


def check_size(height: int, width: int, settings: ImageSettings) -> None:
    """Check the height and width, each 1 or more, of a picture.

    Raises:
        ImageError: It is over a limit.
    """
    got = f"got height {height}, width {width}"
    if max(height, width) > settings.max_side:
        text = f"image: expected sides of at most {settings.max_side} pixels, {got}; send a smaller one."
        raise ImageError(text, "side_too_long")
    if height * width > settings.max_pixels:
        text = f"image: expected at most {settings.max_pixels} pixels, {got} ({height * width}); send a smaller one."
        raise ImageError(text, "too_many_pixels")
    if max(height, width) > settings.max_aspect_ratio * min(height, width):
        most = f"at most {settings.max_aspect_ratio:g} times as long as the other"
        raise ImageError(f"image: expected one side to be {most}, {got}; send a part of it.", "aspect_ratio")


def pillow_broken(name: str, data: bytes, error: Exception) -> ImageError:
    """Return the error for what Pillow raised, with its text unless that shows an address in memory."""
    known = not isinstance(error, UnidentifiedImageError)
    reason: Damage = "truncated" if "truncated" in str(error) else "undecodable"
    return broken(name, data, f"Pillow says {error}" if known else "Pillow cannot read it", reason)


def _read_jpeg(data: bytes, _: int) -> EncodedImage:
    """Walk the segments up to the first scan, as libjpeg does, and on to the end if the picture has several scans."""
    height = width = channels = frame = 0
    shares: dict[int, float] = {}
    app1: list[bytes] = []
    at = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        found = _JPEG_MARKER.search(data, at)
        if found is None or found[1] == b"\xd9":
            raise broken("JPEG", data, "it ends before its picture data", "truncated")
        marker, at = found[1][0], found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker
            precision, height, width, channels = struct.unpack_from(">BHHB", data, at + 2)
            check_jpeg_kind(data, frame, precision, height, channels)
            shares = _read_shares(data[at + 8 : at + 8 + 3 * channels])
        elif marker == 0xF7:
            raise unsupported("JPEG", data, "of JPEG-LS coding")
        elif marker == 0xE1:
            app1.append(b"\xff\xe1" + data[at : at + length])
        elif marker == 0xDA:
            single_scan = frame in (0xC0, 0xC1) and data[at + 2] == channels
            scans = 0.0 if single_scan else _read_scans(data, at, shares)
            blocks, lossless = sum(shares.values()), frame in LOSSLESS_FRAMES
            segments = JpegSegments(channels, b"".join(app1), at, single_scan, lossless, blocks)
            return EncodedImage(data, "JPEG", height, width, jpeg=segments, scans=scans)
        at += max(length, 2)
    raise too_complex("JPEG", "segments before its picture data", _MAX_JPEG_SEGMENTS)


def _read_shares(components: bytes) -> dict[int, float]:
    """Return how many blocks each component of a frame has, for each block of one that is not subsampled."""
    blocks = {
        name: (factors >> 4) * (factors & 15) for name, factors in zip(components[::3], components[1::3], strict=False)
    }
    most = max(blocks.values(), default=1) or 1
    return {name: count / most for name, count in blocks.items()}


def _read_scans(data: bytes, at: int, shares: Mapping[int, float]) -> float:
    """Walk the scans to the end of the picture, as libjpeg does; the first one's header begins at `at`.

    Returns:
        The sum of the shares of their components.
    """
    sum_of_shares, scans, marker = 0.0, 0, _JPEG_SCAN[1]
    for _ in range(_MAX_JPEG_SEGMENTS):
        if marker == _JPEG_SCAN[1]:
            scans += 1
            count = int.from_bytes(data[at + 2 : at + 3], "big")
            sum_of_shares += sum(shares.get(name, 1.0) for name in data[at + 3 : at + 3 + 2 * count : 2])
        if scans > _MAX_JPEG_SCANS:
            raise too_complex("JPEG", "scans", _MAX_JPEG_SCANS)
        if marker >= 0xC0 and marker != 0xD8:  # libjpeg reads no other marker with a length
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
        found = _JPEG_MARKER_AFTER_DATA.search(data, at)
        if found is None or found[1] == b"\xd9":
            return sum_of_shares
        marker, at = found[1][0], found.end()
    raise too_complex("JPEG", "segments between its scans", _MAX_JPEG_SEGMENTS)


def _read_png(data: bytes, _: int) -> EncodedImage:
    """Read the first chunk, and walk the others: PNG specification, third edition, section 5.3."""
    if data[12:16] == b"CgBI":
        raise unsupported("PNG", data, "of Apple's variant for iPhones")
    if data[12:16] != b"IHDR":
        raise broken("PNG", data, f"its first chunk is {data[12:16]!r}, not IHDR")
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    chunks: list[tuple[bytes, int, int]] = []  # kind, start and end
    end = len(PNG_SIGNATURE)
    while not chunks or chunks[-1][0] != b"IEND":
        if len(chunks) == _MAX_PNG_CHUNKS:
            raise too_complex("PNG", "chunks", _MAX_PNG_CHUNKS)
        at = end
        if at + 12 > len(data):
            raise broken("PNG", data, "it has no IEND chunk", "truncated")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            why = f"its chunk {kind!r} says {length} bytes, only {len(data) - at - 12} are there"
            raise broken("PNG", data, why, "truncated")
        chunks.append((kind, at, end))
    kinds = [kind for kind, _, _ in chunks]
    if b"IDAT" not in kinds:  # cv2 4.11 would read on past the end
        raise broken("PNG", data, "it has no IDAT chunk")
    still = tuple((start, end) for kind, start, end in chunks if kind not in _PNG_ANIMATION_CHUNKS)
    still_chunks = still if len(still) < len(chunks) else ()
    frames = max(1, kinds.count(b"fcTL"))
    stored_bytes = _PNG_SAMPLES.get(color, 4) * depth / 8
    return EncodedImage(data, "PNG", height, width, frames, still_chunks=still_chunks, stored_bytes=stored_bytes)


def _read_webp(data: bytes, most_frames: int) -> EncodedImage:
    """Read the first chunk: RFC 9649, sections 2.4 to 2.7."""
    size = 8 + struct.unpack_from("<I", data, 4)[0]
    if size > len(data):
        raise broken("WebP", data, f"its header says {size} bytes", "truncated")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        return EncodedImage(data, "WebP", height, width, _count_webp_frames(data, most_frames))
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return EncodedImage(data, "WebP", 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return EncodedImage(data, "WebP", height & 0x3FFF, width & 0x3FFF)
    raise broken("WebP", data, f"its first chunk is {kind!r}")


def _count_webp_frames(data: bytes, most: int) -> int:
    frames, at = 0, 12
    for _ in range(_WEBP_CHUNKS + most):
        if at + 8 > len(data) or frames >= most:
            return max(1, frames)
        kind, size = struct.unpack_from("<4sI", data, at)
        frames += kind == b"ANMF"
        at += 8 + size + size % 2
    raise too_complex("WebP", "chunks", _WEBP_CHUNKS + most)


def _read_bmp(data: bytes, _: int) -> EncodedImage:
    """Read BITMAPCOREHEADER (16-bit sizes) or BITMAPINFOHEADER (a negative height means rows from the top down)."""
    (size,) = struct.unpack_from("<I", data, 14)
    width, height, _, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", data, 18)
    check_bmp_kind(data, size, bits, struct.unpack_from("<I", data, 30)[0] if size >= 40 else 0)
    return EncodedImage(data, "BMP", abs(height), width)


def _read_tiff(data: bytes, most_frames: int) -> EncodedImage:
    """Read the first directory and follow the offsets of the others: TIFF 6.0, section 2, and BigTIFF.

    Pages count up to where their chain is broken or circular; only the first one is decoded, and it is whole.
    """
    order = "<" if data[:2] == b"II" else ">"
    layout = (8, "Q", "Q", 20, 12) if b"+" in data[2:4] else (4, "I", "H", 12, 8)
    offset_at, offset_form, count_form, entry_bytes, value_in = layout

    def find_entries(offset: int) -> tuple[int, int]:
        """Return where the entries of the directory at an offset begin and end."""
        (count,) = struct.unpack_from(order + count_form, data, min(offset, len(data)))
        first = offset + struct.calcsize(order + count_form)
        return first, first + count * entry_bytes

    (offset,) = struct.unpack_from(order + offset_form, data, offset_at)
    first, end = find_entries(offset)
    if end > len(data) or end - first > 0xFFFF * entry_bytes:
        why = f"its directory of {(end - first) // entry_bytes} entries at byte {offset} lies beyond the end"
        raise broken("TIFF", data, why, "truncated")
    values = dict(_TIFF_DEFAULTS)
    for at in reversed(range(first, end, entry_bytes)):  # of a tag that occurs twice, libtiff takes the first
        tag, kind, count = struct.unpack_from(order + "HH" + offset_form, data, at)
        if tag in values:
            form = order + {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind, "I")
            # of several values, which may lie elsewhere, the first
            inline = count * struct.calcsize(form) <= entry_bytes - value_in
            (value_offset,) = (
                (at + value_in,) if inline else struct.unpack_from(order + offset_form, data, at + value_in)
            )
            (values[tag],) = struct.unpack_from(form, data, min(value_offset, len(data)))
    kind_tags = (_COMPRESSION, _COLOR, _BITS, _SAMPLES, _SAMPLE_FORMAT)
    check_tiff_kind(data, *(values[tag] for tag in kind_tags))
    width, height = values[_WIDTH], values[_HEIGHT]
    tile_height, tile_width = values[_TILE_HEIGHT], values[_TILE_WIDTH]
    # cv2 allocates a whole tile
    if tile_height > max(height, _LARGE_TILE) or tile_width > max(width, _LARGE_TILE):
        raise broken("TIFF", data, f"its tiles of {tile_height} x {tile_width} are larger than the picture")
    stored_height, stored_width = (
        -(-side // tile) * tile if tile else side for side, tile in ((height, tile_height), (width, tile_width))
    )
    pages: set[int] = set()
    with contextlib.suppress(struct.error):
        while offset and offset not in pages and len(pages) < most_frames:
            pages.add(offset)
            (offset,) = struct.unpack_from(order + offset_form, data, min(find_entries(offset)[1], len(data)))
    return EncodedImage(
        data,
        "TIFF",
        height,
        width,
        len(pages),
        read_by_pillow=is_read_by_pillow(values[_COMPRESSION], values[_COLOR], values[_BITS], tile_height * tile_width),
        stored_bytes=values[_SAMPLES] * values[_BITS] / 8,
        stored_pixels=stored_height * stored_width,
        scans=_most_strip_scans(data) * values[_SAMPLES] if values[_COMPRESSION] == _JPEG_COMPRESSION else 0.0,
    )


def _most_strip_scans(data: bytes) -> int:
    """Return how many scans a JPEG strip of a TIFF file may have; 0 if all are read in one.

    Strips may share their bytes, so all scans of the file may belong to each strip. libtiff reads no more than 100.
    """
    is_partial = _JPEG_COMPONENTS.search(data) and _JPEG_PARTIAL_SCAN.search(data)
    if not is_partial and not _JPEG_PROGRESSIVE.search(data):
        return 0
    return min(data.count(_JPEG_SCAN), _MAX_JPEG_SCANS)


def _read_gif(data: bytes, most_frames: int) -> EncodedImage:
    """Read the logical screen and walk the blocks: GIF89a, appendix B.

    The picture is the screen, and as much as the first frame is larger. The count of frames ends where the file does:
    only the first one has to be whole.
    """
    width, height = struct.unpack_from("<HH", data, 6)
    end = len(data)
    steps = most_steps = _GIF_BLOCKS + end // _GIF_BLOCK_BYTES
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    frames = 0
    while at < end and frames < most_frames:
        kind = data[at]
        if kind == _GIF_IMAGE and at + 9 < end:
            if frames == 0:
                left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
                height, width = max(height, top + frame_height), max(width, left + frame_width)
            frames += 1
            flags = data[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        elif kind == _GIF_EXTENSION:
            at += 2
        else:  # the trailer, not a block, or cut off
            break
        while steps > 0 and at < end and (size := data[at]):
            at += size + 1
            steps -= 1
        at += 1
        steps -= 1
        if steps <= 0:
            raise too_complex("GIF", "blocks for its length", most_steps)
    return EncodedImage(data, "GIF", height, width, max(1, frames))


def _read_avif(data: bytes, _: int) -> EncodedImage:
    """Open with Pillow, which says of a file that is too large for it only that it cannot read it."""
    try:
        image = Image.open(io.BytesIO(data), formats=("AVIF",))
        return EncodedImage(data, "AVIF", image.height, image.width, getattr(image, "n_frames", 1), pillow=image)
    except Exception as error:  # Pillow's plugins raise nearly anything
        # the largest is the whole picture, others are its tiles: ISO/IEC 23008-12, section 6.5.3
        sizes = (struct.unpack(">II", found[1]) for found in _AVIF_SIZE.finditer(data, 0, _AVIF_HEADER_BYTES))
        width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
        if height * width <= _MOST_AVIF_PIXELS and max(height, width) <= _MOST_AVIF_SIDE:
            raise pillow_broken("AVIF", data, error) from None
        return EncodedImage(data, "AVIF", height, width)


_READERS: Final = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WebP": _read_webp,
    "BMP": _read_bmp,
    "TIFF": _read_tiff,
    "GIF": _read_gif,
    "AVIF": _read_avif,
}
