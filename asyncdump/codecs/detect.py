"""What tells that a file is a .zst, and which frames it has."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from asyncdump.codecs.seekable import SeekTable, read_seek_table
from asyncdump.errors import DumpError, explain

if TYPE_CHECKING:
    pass


ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"


_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"
"""What follows the first byte of a frame that readers skip, which is from 0x50 to 0x5f."""


FRAME_HEADER: Final = 18
"""The bytes of the longest header of a frame (RFC 8878)."""


HEADERS: Final = 64 << 10
"""Bytes in which the headers of several small frames are looked for."""


def check_zstd(fd: int, path: str) -> None:
    """Raise `DumpError` unless a file may be a .zst: begins as one does, or ends with a seek table.

    Raises:
        DumpError: it does neither, so that its first bytes are damaged or it was cut; or it can't be read.
    """
    with explain("read", path):
        start = os.pread(fd, 4, 0)
    if start == ZSTD_MAGIC or (start[1:] == _SKIPPABLE_MAGIC and start[0] >> 4 == 5):  # noqa: PLR2004 (RFC 8878)
        return
    with suppress(DumpError):
        if read_seek_table(fd, path):
            return
    raise DumpError(
        f"{path} doesn't begin as a .zst does: it is damaged or was cut",
        path=path,
        operation="read",
        hint="if it isn't compressed, read it with {compressed=False}",
    )


def listed_frames(fd: int, path: str) -> SeekTable | None:
    """Return the frames of a seek table, their sizes compared with what frames say themselves.

    One wrong size would move all content behind it. In a dump all frames but the last have one size, so that looking
    at the first and the last is enough; where they haven't, each is looked at.
    """
    frames = read_seek_table(fd, path)
    if not frames:
        return frames
    headers = _Headers(fd, path)
    for index in (0, len(frames) - 1) if frames.even else range(len(frames)):
        frame = frames[index]
        length = _own_length(headers.read(frame.stored_offset))
        if length not in {None, frame.length}:
            raise DumpError(
                f"the seek table of {path} is broken: it says that frame {index} (at byte {frame.stored_offset}) "
                f"holds {frame.length} bytes, the frame says {length}",
                path=path,
                operation="read",
                hint="zstd -d reads frames without their table: try it",
            )
    return frames


class _Headers:
    """Reads the headers of frames, one behind the other, with few calls."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._start = 0
        self._held = b""

    def read(self, offset: int) -> bytes:
        """Return the header of the frame at ``offset``, and what follows it."""
        begin = offset - self._start
        if not 0 <= begin <= len(self._held) - FRAME_HEADER:
            with explain("read", self._path):
                # No more than is looked at where frames are large.
                wanted = HEADERS if 0 <= begin < HEADERS else FRAME_HEADER
                self._start, begin = offset, 0
                self._held = os.pread(self._fd, wanted, offset)
        return self._held[begin : begin + FRAME_HEADER]


def _own_length(header: bytes) -> int | None:
    """Return the content that a frame claims to hold, or None where it says nothing or is damaged itself."""
    import zstandard

    try:
        length = zstandard.frame_content_size(header)
    except zstandard.ZstdError:
        return None
    return None if length < 0 else length
