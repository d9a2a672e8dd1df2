"""One file that goes through filters, or into a pipe: one thread, which never blocks, alternately feeds and drains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from asyncdump.codecs.compressors import Compressors, Press
from asyncdump.engines import FEEDS, Engine, Refusal, Route
from asyncdump.errors import DumpError, FilterError, explain, from_oserror
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.relay import wait_for_room
from asyncdump.plan.plan import PlannedDump
from asyncdump.sinks.place import Place, Sink
from asyncdump.transfer.drains import CopiedDrain, Drain, Empty, FramesDrain, SplicedDrain
from asyncdump.transfer.feeds import Feed, FramesFeed, PlainFeed
from asyncdump.transfer.filters import Filters
from asyncdump.transfer.packer import Packer
from asyncdump.transfer.resources import Resources
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary.digest import new_digest
from asyncdump.vocabulary.values import UNREADABLE, Span


class Piped(Transfer):
    """A `Transfer` whose bytes go through programs: spliced into the first one, spliced from the last one.

    If they are compressed, that happens before the programs, or with ``compress_last`` after them.
    """

    def __init__(self, planned: PlannedDump, resources: Resources) -> None:
        super().__init__(planned, resources)
        self._compression: Final = planned.compression
        self._compressors: Final = resources.compressors
        self._buffers: Final = resources.buffers
        self._filters: Filters | None = None
        self._streams = False
        self._feed: Feed | None = None
        self._drain: Drain | None = None
        self._progressed = 0.0
        self._borrowed = ExitStack()

    @property
    def most_lanes(self) -> int:
        """One, because a single thread reads, feeds and drains."""
        return 1

    def _prepare(self, place: Place) -> list[Engine]:
        self._streams = place.streams
        # Before the programs are started, because they would have to wait as well.
        press: Press | None = None
        if self._compression is not None:
            press = self._borrowed.enter_context(self._compressors.press(self._compression))
        sink = self._route.sink
        if self.planned.filters:
            self._filters = Filters(self.planned.filters, self._stop.check)
        stdin = self._filters.stdin if self._filters else self._route.sink_fd
        if press is not None and not self.planned.compress_last:
            self._feed = FramesFeed(self, stdin, press)
        else:
            self._feed = PlainFeed(self, stdin)
        if self._filters is not None:
            self._drain = self._new_drain(sink, self._filters.stdout, press if self.planned.compress_last else None)
        self._progressed = time.monotonic()
        if self.planned.method != "auto":
            return [FEEDS[self.planned.method]]
        # A pipe that may outlive this process gets a copy: the pages of a source keep changing.
        live = self._filters is not None and not self._feed.sees_bytes
        return [FEEDS[way] for way in (["splice", "read"] if live else ["read"])]

    def _new_drain(self, sink: Sink, stdout: int, press: Press | None) -> Drain:
        # A stream isn't a file, so it has no digest.
        hasher = None if self._streams else new_digest(self.planned.checksum)
        if press is not None:
            packer = Packer(sink, hasher, self._buffers, self._stop.check, checksums=press.options.checksum)
            return FramesDrain(self._compressors, stdout, press, packer)
        if hasher is None and not sink.sequential and sink.fd is not None:
            return SplicedDrain(sink, sink.fd, stdout)
        sink.expect(self.length)  # Most programs write about as much as they read; the end corrects it.
        return CopiedDrain(sink, stdout, hasher)

    def _step(self, lane: Lane) -> bool:
        self._stop.check()
        assert self._feed is not None
        if self._feed.done and (self._drain is None or self._drain.done):
            return False
        # Neither step blocks: a program that waits for its output to be drained doesn't read its input.
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
            # Unreadable memory was handled where it was read: this error is that of the write.
            writing = error.errno in UNREADABLE
            raise self._reader.failure(error, self._engine, self.left(), lane, storing=writing) from error
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
        if self._filters is None:
            wait_for_room(self._route.sink_fd)
            return
        feeding = self._feed is not None and not self._feed.done
        self._filters.wait(feeding=feeding, emptying=self._drain is not None and not self._drain.done)
        if time.monotonic() - self._progressed > self.planned.timeout:
            raise self._told(self._filters.stuck(self.planned.timeout))

    def _told(self, error: FilterError) -> FilterError:
        error.path = self.source.path
        return error

    def _finish(self, lane: Lane) -> None:
        if self._filters is not None:
            self.phase = "filter"
            while not self._filters.ended():
                self._wait()
            if (complaint := self._filters.complaint()) is not None:
                raise self._told(complaint)
        sink = self._route.sink
        if self._drain is not None:
            with explain("write", sink.path):
                self._drain.finish(lane)
            self._note_stored(self._drain.hasher)
        if self._feed is not None and self._feed.sees_bytes and not self._streams:
            self._note_content(self._reader.hasher)
        self.give_back()

    def give_back(self, error: BaseException | None = None) -> None:
        """Kill the programs, close their descriptors, and return the press.

        Raises:
            FilterError: a program can't be killed.
        """
        self._feed = self._drain = None  # With their buffers.
        self._borrowed.close()
        filters, self._filters = self._filters, None
        if filters is not None and (left := filters.kill()):
            raise self._undead(left, error) from error

    def _undead(self, left: list[str], error: BaseException | None) -> FilterError:
        why = "" if error is None else f"{error}; "
        return FilterError(
            f"{why}{', '.join(left)} can't be killed: it waits for a device or filesystem that doesn't respond",
            command=left[0].partition(" ")[0],
            path=self.source.path,
            operation="kill",
            errno=error.errno if isinstance(error, DumpError) else None,
            hint="it ends when the device responds, or when the system restarts",
        )

    # --- for feeds and drains --------------------------------------------------------------------------------------

    @property
    def route(self) -> Route:
        return self._route

    @property
    def frame(self) -> int:
        assert self._compression is not None
        return self._compression.frame

    @property
    def compressors(self) -> Compressors:
        return self._compressors

    def next_spans(self) -> Iterator[Span]:
        """Yield the frames of the source, one after another."""
        for start in range(self.planned.offset, self._end, self.frame):
            yield Span(offset=start, length=min(self.frame, self._end - start))

    def left(self) -> Span:
        """Return the part of the source that was not fed yet."""
        return Span(offset=self.planned.offset + self.moved, length=self.length - self.moved)

    def refused(self, refusal: Refusal, lane: Lane) -> None:
        """Fall back to the next way to feed, before the first byte.

        Raises:
            MethodRefusedError: there is none.
        """
        self._reader.fall_back(self._engine, refusal, lane, first=True)

    @property
    def _engine(self) -> Engine:
        assert self.engine is not None
        return self.engine

    @property
    def spliced(self) -> bool:
        return self.engine is FEEDS["splice"]

    def note_fed(self, length: int) -> None:
        self.moved += length
        if self._filters is None:
            self._route.sink.note_copied(length)

    def load(self, span: Span, lane: Lane, *, hashed: bool = True) -> memoryview:
        """Load a span into the buffer of the lane, and hash it if a digest is requested."""
        data = self._reader.load(self._engine, span, lane)
        assert data is not None
        if hashed:
            self._reader.hash(span, data)
        return data

    def salvage(self, error: OSError, engine: Engine, span: Span, lane: Lane) -> memoryview:
        """Load a span into the buffer of the lane, with zeros for unreadable memory."""
        return self._reader.salvage(error, engine, span, lane)
