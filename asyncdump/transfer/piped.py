"""One file under way through filters, or into a pipe: fed and emptied in turn by one thread that never blocks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

from asyncdump.codecs.seekable import Table
from asyncdump.codecs.zstd import Compressors, Press, ZstdOptions
from asyncdump.engines import FEEDS, Engine, Refusal, Refused, Route, is_refusal
from asyncdump.engines.feed import fill_pipe
from asyncdump.errors import DumpError, FilterError, describe_errno, explain, from_oserror
from asyncdump.kernel.lane import Buffers, Lane
from asyncdump.kernel.linux import SPLICE_F_NONBLOCK, TRUE_ERRORS, some
from asyncdump.sinks.file import Place, Sink
from asyncdump.sinks.pipe import PipeSink
from asyncdump.sources.file import Source, Span, truncated
from asyncdump.transfer.filters import Commands, Filters
from asyncdump.transfer.packer import Packer
from asyncdump.transfer.salvage import UNREADABLE
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary.digest import Marked, new_digest

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
        self._feed: Feed | None = None
        self._drain: Drain | None = None
        self._progressed = 0.0
        self._borrowed = ExitStack()

    def _prepare(self, folder: Place) -> list[Engine]:
        # Before programs are started: they would wait as well.
        press = None if self._zstd is None else self._borrowed.enter_context(self._compressors.press(self._zstd))
        sink = self._route.sink
        if self._commands:
            self._filters = Filters(self._commands, self._stop.check)
        stdin = self._filters.stdin if self._filters else sink.fd
        if press is not None and not self._zstd_last:
            self._feed = FramesFeed(self, stdin, press)
        else:
            self._feed = PlainFeed(self, stdin)
        if self._filters is not None:
            self._drain = self._new_drain(sink, self._filters.stdout, press if self._zstd_last else None)
        self._progressed = time.monotonic()
        if self._choice != "auto":
            return [FEEDS[self._choice]]
        # A pipe that outlives this process gets a copy: the pages of a source go on changing with it.
        live = self._filters is not None and isinstance(self._feed, PlainFeed)
        return [FEEDS[way] for way in (["splice", "read"] if live else ["read"])]

    def _new_drain(self, sink: Sink, stdout: int, press: Press | None) -> Drain:
        hasher = None if isinstance(sink, PipeSink) else new_digest(self._checksum)
        if press is not None:
            packer = Packer(sink, hasher, self._buffers, self._stop.check, checksums=press.options.checksum)
            return FramesDrain(self, stdout, press, packer)
        if hasher is None and not sink.sequential:
            return SplicedDrain(sink, stdout)
        sink.expect(self.length)  # Most programs give about as much as they take; the end sets it right.
        return CopiedDrain(sink, stdout, hasher)

    def _step(self, lane: Lane) -> bool:
        self._stop.check()
        assert self._feed is not None
        if self._feed.done and (self._drain is None or self._drain.done):
            return False
        fed = not self._feed.done and self._fed(self._feed, lane)
        emptied = self._drain is not None and not self._drain.done and self._emptied(lane)
        if fed or emptied:
            self._progressed = time.monotonic()
        else:
            self._wait()
        return True

    def _fed(self, feed: Feed, lane: Lane) -> bool:
        try:
            moved = feed.step(lane)
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
        if feed.done and self._filters is not None:
            self._filters.close_stdin()
        return moved

    def _emptied(self, lane: Lane) -> bool:
        assert self._drain is not None
        with explain("write", self._route.sink.path):
            try:
                return self._drain.step(lane)
            except Empty:
                return False

    def _wait(self) -> None:
        sink = self._route.sink
        if self._filters is None:
            assert isinstance(sink, PipeSink)
            sink.wait()
            return
        feeding = self._feed is not None and not self._feed.done
        self._filters.wait(feeding=feeding, emptying=self._drain is not None and not self._drain.done)
        if time.monotonic() - self._progressed > self._timeout:
            raise self._told(self._filters.stuck(self._timeout))

    def _told(self, error: Any) -> Any:
        error.path = self.source.path
        return error

    def _finish(self, lane: Lane) -> None:
        if self._filters is not None:
            self.stage = "filter"
            while not self._filters.ended():
                self._wait()
            if (complaint := self._filters.complaint()) is not None:
                raise self._told(complaint)
        sink = self._route.sink
        if self._drain is not None:
            with explain("write", sink.path):
                self._drain.finish(lane)
            self._note_stored(self._drain.hasher)
        if self._hasher is not None and isinstance(self._feed, FramesFeed) and not isinstance(sink, PipeSink):
            self.content_digest = self._hasher.hexdigest()
        self.give_back()

    def give_back(self, error: BaseException | None = None) -> None:
        """Leave no program and no descriptor of one, and give back what there was to compress with.

        Raises:
            FilterError: a program can't be killed.
        """
        self._feed = self._drain = None  # With the buffers that they have.
        self._borrowed.close()
        filters, self._filters = self._filters, None
        if filters is not None and (left := filters.kill()):
            raise self._undead(left, error) from error

    def _undead(self, left: list[str], error: BaseException | None) -> FilterError:
        why = "" if error is None else f"{error}; "
        return FilterError(
            f"{why}{', '.join(left)} can't be killed: it waits for a device or a filesystem that doesn't answer",
            command=left[0].partition(" ")[0],
            path=self.source.path,
            operation="kill",
            errno=error.errno if isinstance(error, DumpError) else None,
            hint="it ends when what it waits for answers, or with the next start of the system",
        )

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


class PlainFeed(Feed):
    """The source as it is: read and written, or its pages spliced, vmspliced from huge pages."""

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
            if not self._piped.spliced or not is_refusal("splice", error):
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

    def __init__(self, piped: Piped, pipe: int, press: Press) -> None:
        super().__init__(piped, pipe)
        self._press = press
        self._spans = piped.next_spans()
        self._table = Table(checksums=press.options.checksum)
        self._rest: list[memoryview] = []
        self._last = False

    def step(self, lane: Lane) -> bool:
        if self._rest:
            written = some(os.write(self._pipe, self._rest[0]))
            self._rest[0] = self._rest[0][written:]
            if not self._rest[0]:
                del self._rest[0]
            return True
        if self._last:
            self.done = True
            return False
        self._rest = self._next(lane)
        return True

    def _next(self, lane: Lane) -> list[memoryview]:
        press, compressors = self._press, self._piped.compressors
        span = next(self._spans, None)
        if span is not None:
            with lane.borrowing(press.buffer):
                self._piped.load(span, lane)
            frame = compressors.frame(press, press.buffer, span.length)
            self._table.add(frame, span.length)
            self._piped.note_fed(span.length)
            return [memoryview(frame)]
        self._last = True
        if self._table.count:
            return self._table.encoded()
        frame = compressors.zeros(press, 0)
        self._table.add(frame, 0)
        return [memoryview(frame), *self._table.encoded()]


class Empty(Exception):  # noqa: N818 (no failure: it will have more)
    """A pipe has nothing now. EAGAIN itself may be the sink's answer, which is a failure."""


def _taken(pipe: int, view: memoryview) -> int:
    """Read what a pipe has into ``view`` and return how many bytes; 0 at its end.

    Raises:
        Empty: there is nothing now.
    """
    try:
        return os.readv(pipe, [view])
    except BlockingIOError as error:
        raise Empty from error


class Drain:
    """What empties the last program's output. A step that finds it empty raises `Empty`.

    Attributes:
        hasher: what hashes all that is written, or None if nothing does.
    """

    hasher: Marked | None = None

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self.done = False

    def step(self, lane: Lane) -> bool:
        """Take some; return whether anything was there."""
        raise NotImplementedError

    def finish(self, lane: Lane) -> None:
        """Write what is still held."""


class CopiedDrain(Drain):
    """Read into the lane's second buffer, hashed there, and written from there.

    What is hashed is what is written, and what is written stays: programs may move pages on that others still write to
    (splice(2)), so that two looks at what is in the pipe see two things.
    """

    def __init__(self, sink: Sink, pipe: int, hasher: Marked | None) -> None:
        super().__init__(pipe)
        self.hasher = hasher
        self._sink = sink
        self._filled = 0
        self._written = 0

    def step(self, lane: Lane) -> bool:
        # The lane's first buffer may hold what waits to be fed.
        view = lane.spare.view
        moved = _taken(self._pipe, view[self._filled :])
        if moved == 0:
            self.done = True
            return False
        if self.hasher is not None:
            self.hasher.update(view[self._filled : self._filled + moved])
        self._filled += moved
        if self._filled == len(view) or self._sink.sequential:
            self._write(view)
        return True

    def _write(self, view: memoryview) -> None:
        self._sink.write(view[: self._filled], self._written)
        self._written += self._filled
        self._filled = 0

    def finish(self, lane: Lane) -> None:
        self._write(lane.spare.view)
        self._sink.resize(self._written)


class SplicedDrain(Drain):
    """Spliced into the sink's page cache, with write-back at its heels: ``bench filter`` found O_DIRECT slower here,
    for a pipe hands the disk single pages, and each write waits for it.
    """

    def __init__(self, sink: Sink, pipe: int) -> None:
        super().__init__(pipe)
        self._sink = sink
        self._flushed = 0
        self._denied = False

    def step(self, lane: Lane) -> bool:
        sink, step = self._sink, self._sink.pace.step(_STEP)
        moved = self._move(lane, step)
        self.done = moved == 0
        if sink.stored - self._flushed >= sink.pace.step(_BEHIND):
            self._flush()
        return moved > 0

    def _move(self, lane: Lane, count: int) -> int:
        sink = self._sink
        if not self._denied:
            try:
                moved = os.splice(self._pipe, sink.fd, count, offset_dst=sink.stored, flags=SPLICE_F_NONBLOCK)
            except BlockingIOError as error:
                raise Empty from error
            except OSError as error:
                if error.errno in TRUE_ERRORS:
                    raise
                self._denied = True
            else:
                sink.note_copied(moved)
                return moved
        moved = _taken(self._pipe, lane.spare.view[:count])
        sink.write_cached(lane.spare.view[:moved], sink.stored)
        return moved

    def _flush(self) -> None:
        self._sink.flush_behind(self._flushed, self._sink.stored - self._flushed)
        self._flushed = self._sink.stored

    def finish(self, lane: Lane) -> None:
        if self._flushed < self._sink.stored:
            self._flush()


class FramesDrain(Drain):
    """Compressed: gathered into frames, which a packer writes."""

    def __init__(self, piped: Piped, pipe: int, press: Press, packer: Packer) -> None:
        super().__init__(pipe)
        self._compressors = piped.compressors
        self._press = press
        self._packer = packer
        self.hasher = packer.hasher
        self._filled = 0
        self._count = 0

    def step(self, lane: Lane) -> bool:
        frame = self._press.options.frame
        moved = _taken(self._pipe, self._press.buffer.view[self._filled : frame])
        self._filled += moved
        if moved == 0:
            self.done = True
        if self._filled == frame or (moved == 0 and (self._filled or not self._count)):
            self._pack()
        return moved > 0

    def _pack(self) -> None:
        frame = self._compressors.frame(self._press, self._press.buffer, self._filled)
        self._packer.append(self._count, frame, self._filled)
        self._count += 1
        self._filled = 0

    def finish(self, lane: Lane) -> None:
        self._packer.finish()
