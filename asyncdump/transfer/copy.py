"""A copy outside of a run, on one thread, into a file: in place, or in blocks from a pipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import msgspec

from asyncdump.engines import Engine, Route, candidates, refusal_of
from asyncdump.engines.base import Refusal
from asyncdump.engines.read import data_runs
from asyncdump.errors import MethodRefusedError, explain
from asyncdump.kernel.lane import BUFFER, Lane
from asyncdump.kernel.linux import filesystem, read_at
from asyncdump.kernel.pace import Pace
from asyncdump.kernel.relay import wait_for_bytes
from asyncdump.sinks.file import FileSink
from asyncdump.sources.file import FileSource
from asyncdump.vocabulary.values import SMALL_PAGE, Choice, Source, Span


class Copied(msgspec.Struct):
    """The progress of a copy. It is also correct after an error.

    Attributes:
        bytes: the number of bytes copied so far.
        method: the method that moves them.
        tick: called after each span.
    """

    bytes: int = 0
    method: str = ""
    tick: Callable[[], None] = lambda: None

    def add(self, count: int, method: str) -> None:
        """Count a span."""
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

    With ``sparse``, zeros are skipped: the old content of the sink stays there.

    Raises:
        MethodRefusedError: the kernel doesn't support the method for these two.
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
    """Copy from a pipe into a sink at byte ``seek``, in blocks that O_DIRECT accepts.

    Args:
        path: the name of the pipe in errors.
        length: the most bytes to copy; None for all.
        sparse: skip zeros: the old content of the sink stays there.

    Raises:
        DumpError: it can't be read.
        OSError: another call failed.
    """
    lane = Lane()
    view = lane.buffer.view
    while got := fill(fd, view if length is None else view[: length - tally.bytes], path):
        for start, stop in data_runs(lane.buffer, got, SMALL_PAGE) if sparse else [(0, got)]:
            sink.write(view[start:stop], seek + tally.bytes + start)
        tally.add(got, "read")


def fill(fd: int, view: memoryview, path: str, offset: int | None = None) -> int:
    """Read from byte ``offset`` of a file, or from a pipe, until the buffer is full or at the end; return the count."""
    done = 0
    with explain("read", path):
        while done < len(view):
            rest = [view[done:]]
            got = read_pipe(fd, rest) if offset is None else read_at(fd, view[done:], offset + done)
            if got == 0:
                break
            done += got
    return done


def read_pipe(fd: int, views: list[memoryview]) -> int:
    """Read from a pipe, and wait for it even if another process has set O_NONBLOCK."""
    while True:
        try:
            return os.readv(fd, views)
        except BlockingIOError:
            wait_for_bytes(fd)


def _steps(extent: Span, pace: Pace, *, sparse: bool) -> Iterator[Span]:
    """Cut an extent into pieces that fit a lane's buffer and the pace of the disk, for any engine."""
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
            raise refused_method(engine.method, refusal, route.source.path)


def refused_method(method: str, refusal: Refusal, path: str) -> MethodRefusedError:
    """Return the error for a requested method that the kernel refuses."""
    return MethodRefusedError(
        f"{method} is refused for {path}: {refusal.reason}",
        path=path,
        operation=method,
        errno=refusal.errno,
        hint="use method=auto",
    )
