"""The seek table at the end of a file: a list of its frames, in a frame that other readers skip; for every codec.

The format is that of zstd (contrib/seekable_format/zstd_seekable_compression_format.md in its sources). Readers of LZ4
skip the same frames. If frames have checksums, the table contains them, too.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
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
"""The size of the shortest possible frame in bytes, a skippable one."""

_STRIDE: Final = 256
"""The number of frames between two whose offsets are kept; the offsets in between are added up."""
_STRIDES: Final = 256
"""How many strides are read at a time."""


class Frame(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One frame: ``length`` bytes of content at ``offset``, and ``stored`` bytes of the file at ``stored_offset``."""

    offset: int
    length: int
    stored_offset: int
    stored: int
    checksum: int | None = None


class Table:
    """The frames of one file so far, in 8 or 12 bytes each: a file of 100 GiB has 26 million of the smallest frames.

    Attributes:
        count: the number of frames.
    """

    def __init__(self, *, checksums: bool) -> None:
        """With ``checksums``, each frame ends with one."""
        self.count = 0
        self._checksums: Final = checksums
        self._entries = bytearray()

    def add(self, frame: bytes, length: int) -> None:
        """Add a frame of ``length`` bytes of content.

        Raises:
            DumpError: there are more frames than readers support.
        """
        if self.count == _MOST_FRAMES:
            message = f"a seek table has at most {_MOST_FRAMES} frames"
            raise DumpError(message, operation="compress", errno=errno.EFBIG, hint="choose larger frames")
        self.count += 1
        self._entries += _ENTRY.pack(len(frame), length)
        if self._checksums:
            # The frames of each codec end with their checksum. That of zstd is what the format requires (RFC 8878).
            self._entries += frame[-4:]

    def encoded(self) -> list[memoryview]:
        """Return the skippable frame for the end of the file, in pieces."""
        footer = _FOOTER.pack(self.count, _CHECKSUMS * self._checksums, _MAGIC)
        header = _HEADER.pack(_SKIPPABLE, len(self._entries) + len(footer))
        return [memoryview(header), memoryview(self._entries), memoryview(footer)]


class SeekTable:
    """The frames of a seek table, packed as in the file: at most 12 bytes each, regardless of what they claim.

    Attributes:
        content, stored: the total bytes of content, and of the file, of all frames.
        largest: the content size of the largest frame, in bytes.
        even: whether all frames but the last have the same content size, and the last isn't larger.
        checksums: whether each frame has a checksum.
    """

    def __init__(self, *, checksums: bool) -> None:
        self.checksums: Final = checksums
        self.content = self.stored = self.largest = 0
        self.even = True
        self._width: Final = 3 if checksums else 2
        self._entries: Final = array("I")
        # The offsets of every `_STRIDE`-th frame, in the content and in the file.
        self._offsets: Final = array("Q")
        self._stored_offsets: Final = array("Q")
        self._last: tuple[int, Frame] | None = None

    def extend(self, entries: bytes) -> int | None:
        """Add packed frames, `_STRIDE` of them or, at the end, fewer; return the number of an impossible one, or None.

        A frame is impossible if it is shorter than any frame can be.
        """
        found = array("I", entries)
        if sys.byteorder == "big":
            found.byteswap()
        stored, lengths = found[:: self._width], found[1 :: self._width]
        if min(stored) < _SHORTEST:
            return len(self) + next(index for index, each in enumerate(stored) if each < _SHORTEST)
        first = self._entries[1] if self._entries else lengths[0]
        # The frames before these are followed by more: none of them is the last.
        self.even = self.even and max(lengths) <= first and min(lengths[:-1], default=first) == first
        self.even = self.even and (not self._entries or self._entries[1 - self._width] == first)
        self.largest = max(self.largest, *lengths)
        self._offsets.append(self.content)
        self._stored_offsets.append(self.stored)
        self._entries.extend(found)
        self.content += sum(lengths)
        self.stored += sum(stored)
        return None

    def __len__(self) -> int:
        return len(self._entries) // self._width

    def __getitem__(self, index: int) -> Frame:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        last = self._last
        if last is not None and last[0] == index - 1:
            before = last[1]
            frame = self._frame(index, before.offset + before.length, before.stored_offset + before.stored)
        else:
            stride = index // _STRIDE
            passed = self._entries[stride * _STRIDE * self._width : index * self._width]
            offset = self._offsets[stride] + sum(passed[1 :: self._width])
            frame = self._frame(index, offset, self._stored_offsets[stride] + sum(passed[:: self._width]))
        self._last = (index, frame)
        return frame

    def _frame(self, index: int, offset: int, stored_offset: int) -> Frame:
        stored, length, *checksum = self._entries[index * self._width : (index + 1) * self._width]
        return Frame(
            offset=offset,
            length=length,
            stored_offset=stored_offset,
            stored=stored,
            checksum=checksum[0] if checksum else None,
        )

    def __iter__(self) -> Iterator[Frame]:
        return map(self.__getitem__, range(len(self)))

    def holding(self, offset: int) -> int:
        """Return the number of the frame that contains a byte of the content."""
        stride = bisect_right(self._offsets, offset) - 1
        lengths = self._entries[stride * _STRIDE * self._width : (stride + 1) * _STRIDE * self._width][1 :: self._width]
        ends = list(accumulate(lengths, initial=self._offsets[stride]))[1:]
        return stride * _STRIDE + bisect_right(ends, offset)


def read_seek_table(fd: int, path: str) -> SeekTable | None:
    """Return the frames of the seek table at the end of a file, or None if there is none.

    Also None if the table covers only the tail of the file, as in concatenated dumps, where it is that of the last one.

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
        checksums = bool(descriptor & _CHECKSUMS)
        entry = 12 if checksums else 8
        length = count * entry + _FOOTER.size
        start = size - length - _HEADER.size
        if count > _MOST_FRAMES or descriptor & _RESERVED or start < 0:
            raise _broken(path, f"it claims {count} frames")
        if _HEADER.unpack(os.pread(fd, _HEADER.size, start)) != (_SKIPPABLE, length):
            raise _broken(path, "it begins at the wrong position")
    table = SeekTable(checksums=checksums and count > 0)
    place, end = start + _HEADER.size, start + _HEADER.size + count * entry
    while place < end:
        wanted = min(_STRIDES * _STRIDE * entry, end - place)
        with explain("read", path):
            entries = os.pread(fd, wanted, place)
        if len(entries) < wanted:
            raise _broken(path, "it was truncated while it was read")
        place += wanted
        for begin in range(0, wanted, _STRIDE * entry):
            if (short := table.extend(entries[begin : begin + _STRIDE * entry])) is not None:
                raise _broken(path, f"frame {short} is shorter than {_SHORTEST} bytes")
        if table.stored > start:
            break
    if table.stored < start:
        return None
    if table.stored > start:
        raise _broken(path, f"its frames have {table.stored} bytes or more, before it are {start}")
    return table


def _broken(path: str, why: str) -> DumpError:
    return DumpError(f"the seek table of {path} is damaged: {why}", path=path, operation="read")
