"""One file in progress: from opening its source to a sealed sink that only waits to be made durable.

Any number of lanes (worker threads) may work on a transfer at the same time. The only loop over spans is here; the
`Reader` decides what is read, and with which engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from typing import Concatenate, Final, ParamSpec

from asyncdump.engines import ENGINES, Engine, Refusal, Refused, Route, candidates, is_refusal
from asyncdump.errors import FilterError, describe_errno, explain
from asyncdump.kernel.lane import Lane
from asyncdump.plan.plan import PlannedDump
from asyncdump.sinks.place import Place, PlacedSink
from asyncdump.sources.opening import open_planned
from asyncdump.sources.source import OpenSource, truncated
from asyncdump.transfer.reader import Reader
from asyncdump.transfer.resources import Resources
from asyncdump.transfer.salvage import pieces
from asyncdump.vocabulary.blocks import Blocks
from asyncdump.vocabulary.digest import Hasher
from asyncdump.vocabulary.values import BadRange, Source, Span

P = ParamSpec("P")


def _gives_back(step: Callable[Concatenate[Transfer, P], None]) -> Callable[Concatenate[Transfer, P], None]:
    """Make a failed step release the resources of its transfer immediately, because other threads may wait for them."""

    @wraps(step)
    def giving_back(self: Transfer, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            step(self, *args, **kwargs)
        except BaseException as error:
            self._reader.failed = True
            self.give_back(error)
            raise

    return giving_back


class Transfer:
    """One dump: call `begin`, then `work` in one or more lanes, then `seal`; or `abort` at any point before.

    A failed step releases the resources of the transfer immediately, except for its files, which `abort` removes and
    closes.

    Attributes:
        length: the number of bytes to move; for a source of unknown size, it is known after `begin`.
        size, inode: the size in bytes and the inode number of the file as stored, after `seal`.
        moved: the number of bytes moved so far, including holes.
        digest: the digest of the file as stored, in hexadecimal, after `seal`.
        content_digest: the digest of the bytes of the source; the same unless they were processed by stages.
        blocks, content_blocks: the block digests of both.
        phase: the current phase: ``open``, ``move``, ``digest``.
    """

    def __init__(self, planned: PlannedDump, resources: Resources) -> None:
        self.planned: Final = planned
        self.length = planned.length
        self.moved = 0
        self.phase = "open"
        self.size = 0
        self.inode = 0
        self.digest: str | None = None
        self.content_digest: str | None = None
        self.blocks: Blocks | None = None
        self.content_blocks: Blocks | None = None
        self.sink: PlacedSink | None = None
        self._stop: Final = resources.stop
        self._origin: OpenSource | None = None
        self._route: Route
        self._reader: Final = Reader(planned, resources.stop)
        self._counting: Final = threading.Lock()  # Held only for an addition; no other lock is taken within it.

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def source(self) -> Source:
        """The source as it was planned."""
        return self.planned.source

    @property
    def engine(self) -> Engine | None:
        """The engine that moves the bytes, after `begin` has opened both ends."""
        return self._reader.engine

    @property
    def bad(self) -> tuple[BadRange, ...]:
        """The unreadable ranges so far, in the order of the source; they are zeros in the sink."""
        return self._reader.bad[0]

    @property
    def bad_left_out(self) -> int:
        """The number of unreadable bytes that aren't listed in ``bad``, whose length is limited."""
        return self._reader.bad[1]

    @property
    def most_lanes(self) -> int | None:
        """How many lanes may work on it at the same time, or None for any number."""
        return self.sink.most_lanes if self.sink is not None else None

    @property
    def remaining(self) -> int:
        return self.length - self.moved

    @_gives_back
    def begin(self, place: Place, lane: Lane) -> None:
        """Open both ends and move the first span with the first engine that the kernel accepts.

        Raises:
            MethodRefusedError: the kernel accepts none of the engines.
            AsyncdumpError: an end can't be opened, the source changed, or a call failed.
        """
        self._stop.check()
        self._origin = self._open()
        if not self.source.sized:
            self._measure(self._origin.described.size)
        self.sink = place.create(self.name)
        self.phase = "move"
        sparse = self.planned.sparse and not self.sink.sequential  # A sequential sink can't have holes.
        self._route = Route(origin=self._origin, sink=self.sink, start=self.planned.offset, sparse=sparse)
        self._reader.start(self._route, self._prepare(place), self._spans(), lane)
        self._step(lane)

    def _open(self) -> OpenSource:
        return open_planned(self.source)

    def _measure(self, size: int) -> None:
        """Set the length for a source of unknown size, which has been read completely."""
        if self.planned.most is not None:
            self.length = max(0, min(self.planned.most, size - self.planned.offset))
        if size < self._end:
            raise truncated(self.source.path, size, self._end)

    @property
    def _end(self) -> int:
        """The offset in the source at which the dump ends."""
        return self.planned.offset + self.length

    def _prepare(self, place: Place) -> list[Engine]:
        """Prepare the sink and return the engines to try, the best one first."""
        # With the final size, writes in any order don't have to extend the file.
        self._route.sink.resize(self.length)
        return candidates(
            self.planned.method,
            source=self._route.source.filesystem,
            destination=place.filesystem,
            hashing=self._reader.hasher is not None,
            cloning=self.planned.on_read_error == "fail",
            descriptor=self._route.sink.fd is not None,
        )

    def _spans(self) -> Iterator[Span]:
        """Yield the spans in which the source is moved; it is first iterated after an engine was chosen."""
        return self._reader.steps(self.planned.offset, self._end)

    @_gives_back
    def work(self, lane: Lane) -> None:
        """Move spans until none is left; several lanes may call this at the same time.

        Raises:
            AsyncdumpError: a call failed, the source changed, or the run was stopped. The other lanes then stop, too.
        """
        while self._step(lane):
            pass

    def _step(self, lane: Lane) -> bool:
        """Move one span; return False when none is left."""
        self._stop.check()
        taken = self._reader.take(lane)
        if taken is None:
            return False
        if not taken.span.hole:
            self._store(taken.engine, taken.span, lane, taken.data)
        elif not self._route.sparse:
            self._store_zeros(taken.span)
        self._count(taken.span)
        return True

    def _count(self, span: Span) -> None:
        with self._counting:
            self.moved += span.length

    def _store(self, engine: Engine, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Write one span; if the engine is refused before anything was moved, write it with the next engine."""
        reader = self._reader
        try:
            engine.store(self._route, span, lane, data)
        except Refused as refused:
            refusal = refused.refusal
        except OSError as error:
            if reader.forgives(error) and not engine.sees_bytes:
                self._store_around(error, span, lane)
                return
            if reader.proved or not is_refusal(engine.method, error):
                raise reader.failure(error, engine, span, lane, storing=True) from error
            refusal = Refusal(reason=describe_errno(error.errno or 0), errno=error.errno)
        else:
            reader.proved = True
            return
        # Nothing of this span was moved. If it is the first one, nothing was moved at all (see `fall_back`).
        first = span.offset == self.planned.offset
        successor = reader.fall_back(engine, refusal, lane, first=first)
        for piece in reader.cut(span):
            self._store(successor, piece, lane, reader.load_again(successor, piece, lane, hashed=first))

    def _store_around(self, error: OSError, span: Span, lane: Lane) -> None:
        """Read a span around its unreadable pages and write it from the buffer, so that only the sink can fail.

        The entire span is written, regardless of what the engine has written already.
        """
        sink = self._route.sink
        for piece in pieces(span, lane):
            data = self._reader.salvage(error, ENGINES["read"], piece, lane)
            target = self._route.target(piece)
            with explain(f"write at byte {target}", sink.path):
                sink.write_cached(data, target)
                sink.flush_behind(target, piece.length)

    def _store_zeros(self, span: Span) -> None:
        sink = self._route.sink
        with explain("write", sink.path):
            sink.write_zeros(self._route.target(span), span.length)

    @_gives_back
    def seal(self, lane: Lane) -> None:
        """Check that the source hasn't changed, compute the digest if it isn't known yet, and close the source.

        Raises:
            SourceChangedError: the source has shrunk or lost memory, so that zeros may have been moved.
            DumpError: the sink can't be read back.
        """
        assert self.sink is not None
        # After the last read, so that a loss during any of the reads is found.
        self._route.origin.check_still_valid(self._end)
        self._finish(lane)
        self.sink.close_direct()
        self.size, self.inode = self.sink.status()
        self._close_source()

    def _finish(self, lane: Lane) -> None:
        """Compute the digests, after writing what is still to be written."""
        hasher = self._reader.hasher
        if hasher is None:
            return
        if not self._reader.hashes:
            self.phase = "digest"
            self._route.sink.read_back(self.length, hasher, lane, self._stop.check)
        self._note_content(hasher)
        self._note_stored(hasher)

    def _note_content(self, hasher: Hasher | None) -> None:
        if hasher is not None:
            self.content_digest, self.content_blocks = hasher.hexdigest(), hasher.blocks()

    def _note_stored(self, hasher: Hasher | None) -> None:
        if hasher is not None:
            self.digest, self.blocks = hasher.hexdigest(), hasher.blocks()

    def give_back(self, error: BaseException | None = None) -> None:
        """Release what other threads may be waiting for; ``error`` is that of a failed step. It may be called again.

        Raises:
            FilterError: a program can't be stopped.
        """

    def abort(self) -> None:
        """Remove what was written and close both ends."""
        with suppress(FilterError):  # Reported when the step failed.
            self.give_back()
        self._close_source()
        if self.sink is not None:
            self.sink.abort()

    def _close_source(self) -> None:
        if self._origin is not None:
            self._origin.close()
