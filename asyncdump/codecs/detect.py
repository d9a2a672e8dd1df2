"""Whether a file looks like one of a codec, and which frames it has."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from asyncdump.codecs.codec import Codec, is_skipped
from asyncdump.codecs.seekable import SeekTable, read_seek_table
from asyncdump.errors import DumpError, explain

_SEVERAL: Final = 64 << 10
"""How many bytes are read at a time if small frames follow one another."""


def check_start(fd: int, path: str, codec: Codec) -> None:
    """Check that a file begins like those of a codec, or ends with a seek table.

    Raises:
        DumpError: it does neither, so it was truncated, or its first bytes are damaged; or it can't be read.
    """
    with explain("read", path):
        start = os.pread(fd, 4, 0)
    if codec.begins(start) or is_skipped(start):
        return
    with suppress(DumpError):
        if read_seek_table(fd, path):
            return
    raise DumpError(
        f"{path} doesn't begin like a {codec.suffix} file: it is damaged or truncated",
        path=path,
        operation="read",
        hint="if it isn't compressed, read it with {compressed=False}",
    )


def listed_frames(fd: int, path: str, codec: Codec) -> SeekTable | None:
    """Return the frames of a seek table, after comparing their sizes with the headers of the frames.

    One wrong size would shift all content after it. In a dump, all frames but the last have the same size, so that
    checking the first and the last frame is enough. Otherwise, every frame is checked.

    Raises:
        DumpError: the table contradicts itself, a frame or the file, or can't be read.
    """
    try:
        frames = read_seek_table(fd, path)
    except DumpError as error:
        error.hint = error.hint or _hint(codec)
        raise
    if not frames:
        return frames
    headers = _Headers(fd, path, codec.header)
    for index in (0, len(frames) - 1) if frames.even else range(len(frames)):
        frame = frames[index]
        length = codec.length_of(headers.read(frame.stored_offset))
        if length not in {None, frame.length}:
            raise DumpError(
                f"the seek table of {path} is damaged: it says that frame {index} (at byte {frame.stored_offset}) "
                f"has {frame.length} bytes, but the frame says {length}",
                path=path,
                operation="read",
                hint=_hint(codec),
            )
    return frames


def _hint(codec: Codec) -> str:
    return f"{codec.name} -d doesn't need the table: try it"


class _Headers:
    """Reads the headers of consecutive frames with few calls."""

    def __init__(self, fd: int, path: str, length: int) -> None:
        self._fd = fd
        self._path = path
        self._length = length
        self._start = 0
        self._held = b""

    def read(self, offset: int) -> bytes:
        """Return the header of the frame at ``offset``, and what follows it."""
        begin = offset - self._start
        if not 0 <= begin <= len(self._held) - self._length:
            with explain("read", self._path):
                # Of large frames, read only the header.
                wanted = _SEVERAL if 0 <= begin < _SEVERAL else self._length
                self._start, begin = offset, 0
                self._held = os.pread(self._fd, wanted, offset)
        return self._held[begin : begin + self._length]
