"""The zstd seekable format: a table of the frames at the end of the file, in a frame that other readers skip.

Its description is contrib/seekable_format/zstd_seekable_compression_format.md in the sources of zstd.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

import msgspec

from asyncdump.errors import DumpError, explain

_SKIPPABLE: Final = 0x184D2A5E
_MAGIC: Final = 0x8F92EAB1
_HEADER: Final = struct.Struct("<II")
_ENTRY: Final = struct.Struct("<II")
_FOOTER: Final = struct.Struct("<IBI")
_CHECKSUMS: Final = 1 << 7
_RESERVED: Final = 0b01111100
_MOST_FRAMES: Final = 0x8000000
_SHORTEST: Final = 8
"""The bytes of the shortest frame, one that is skipped."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame: ``length`` bytes of content from ``offset``, ``stored`` of the file from ``stored_offset``."""

    offset: int
    length: int
    stored_offset: int
    stored: int
    checksum: int | None = None


class Table:
    """The frames of one file so far, 8 bytes for each, or 12: a file of 100 GiB has 26 million of the smallest.

    Attributes:
        count: how many there are.
    """

    def __init__(self, *, checksums: bool) -> None:
        """With ``checksums``, each frame ends with one."""
        self.count = 0
        self._checksums: Final = checksums
        self._entries = bytearray()

    def add(self, frame: bytes, length: int) -> None:
        """List a frame of ``length`` bytes of content.

        Raises:
            DumpError: no reader takes a table of so many.
        """
        if self.count == _MOST_FRAMES:
            message = f"a seek table has at most {_MOST_FRAMES} frames"
            raise DumpError(message, operation="compress", errno=errno.EFBIG, hint="choose larger frames")
        self.count += 1
        self._entries += _ENTRY.pack(len(frame), length)
        if self._checksums:
            # A frame ends with the very 32 bits of its content's XXH64 that a seek table wants (RFC 8878).
            self._entries += frame[-4:]

    def encoded(self) -> list[memoryview]:
        """Return the skippable frame that stands at the end of a file, in pieces."""
        footer = _FOOTER.pack(self.count, _CHECKSUMS * self._checksums, _MAGIC)
        header = _HEADER.pack(_SKIPPABLE, len(self._entries) + len(footer))
        return [memoryview(header), memoryview(self._entries), memoryview(footer)]


def read_seek_table(fd: int, path: str) -> list[Frame] | None:
    """Return the frames that the table at the end of a file lists, or None if there is no such table.

    None too where it lists but the last part of the file: of dumps that were joined, the table is that of the last.

    Raises:
        DumpError: the table contradicts itself or the file, or can't be read.
    """
    with explain("read", path):
        size = os.lseek(fd, 0, os.SEEK_END)
        if size < _HEADER.size + _FOOTER.size:
            return None
        count, descriptor, magic = _FOOTER.unpack(os.pread(fd, _FOOTER.size, size - _FOOTER.size))
        if magic != _MAGIC:
            return None
        entry = struct.Struct("<III" if descriptor & _CHECKSUMS else "<II")
        length = count * entry.size + _FOOTER.size
        start = size - length - _HEADER.size
        if count > _MOST_FRAMES or descriptor & _RESERVED or start < 0:
            raise _broken(path, f"it claims {count} frames")
        if _HEADER.unpack(os.pread(fd, _HEADER.size, start)) != (_SKIPPABLE, length):
            raise _broken(path, "it doesn't begin where it should")
        entries = os.pread(fd, count * entry.size, start + _HEADER.size)
    if len(entries) < count * entry.size:
        raise _broken(path, "it was cut while it was read")
    frames: list[Frame] = []
    offset = stored_offset = 0
    for stored, content, *checksum in entry.iter_unpack(entries):
        if stored < _SHORTEST:
            raise _broken(path, f"frame {len(frames)} has {stored} bytes")
        frames.append(
            Frame(
                offset=offset,
                length=content,
                stored_offset=stored_offset,
                stored=stored,
                checksum=checksum[0] if checksum else None,
            )
        )
        offset += content
        stored_offset += stored
    if stored_offset < start:
        return None
    if stored_offset > start:
        raise _broken(path, f"its frames have {stored_offset} bytes, before it are {start}")
    return frames


def _broken(path: str, why: str) -> DumpError:
    return DumpError(
        f"the seek table of {path} is broken: {why}",
        path=path,
        operation="read",
        hint="zstd -d reads frames without their table: try it on what is left",
    )
