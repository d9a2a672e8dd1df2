"""The codec lz4 (LZ4 frame format, doc/lz4_Frame_format.md in its sources). It needs the package lz4, an extra."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from asyncdump.codecs.codec import Compression, Compressor, FrameError, Unsupported

_MAGIC: Final = b"\x04\x22\x4d\x18"

# Bits of the byte after the magic number.
_VERSION: Final = 0b11_000000
_VERSION_1: Final = 0b01_000000
_HAS_LENGTH: Final = 1 << 3
_HAS_CHECKSUM: Final = 1 << 2
_RESERVED: Final = 1 << 1
_HAS_DICTIONARY: Final = 1 << 0

_LARGEST_BLOCK: Final = 4 << 20
"""The size of the largest block of a frame, which is decompressed in one piece."""

_CHECKSUM: Final = 4
"""The size of the checksum at the end of a frame, in bytes."""

_CONTEXT: Final = 256 << 10
"""The size of the largest context in bytes, that of level 3 and higher (LZ4_streamHC_t)."""


class Lz4Options(Compression, frozen=True, kw_only=True, gc=False):
    """How a file is compressed with lz4. Each frame ends with the XXH32 of its content, if it has a checksum."""

    level: int = 1

    @property
    def codec(self) -> Lz4Codec:
        return LZ4

    @property
    def cost(self) -> int:
        # The library compresses into its own memory, and copies the result.
        return _CONTEXT + self.room + 2 * (self.frame + self.frame // 255)

    def new_compressor(self) -> Compressor:
        from lz4.frame import BLOCKSIZE_MAX4MB, compress

        level, checksum = self.level, self.checksum

        def compressor(data: memoryview) -> bytes:
            frame: bytes = compress(data, compression_level=level, block_size=BLOCKSIZE_MAX4MB)
            return _with_checksum(frame, data) if checksum else frame

        return compressor


class Lz4Codec:
    """The `Codec`."""

    name: Final = "lz4"
    suffix: Final = ".lz4"
    levels: Final = (-100, 12)
    header: Final = 19
    best_ratio: Final = 255  # One byte extends a match by at most 255 bytes.
    worst_ratio: Final = 9  # A separate block for each byte: 4 bytes, the byte, and a checksum.
    repeats: Final = 240
    bite: Final = 64 << 10

    def compression(self, level: int | None = None) -> Lz4Options:
        return Lz4Options() if level is None else Lz4Options(level=level)

    def missing(self) -> str:
        return "" if _installed() else "pip install 'asyncdump[lz4]'"

    def begins(self, start: bytes) -> bool:
        return start == _MAGIC

    def length_of(self, header: bytes) -> int | None:
        found = _descriptor(header)
        if found is None or not found[0] & _HAS_LENGTH:
            return None
        return int.from_bytes(found[2:10], "little")

    def unsupported(self, header: bytes) -> Unsupported | None:
        found = _descriptor(header)
        if found is None or not found[0] & _HAS_DICTIONARY:
            return None
        dictionary = int.from_bytes(found[-4:], "little")
        return Unsupported(f"was compressed with the dictionary {dictionary}", "read it with lz4 -dc -D DICTIONARY")

    def decompress(self, stored: memoryview, target: memoryview) -> None:
        found = _descriptor(bytes(stored[: self.header]))
        if found is None or not found[0] & _HAS_CHECKSUM:
            _fill(target, [stored])
            return
        # Its checksum is compared here rather than by the package: see `_with_checksum`.
        bare = memoryview(_header(found[0] & ~_HAS_CHECKSUM, found))
        _fill(target, [bare, stored[len(bare) : -_CHECKSUM]])
        if _checksum(target) != stored[-_CHECKSUM:]:
            raise FrameError("its content doesn't match its checksum")

    def decompressor(self) -> _Decompressor:
        return _Decompressor()

    def checksum_of(self, stored: memoryview, content: memoryview) -> int:
        has_checksum = stored[4] & _HAS_CHECKSUM  # It was verified when the frame was decompressed.
        return int.from_bytes(stored[-_CHECKSUM:] if has_checksum else _checksum(content), "little")


def _descriptor(header: bytes) -> bytes | None:
    """Return the frame descriptor, from the flags to the dictionary ID; None if there is none, or it is damaged."""
    if header[:4] != _MAGIC or len(header) < 7:  # noqa: PLR2004 (the shortest header)
        return None
    flags = header[4]
    end = 6 + 8 * bool(flags & _HAS_LENGTH) + 4 * bool(flags & _HAS_DICTIONARY)
    if flags & _VERSION != _VERSION_1 or flags & _RESERVED or len(header) <= end:
        return None
    found = header[4:end]
    return found if _header(flags, found) == header[: end + 1] else None


def _header(flags: int, descriptor: bytes) -> bytes:
    """Return the header of a frame: the magic number, the descriptor with different flags, and its checksum."""
    import xxhash

    descriptor = bytes([flags]) + descriptor[1:]
    return _MAGIC + descriptor + bytes([xxhash.xxh32_intdigest(descriptor) >> 8 & 0xFF])


def _checksum(content: memoryview) -> bytes:
    import xxhash

    return int(xxhash.xxh32_intdigest(content)).to_bytes(_CHECKSUM, "little")


def _with_checksum(frame: bytes, content: memoryview) -> bytes:
    """Return a frame with a checksum of its content.

    The package could write it, but its XXH32 takes 1.2 ms for 2 MiB, more than everything else; xxhash takes 0.2 ms.
    """
    found = _descriptor(frame[: LZ4.header])
    assert found is not None
    header = _header(found[0] | _HAS_CHECKSUM, found)
    return b"".join([header, memoryview(frame)[len(header) :], _checksum(content)])


def _fill(target: memoryview, pieces: Iterable[memoryview]) -> None:
    """Fill ``target`` with the content of a frame, which is passed in pieces.

    Raises:
        FrameError: the frame is damaged, its content has a different length, or something follows it.
    """
    from lz4.frame import decompress_chunk, reset_decompression_context

    context, left, ended, rest = _context(), target, False, memoryview(b"")
    reset_decompression_context(context)
    try:
        for piece in pieces:
            content, used, ended = decompress_chunk(context, piece, max_length=_LARGEST_BLOCK)
            rest, left = piece[used:], _appended(left, content)
            while not ended and content:
                content, used, ended = decompress_chunk(context, rest, max_length=_LARGEST_BLOCK)
                rest, left = rest[used:], _appended(left, content)
    except RuntimeError as error:
        raise FrameError(str(error)) from error
    if not ended or rest or left:
        raise FrameError(f"it doesn't contain {len(target)} bytes")


def _appended(left: memoryview, content: bytes) -> memoryview:
    """Copy content to the rest of a target, and return what is left of it."""
    if len(content) > len(left):
        raise FrameError("it contains more than it should")
    if content:  # An empty target may be read-only.
        left[: len(content)] = content
    return left[len(content) :]


@cache
def _installed() -> bool:
    return find_spec("lz4") is not None


class _Decompressor:
    def __init__(self) -> None:
        from lz4.frame import create_decompression_context

        self._context: Final[Any] = create_decompression_context()
        self.eof = False
        self.unused = 0

    def decompress(self, piece: memoryview) -> bytes:
        from lz4.frame import decompress_chunk

        content: list[bytes] = []
        try:
            while not self.eof:
                part, used, self.eof = decompress_chunk(self._context, piece, max_length=_LARGEST_BLOCK)
                content.append(part)
                piece = piece[used:]
                if not piece and len(part) < _LARGEST_BLOCK:
                    break
        except RuntimeError as error:
            raise FrameError(str(error)) from error
        self.unused = len(piece)
        return b"".join(content)


_kept = threading.local()


def _context() -> Any:
    """Return the decompression context of this thread."""
    from lz4.frame import create_decompression_context

    if not hasattr(_kept, "context"):
        _kept.context = create_decompression_context()
    return _kept.context


LZ4: Final = Lz4Codec()
