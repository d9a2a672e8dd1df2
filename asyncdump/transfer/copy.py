"""A copy outside of a run, one source on one thread: into a file in place, or into a pipe."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, Literal

import msgspec

from asyncdump.codecs.seekable import Table
from asyncdump.codecs.zstd import Compressors, ZstdOptions
from asyncdump.engines import Engine, Refused, Route, candidates, is_refusal, refusal_of
from asyncdump.engines.base import Refusal
from asyncdump.engines.feed import vmsplice_from
from asyncdump.engines.read import data_runs
from asyncdump.errors import MethodRefusedError, describe_errno, explain
from asyncdump.kernel.lane import BUFFER, Lane, grow_pipe
from asyncdump.kernel.linux import filesystem, read_at
from asyncdump.kernel.pace import Pace
from asyncdump.kernel.relay import wait_for_bytes, wait_for_room, write_all
from asyncdump.sinks.file import FileSink
from asyncdump.sources.file import FileSource
from asyncdump.sources.source import truncated
from asyncdump.vocabulary.values import SMALL_PAGE, Choice, Source, Span

StreamMethod = Literal["auto", "vmsplice", "splice", "sendfile", "read"]

_STEP: Final = 8 << 20


class Copied(msgspec.Struct):
    """How far a copy has come: it tells the truth after an error too.

    Attributes:
        bytes: moved so far.
        method: what moves them.
        tick: called after each step.
    """

    bytes: int = 0
    method: str = ""
    tick: Callable[[], None] = lambda: None

    def add(self, count: int, method: str) -> None:
        """Count a step."""
        self.bytes += count
        self.method = method
        self.tick()


def copy_in_place(
    fd: int,
    source: Source,
    sink: FileSink,
    tally: Copied,
    *,
    start: int,
    length: int,
    seek: int,
    method: Choice,
    sparse: bool,
) -> None:
    """Copy ``length`` bytes of an open source from byte ``start`` into a sink at byte ``seek``.

    With ``sparse``, zeros are passed over: what the sink held there before stays.

    Raises:
        MethodRefusedError: the kernel doesn't take the method for these two.
        OSError: a call failed.
        SourceChangedError: the source ended early.
    """
    lane = Lane()
    origin = FileSource(fd, source)  # The caller's descriptor: it isn't closed here.
    route = Route(origin=origin, sink=sink, start=start - seek, sparse=sparse)
    engines = candidates(method, source=source.filesystem, destination=filesystem(route.sink_fd)[0], hashing=False)
    pace = sink.pace
    try:
        for extent in origin.spans(start, start + length):
            for span in _steps(extent, pace, sparse=sparse):
                if not span.hole:
                    _store(engines, route, span, lane)
                elif not sparse:
                    sink.write_zeros(route.target(span), span.length)
                tally.add(span.length, engines[0].method)
    finally:
        lane.close()


def copy_in_blocks(
    fd: int, sink: FileSink, tally: Copied, *, path: str, seek: int, length: int | None, sparse: bool
) -> None:
    """Copy what has no offsets, a pipe, into a sink at byte ``seek``, in blocks as O_DIRECT takes them.

    Args:
        path: what errors call the pipe.
        length: the bytes to copy at most; None for all there are.
        sparse: pass over zeros: what the sink held there before stays.

    Raises:
        DumpError: it can't be read.
        OSError: another call failed.
    """
    lane = Lane()
    view = lane.buffer.view
    while got := _fill(fd, view if length is None else view[: length - tally.bytes], path):
        for start, stop in data_runs(lane.buffer, got, SMALL_PAGE) if sparse else [(0, got)]:
            sink.write(view[start:stop], seek + tally.bytes + start)
        tally.add(got, "read")


def _fill(fd: int, view: memoryview, path: str, offset: int | None = None) -> int:
    """Read until the buffer is full or the end has come: from ``offset`` on, or what a pipe has."""
    done = 0
    with explain("read", path):
        while done < len(view):
            rest = [view[done:]]
            got = _readv(fd, rest) if offset is None else read_at(fd, view[done:], offset + done)
            if got == 0:
                break
            done += got
    return done


def _readv(fd: int, views: list[memoryview]) -> int:
    """Read from a pipe, waiting for it also where others have set O_NONBLOCK."""
    while True:
        try:
            return os.readv(fd, views)
        except BlockingIOError:
            wait_for_bytes(fd)


def _steps(extent: Span, pace: Pace, *, sparse: bool) -> Iterator[Span]:
    """Cut an extent into pieces that fit a lane's buffer, whichever engine takes them, and the pace of the disk."""
    offset = extent.offset
    while offset < extent.end:
        step = 16 * BUFFER if extent.hole and sparse else pace.step(BUFFER)
        length = min(step, extent.end - offset)
        yield Span(offset=offset, length=length, hole=extent.hole)
        offset += length


def _store(engines: list[Engine], route: Route, span: Span, lane: Lane) -> None:
    while (refusal := refusal_of(engines[0], route, span, lane)) is not None:
        engine = engines.pop(0)
        if not engines:
            raise _refused(engine.method, refusal, route.source.path)


def _refused(method: str, refusal: Refusal, path: str) -> MethodRefusedError:
    return MethodRefusedError(
        f"{method} is refused for {path}: {refusal.reason}",
        path=path,
        operation=method,
        errno=refusal.errno,
        hint="use method=auto",
    )


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
        reading, writing: the descriptors; writing goes on at the descriptor's file offset, if it has one.
        tally: counts what is moved.
        path: what errors call that which is read.
        source: what ``reading`` is, if it is a file; its bytes from ``start`` on are read.
        start: for a file, the first byte.
        length: the bytes to copy at most; None for all there are.
        method: a way of moving them, or ``auto`` for the first that hands over a copy and that the kernel accepts.

    Raises:
        MethodRefusedError: the kernel doesn't take the method for these two.
        DumpError: it can't be read.
        OSError: another call failed: BrokenPipeError where the reader of the pipe has gone.
        SourceChangedError: the file ended early.
    """
    lane = Lane()
    copy = _Stream(reading, writing, path, source, lane)
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
    zstd: ZstdOptions,
    start: int = 0,
    length: int | None = None,
) -> None:
    """Copy from one descriptor to another as a seekable .zst; the arguments are those of `copy_stream`.

    Raises:
        OSError: a call failed.
        SourceChangedError: the file ended early.
    """
    lane, compressors, table = Lane(), Compressors(), Table(checksums=zstd.checksum)
    end = None if source is None else min(source.size, source.size if length is None else start + length)
    left = length if end is None else max(end - start, 0)
    try:
        while left is None or left > 0 or not table.count:
            with compressors.room(zstd, lane) as press:
                view = lane.buffer.view[: zstd.frame if left is None else min(zstd.frame, left)]
                filled = _fill(reading, view, path, None if source is None else start + tally.bytes)
                if source is not None and filled < len(view):
                    raise truncated(path, start + tally.bytes + filled, start + tally.bytes + len(view))
                if filled == 0 and table.count:
                    break
                frame = compressors.frame(press, lane.buffer, filled)
            table.add(frame, filled)
            write_all(writing, memoryview(frame))
            tally.add(filled, str(zstd))
            left = None if left is None else left - filled
            if filled < len(view):
                break
        for piece in table.encoded():
            write_all(writing, piece)
    finally:
        lane.close()


class _Stream:
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
        """Return the ways worth trying, the fastest first, of those that hand over a copy.

        What a pipe or a socket takes from a file by splice, vmsplice or sendfile is the pages of that file: whoever
        reads them late sees what the owner has written since. Only a method that is named does that.
        """
        if self._source is None:
            return ["splice", "read"] if self._pipes else ["read"]
        return ["sendfile", "read"] if stat.S_ISREG(os.fstat(self._writing).st_mode) else ["read"]

    def step(self, ways: list[str], position: int, count: int) -> int:
        """Move up to ``count`` bytes the first way that isn't refused; ways that are, are dropped for good."""
        while True:
            way = getattr(self, f"_{ways[0]}")
            try:
                return int(way(position, count))
            except Refused as refused:
                refusal = refused.refusal
            except BlockingIOError:  # Whoever shares a descriptor has made it so.
                if self._source is None:
                    wait_for_bytes(self._reading)
                wait_for_room(self._writing)
                continue
            except OSError as error:
                if ways[0] == "read" or not is_refusal(ways[0], error):  # There is no plainer way.
                    raise
                refusal = Refusal(reason=describe_errno(error.errno or 0), errno=error.errno)
            refused_way = ways.pop(0)
            if not ways:
                raise _refused(refused_way, refusal, self._path)

    def _splice(self, position: int, count: int) -> int:
        offset = None if self._source is None else position
        return os.splice(self._reading, self._writing, count, offset_src=offset)

    def _sendfile(self, position: int, count: int) -> int:
        if self._source is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return os.sendfile(self._writing, self._reading, position, count)

    def _vmsplice(self, position: int, count: int) -> int:
        """Hand the pages themselves to the pipe: its reader sees what they hold when it reads."""
        source = self._source
        if source is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return vmsplice_from(source, self._reading, position, count, self._writing)

    def _read(self, position: int, count: int) -> int:
        view = self._lane.buffer.view[:count]
        with explain("read", self._path):
            got = _readv(self._reading, [view]) if self._source is None else read_at(self._reading, view, position)
        write_all(self._writing, view[:got])
        return got
