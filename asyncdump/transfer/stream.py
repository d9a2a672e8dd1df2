"""A copy outside of a run, on one thread, from or to a descriptor without offsets (a pipe, a socket, a terminal)."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, Literal

from asyncdump.codecs.codec import Compression
from asyncdump.codecs.compressors import Compressors
from asyncdump.codecs.seekable import Table
from asyncdump.engines import Refused, is_refusal
from asyncdump.engines.base import Refusal
from asyncdump.engines.feed import vmsplice_from
from asyncdump.errors import describe_errno, explain
from asyncdump.kernel.lane import Lane, grow_pipe
from asyncdump.kernel.linux import read_at
from asyncdump.kernel.relay import wait_for_bytes, wait_for_room, write_all
from asyncdump.sources.source import truncated
from asyncdump.transfer.copy import Copied, fill, read_pipe, refused_method
from asyncdump.vocabulary.values import Source

StreamMethod = Literal["auto", "vmsplice", "splice", "sendfile", "read"]

_STEP: Final = 8 << 20


def copy_stream(
    reading: int,
    writing: int,
    tally: Copied,
    *,
    path: str,
    source: Source | None,
    start: int = 0,
    length: int | None = None,
    method: StreamMethod = "auto",
) -> None:
    """Copy from one descriptor to another, at least one of which has no offsets (a pipe, a terminal).

    Args:
        reading, writing: the descriptors; writing starts at the descriptor's file offset, if it has one.
        tally: counts the copied bytes.
        path: the name of the input, in errors.
        source: the description of ``reading``, if it is a file; it is read from byte ``start``.
        start: for a file, the first byte.
        length: the maximum number of bytes to copy; None for all.
        method: the method, or ``auto`` for the first one that copies and that the kernel accepts.

    Raises:
        MethodRefusedError: the kernel doesn't support the method for these two.
        DumpError: it can't be read.
        OSError: another call failed: BrokenPipeError if the pipe has no reader any more.
        SourceChangedError: the file ended early.
    """
    lane = Lane()
    copy = _Link(reading, writing, path, source, lane)
    ways = copy.ways() if method == "auto" else [str(method)]
    left = length if source is None else min(source.size - start, source.size if length is None else length)
    position = start
    try:
        while left is None or left > 0:
            count = _STEP if left is None else min(_STEP, left)
            moved = copy.step(ways, position, count)
            if moved == 0:
                if source is not None:
                    raise truncated(source.path, position, position + count)
                return
            tally.add(moved, ways[0])
            position += moved
            left = None if left is None else left - moved
    finally:
        lane.close()


def compress_stream(
    reading: int,
    writing: int,
    tally: Copied,
    *,
    path: str,
    source: Source | None,
    compression: Compression,
    start: int = 0,
    length: int | None = None,
) -> None:
    """Copy in the frames of a codec, with a seek table at the end; the other arguments are those of `copy_stream`.

    Raises:
        OSError: a call failed.
        SourceChangedError: the file ended early.
    """
    lane, compressors, table = Lane(), Compressors(), Table(checksums=compression.checksum)
    end = None if source is None else min(source.size, source.size if length is None else start + length)
    left = length if end is None else max(end - start, 0)
    try:
        while left is None or left > 0 or not table.count:
            with compressors.room(compression, lane) as press:
                view = lane.buffer.view[: compression.frame if left is None else min(compression.frame, left)]
                filled = fill(reading, view, path, None if source is None else start + tally.bytes)
                if source is not None and filled < len(view):
                    raise truncated(path, start + tally.bytes + filled, start + tally.bytes + len(view))
                if filled == 0 and table.count:
                    break
                frame = compressors.frame(press, lane.buffer, filled)
            table.add(frame, filled)
            write_all(writing, memoryview(frame))
            tally.add(filled, str(compression))
            left = None if left is None else left - filled
            if filled < len(view):
                break
        for piece in table.encoded():
            write_all(writing, piece)
    finally:
        lane.close()


class _Link:
    """Two descriptors, at least one of which has no offsets, and the ways to move bytes from one to the other."""

    def __init__(self, reading: int, writing: int, path: str, source: Source | None, lane: Lane) -> None:
        self._reading = reading
        self._writing = writing
        self._path = path
        self._source = source
        self._lane = lane
        self._pipes = [fd for fd in (reading, writing) if stat.S_ISFIFO(os.fstat(fd).st_mode)]
        for pipe in self._pipes:
            grow_pipe(pipe)

    def ways(self) -> list[str]:
        """Return the methods for ``auto``, the fastest first: those whose reader gets a copy.

        With splice, vmsplice or sendfile, a pipe or a socket gets the pages of the file itself, and a late reader sees
        what their owner has written since. Only an explicit method does that.
        """
        if self._source is None:
            return ["splice", "read"] if self._pipes else ["read"]
        return ["sendfile", "read"] if stat.S_ISREG(os.fstat(self._writing).st_mode) else ["read"]

    def step(self, ways: list[str], position: int, count: int) -> int:
        """Move up to ``count`` bytes with the first method that isn't refused; a refused one isn't tried again."""
        while True:
            way = getattr(self, f"_{ways[0]}")
            try:
                return int(way(position, count))
            except Refused as refused:
                refusal = refused.refusal
            except BlockingIOError:  # Another process that shares the descriptor has set O_NONBLOCK.
                if self._source is None:
                    wait_for_bytes(self._reading)
                wait_for_room(self._writing)
                continue
            except OSError as error:
                if ways[0] == "read" or not is_refusal(ways[0], error):  # There is no simpler way.
                    raise
                refusal = Refusal(reason=describe_errno(error.errno or 0), errno=error.errno)
            refused_way = ways.pop(0)
            if not ways:
                raise refused_method(refused_way, refusal, self._path)

    def _splice(self, position: int, count: int) -> int:
        offset = None if self._source is None else position
        return os.splice(self._reading, self._writing, count, offset_src=offset)

    def _sendfile(self, position: int, count: int) -> int:
        if self._source is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.sendfile(self._writing, self._reading, position, count)

    def _vmsplice(self, position: int, count: int) -> int:
        """Pass the pages themselves to the pipe: the reader sees what they contain when it reads them."""
        source = self._source
        if source is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return vmsplice_from(source, self._reading, position, count, self._writing)

    def _read(self, position: int, count: int) -> int:
        view = self._lane.buffer.view[:count]
        with explain("read", self._path):
            got = read_pipe(self._reading, [view]) if self._source is None else read_at(self._reading, view, position)
        write_all(self._writing, view[:got])
        return got
