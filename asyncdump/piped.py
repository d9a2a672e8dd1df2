"""One file under way through filters, or into a pipe: fed and emptied in turn by one thread that never blocks."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

from asyncdump.digest import Marked, new_digest
from asyncdump.engines import FEEDS, REFUSALS, Engine, Refusal, Refused, Route
from asyncdump.engines.feed import fill_pipe
from asyncdump.errors import describe_errno, explain, from_oserror
from asyncdump.lane import Buffer, Buffers, Lane, waiting_in
from asyncdump.linux import SPLICE_F_NONBLOCK, some, tee
from asyncdump.outlet import PipeSink
from asyncdump.pace import pace_of
from asyncdump.packer import Packer, Table
from asyncdump.salvage import UNREADABLE
from asyncdump.sink import Place, Sink
from asyncdump.source import Source, Span, truncated
from asyncdump.stages.filters import Commands, Filters
from asyncdump.stages.zstd import Compressors, ZstdOptions
from asyncdump.transfer import Transfer

_STEP: Final = 1 << 20
"""Bytes moved at once, what a pipe holds at most where nobody raised its limit (pipe(7))."""

_BEHIND: Final = 4 << 20


class Piped(Transfer):
    """A `Transfer` whose bytes go through programs: spliced into the first, spliced out of the last.

    With ``zstd`` they are compressed before the programs, or with ``zstd_last`` after them.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        *,
        filters: Commands,
        timeout: float,
        zstd: ZstdOptions | None,
        zstd_last: bool,
        compressors: Compressors,
        buffers: Buffers,
        **options: Any,
    ) -> None:
        super().__init__(source, name, **options)
        self._commands: Final = filters
        self._timeout: Final = timeout
        self._zstd: Final = zstd
        self._zstd_last: Final = zstd_last
        self._compressors: Final = compressors
        self._buffers: Final = buffers
        self._filters: Filters | None = None
        self._feed: Feed
        self._drain: Drain | None = None
        self._progressed = 0.0
        self._borrowed = ExitStack()

    def _prepare(self, folder: Place) -> list[Engine]:
        sink = self._route.sink
        if self._commands:
            self._filters = Filters(self._commands)
        stdin = self._filters.stdin if self._filters else sink.fd
        if self._zstd is not None and not self._zstd_last:
            self._feed = FramesFeed(self, stdin)
        else:
            self._feed = SplicedFeed(self, stdin)
        if self._filters is not None:
            self._drain = (
                FramesDrain(self, self._filters.stdout)
                if self._zstd is not None and self._zstd_last
                else SplicedDrain(sink, self._filters.stdout, self._stored_hasher(sink), self._buffers)
            )
        self._progressed = time.monotonic()
        ways = ["splice", "read"] if self._choice == "auto" and not isinstance(self._feed, FramesFeed) else ["read"]
        return [FEEDS[way] for way in (ways if self._choice == "auto" else [self._choice])]

    def _step(self, lane: Lane) -> bool:
        self._stop.check()
        if self._feed.done and (self._drain is None or self._drain.done):
            return False
        fed = not self._feed.done and self._fed(lane)
        emptied = self._drain is not None and not self._drain.done and self._emptied(lane)
        if fed or emptied:
            self._progressed = time.monotonic()
        else:
            self._wait()
        return True

    def _fed(self, lane: Lane) -> bool:
        try:
            moved = self._feed.step(lane)
        except BlockingIOError:
            return False
        except BrokenPipeError as error:
            if self._filters is not None:
                raise self._told(self._filters.closed_early()) from error
            raise from_oserror(error, "write", self._route.sink.path) from error
        except OSError as error:
            # A page that can't be read was met, and gone around, where it was read: this is the writer's.
            writing = error.errno in UNREADABLE
            raise self._failure(error, self._engines[0], self.left(), lane, storing=writing) from error
        if self._feed.done and self._filters is not None:
            self._filters.close_stdin()
        return moved

    def _emptied(self, lane: Lane) -> bool:
        assert self._drain is not None
        with explain("write", self._route.sink.path):
            try:
                return self._drain.step(lane)
            except BlockingIOError:
                return False

    def _wait(self) -> None:
        sink = self._route.sink
        if self._filters is None:
            assert isinstance(sink, PipeSink)
            sink.wait()
            return
        emptying = None
        if self._drain is not None and not self._drain.done:
            emptying = sink.fd if isinstance(sink, PipeSink) else -1
        self._filters.wait(feeding=not self._feed.done, emptying=emptying)
        if time.monotonic() - self._progressed > self._timeout:
            raise self._told(self._filters.stuck(self._timeout))

    def _told(self, error: Any) -> Any:
        error.path = self.source.path
        return error

    def _finish(self, lane: Lane) -> None:
        if self._filters is not None:
            self.stage = "filter"
            while not self._filters.ended():
                self._stop.check()
                self._wait()
            complaint = self._filters.complaint()
            self._filters.kill()
            if complaint is not None:
                raise self._told(complaint)
        sink = self._route.sink
        if self._drain is not None:
            with explain("write", sink.path):
                self._drain.finish()
        if self._hasher is None or isinstance(sink, PipeSink):
            return
        if isinstance(self._feed, FramesFeed):
            self.content_digest = self._hasher.hexdigest()
        if self._drain is not None:
            self._note_stored(self._drain.hasher)

    def _stored_hasher(self, sink: Sink) -> Marked | None:
        return None if isinstance(sink, PipeSink) else new_digest(self._checksum)

    def abort(self) -> None:
        """Leave no program, no descriptor and no file."""
        if self._filters is not None:
            self._filters.kill()
        self._borrowed.close()
        super().abort()

    # --- for feeds and drains --------------------------------------------------------------------------------------

    @property
    def route(self) -> Route:
        return self._route

    @property
    def zstd(self) -> ZstdOptions:
        assert self._zstd is not None
        return self._zstd

    @property
    def compressors(self) -> Compressors:
        return self._compressors

    @property
    def buffers(self) -> Buffers:
        return self._buffers

    def new_packer(self) -> Packer:
        return Packer(self._route.sink, new_digest(self._checksum), self._buffers, self._stop.check)

    def borrow_frame(self) -> tuple[Buffer, Callable[[], None]]:
        """Return a buffer for one frame, out of the budget of compression, and what gives it back before the end."""
        buffer = self._borrowed.enter_context(self._compressors.buffer(self.zstd))
        return buffer, self._borrowed.close

    def next_spans(self) -> Iterator[Span]:
        """Yield the frames of the source, one after another."""
        end = self._offset + self.length
        for start in range(self._offset, end, self.zstd.frame):
            yield Span(offset=start, length=min(self.zstd.frame, end - start))

    def left(self) -> Span:
        """Return what of the source was not fed yet."""
        return Span(offset=self._offset + self.moved, length=self.length - self.moved)

    def refused(self, refusal: Refusal, lane: Lane) -> None:
        """Have the next way to feed, before the first byte.

        Raises:
            MethodRefusedError: there is none.
        """
        self._fall_back(refusal, lane)

    @property
    def spliced(self) -> bool:
        return self._engines[0] is FEEDS["splice"]

    def note_fed(self, length: int) -> None:
        self.moved += length
        if self._filters is None:
            self._route.sink.note_copied(length)

    def load(self, span: Span, lane: Lane, *, hashed: bool = True) -> memoryview:
        """Bring a span into the lane's buffer, and hash it if it is to have a digest."""
        data = self._load(self._engines[0], span, lane)
        assert data is not None
        if hashed:
            self._hash(span, data)
        return data


class Feed:
    """What fills a pipe. A step that finds it full raises `BlockingIOError`."""

    def __init__(self, piped: Piped, pipe: int) -> None:
        self._piped = piped
        self._pipe = pipe
        self.done = False

    def step(self, lane: Lane) -> bool:
        """Feed some; return whether anything was."""
        raise NotImplementedError


class SplicedFeed(Feed):
    """The source as it is: spliced, vmspliced from huge pages, or read and written where neither is taken."""

    _rest: memoryview = memoryview(b"")

    def step(self, lane: Lane) -> bool:
        span = self._piped.left()
        if span.length == 0:
            self.done = True
            return False
        try:
            spliced = self._piped.spliced and not self._rest
            moved = self._splice(span, lane) if spliced else self._write(span, lane)
        except BlockingIOError:
            raise
        except Refused as refused:
            self._piped.refused(refused.refusal, lane)
            return True
        except OSError as error:
            if not self._piped.spliced or error.errno not in REFUSALS:
                raise
            self._piped.refused(Refusal(reason=describe_errno(error.errno or 0), errno=error.errno), lane)
            return True
        self._piped.note_fed(moved)
        return True

    def _splice(self, span: Span, lane: Lane) -> int:
        route = self._piped.route
        step = Span(offset=span.offset, length=min(span.length, _STEP))
        try:
            moved = fill_pipe(route, step.offset, step.length, self._pipe, SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            self._rest = self._piped.salvage(error, FEEDS["splice"], step, lane)
            return self._write(span, lane)
        if moved == 0:
            raise truncated(route.source.path, span.offset, span.end)
        return moved

    def _write(self, span: Span, lane: Lane) -> int:
        if not self._rest:
            step = Span(offset=span.offset, length=min(span.length, _STEP))
            self._rest = self._piped.load(step, lane, hashed=False)
        moved = some(os.write(self._pipe, self._rest))
        self._rest = self._rest[moved:]
        return moved


class FramesFeed(Feed):
    """The source compressed: a frame after another, and the table of them."""

    def __init__(self, piped: Piped, pipe: int) -> None:
        super().__init__(piped, pipe)
        self._spans = piped.next_spans()
        self._table = Table()
        self._rest = memoryview(b"")
        self._last = False

    def step(self, lane: Lane) -> bool:
        if self._rest:
            self._rest = self._rest[some(os.write(self._pipe, self._rest)) :]
            return True
        if self._last:
            self.done = True
            return False
        self._rest = memoryview(self._next(lane))
        return True

    def _next(self, lane: Lane) -> bytes:
        zstd, compressors = self._piped.zstd, self._piped.compressors
        span = next(self._spans, None)
        if span is not None:
            with compressors.room(zstd, lane):
                self._piped.load(span, lane)
                frame = compressors.frame(zstd, lane.buffer, span.length)
            self._table.add(frame, span.length, checksum=zstd.checksum)
            self._piped.note_fed(span.length)
            return frame
        self._last = True
        if self._table.frames:
            return self._table.encoded()
        frame = compressors.zeros(zstd, 0)
        self._table.add(frame, 0, checksum=zstd.checksum)
        return frame + self._table.encoded()


class Drain:
    """What empties the last program's output. A step that finds it empty raises `BlockingIOError`.

    Attributes:
        hasher: what hashes all that is written, or None if nothing does.
    """

    hasher: Marked | None

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self.done = False

    def step(self, lane: Lane) -> bool:
        """Take some; return whether anything was there."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what is still held."""


class SplicedDrain(Drain):
    """Spliced into the sink's page cache, with write-back at its heels: ``bench filter`` found O_DIRECT slower here,
    for a pipe hands the disk single pages, and each write waits for it.

    With a digest, a second pipe holds the same pages (tee(2)) until they are hashed: what is hashed is what is written.
    """

    def __init__(self, sink: Sink, pipe: int, hasher: Marked | None, buffers: Buffers) -> None:
        super().__init__(pipe)
        # The lane's own buffer may hold what waits to be fed.
        self._buffers = buffers
        self._buffer = buffers.take() if hasher is not None else None
        self._sink = sink
        self.hasher = hasher
        self._flushed = 0
        self._pace = pace_of(sink.fd)
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)

    def step(self, lane: Lane) -> bool:
        waiting = waiting_in(self._pipe)
        if waiting == 0:
            if not any(event & select.POLLHUP for _, event in self._poll.poll(0)):
                raise BlockingIOError
            # What was written just before the end came may be there now.
            waiting = waiting_in(self._pipe)
        if waiting == 0:
            self.done = True
            if self._buffer is not None:
                self._buffers.give_back(self._buffer)
            return False
        count = min(waiting, self._pace.step(_STEP))
        if self.hasher is not None and self._buffer is not None:
            count = self._look(self.hasher, self._buffer.view, count, lane)
        while count:
            moved = self._move(count)
            self._sink.note_copied(moved)
            count -= moved
        return True

    def _look(self, hasher: Marked, view: memoryview, count: int, lane: Lane) -> int:
        """Hash the next bytes without taking them; return how many, all of which must then be moved."""
        reading, writing = lane.pipe
        try:
            count = some(tee(self._pipe, writing, count, SPLICE_F_NONBLOCK))
            done = 0
            while done < count:
                got = some(os.readv(reading, [view[: count - done]]))
                hasher.update(view[:got])
                done += got
        except BaseException:
            lane.drop_pipe()
            raise
        return count

    def _move(self, count: int) -> int:
        if isinstance(self._sink, PipeSink):
            return self._sink.splice_from(self._pipe, count)
        moved = some(os.splice(self._pipe, self._sink.fd, count, offset_dst=self._sink.stored))
        if self._sink.stored + moved - self._flushed >= self._pace.step(_BEHIND):
            self._flush(self._sink.stored + moved)
        return moved

    def _flush(self, end: int) -> None:
        self._sink.flush_behind(self._flushed, end - self._flushed)
        self._flushed = end

    def finish(self) -> None:
        if self._flushed < self._sink.stored and not self._sink.sequential:
            self._flush(self._sink.stored)


class FramesDrain(Drain):
    """Compressed: gathered into frames, which a packer writes."""

    def __init__(self, piped: Piped, pipe: int) -> None:
        super().__init__(pipe)
        self._piped = piped
        self._packer = piped.new_packer()
        self.hasher = self._packer.hasher
        self._buffer, self._give_back = piped.borrow_frame()
        self._filled = 0
        self._count = 0

    def step(self, lane: Lane) -> bool:
        view = self._buffer.view[self._filled : self._piped.zstd.frame]
        moved = os.readv(self._pipe, [view])
        self._filled += moved
        if moved == 0:
            self.done = True
        if self._filled == self._piped.zstd.frame or (moved == 0 and (self._filled or not self._count)):
            self._pack()
        return moved > 0

    def _pack(self) -> None:
        zstd = self._piped.zstd
        frame = self._piped.compressors.frame(zstd, self._buffer, self._filled)
        self._packer.append(self._count, frame, self._filled, checksum=zstd.checksum)
        self._count += 1
        self._filled = 0

    def finish(self) -> None:
        self._packer.finish()
        self._give_back()
