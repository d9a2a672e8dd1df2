"""What feeds the first program, or a pipe."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Final, Protocol

from asyncdump.codecs.compressors import Compressors, Press
from asyncdump.codecs.seekable import Table
from asyncdump.engines import FEEDS, Engine, Refusal, Refused, Route, is_refusal
from asyncdump.engines.feed import fill_pipe
from asyncdump.errors import describe_errno
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import SPLICE_F_NONBLOCK, some
from asyncdump.vocabulary.values import UNREADABLE, Span

STEP: Final = 1 << 20
"""How many bytes are moved at a time: the maximum size of a pipe, unless that was raised (pipe(7))."""


class Feeding(Protocol):
    """What a feed needs from its transfer.

    Attributes:
        route: the source and the sink.
        compressors: the compressors of the run.
        spliced: whether the feed currently uses splice(2).
    """

    @property
    def route(self) -> Route: ...

    @property
    def compressors(self) -> Compressors: ...

    @property
    def spliced(self) -> bool: ...

    def next_spans(self) -> Iterator[Span]:
        """Yield the frames of the source, one after another."""

    def left(self) -> Span:
        """Return the part of the source that was not fed yet."""

    def refused(self, refusal: Refusal, lane: Lane) -> None:
        """Fall back to the next way to feed, before the first byte."""

    def note_fed(self, length: int) -> None:
        """Count bytes of the source that were fed."""

    def load(self, span: Span, lane: Lane, *, hashed: bool = True) -> memoryview:
        """Load a span into the buffer of the lane, and hash it if a digest is requested."""

    def salvage(self, error: OSError, engine: Engine, span: Span, lane: Lane) -> memoryview:
        """Load a span into the buffer of the lane, with zeros for unreadable memory."""


class Feed(ABC):
    """What fills a pipe. A step raises `BlockingIOError` if the pipe is full.

    Attributes:
        sees_bytes: whether all bytes of the source pass through user space, and are hashed there.
    """

    sees_bytes: ClassVar[bool] = False

    def __init__(self, piped: Feeding, pipe: int) -> None:
        self._piped = piped
        self._pipe = pipe
        self.done = False

    @abstractmethod
    def step(self, lane: Lane) -> bool:
        """Feed some bytes; return whether there were any."""


class PlainFeed(Feed):
    """The raw source: read and written, or spliced (vmspliced from huge pages)."""

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
        step = Span(offset=span.offset, length=min(span.length, STEP))
        try:
            moved = fill_pipe(route, step.offset, step.length, self._pipe, SPLICE_F_NONBLOCK)
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            self._rest = self._piped.salvage(error, FEEDS["splice"], step, lane)
            return self._write(span, lane)
        if moved == 0:
            raise route.origin.ended(span.offset, span.end)
        return moved

    def _write(self, span: Span, lane: Lane) -> int:
        if not self._rest:
            step = Span(offset=span.offset, length=min(span.length, STEP))
            self._rest = self._piped.load(step, lane, hashed=False)
        moved = some(os.write(self._pipe, self._rest))
        self._rest = self._rest[moved:]
        return moved


class FramesFeed(Feed):
    """The compressed source: one frame after another, then the seek table."""

    sees_bytes: ClassVar[bool] = True

    def __init__(self, piped: Feeding, pipe: int, press: Press) -> None:
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
