"""The reading side of a transfer: spans are loaded and hashed in order, by an engine that the kernel accepts.

Bytes can only be hashed while they are moved if they are read once and in order, from the first byte on. `Reader`
enforces that order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from asyncdump.engines import Engine, Refusal, Refused, Route, accepting, is_refusal
from asyncdump.errors import (
    AsyncdumpError,
    DumpError,
    MethodRefusedError,
    describe_errno,
    explain,
)
from asyncdump.kernel.lane import Lane
from asyncdump.plan.plan import PlannedDump
from asyncdump.transfer.blame import failure_of
from asyncdump.transfer.salvage import BadRanges, merged, read_around
from asyncdump.vocabulary.digest import Hasher, new_digest
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import UNREADABLE, BadRange, Span

_LONGEST_HOLE: Final = 64 << 20
"""The maximum length of a span of a hole: hashing that many zeros takes about 3 ms, or 40 ms with sha256."""


_Blocks = tuple[int, memoryview]
"""Complete blocks that are still to be hashed, and their place: what `Hasher.take` returns."""


class Taken(NamedTuple):
    """A span that a lane has taken, with its number; ``data`` is None for a hole, and if only the kernel sees it."""

    number: int
    span: Span
    engine: Engine
    data: memoryview | None


class Reader:
    """Loads the spans of one source, for any number of lanes. Call `start` before anything but `bad`.

    ``_turn`` is held while a span is taken, loaded and hashed, and while the engine is replaced. Spans are therefore
    loaded in the order of the file, and a lane whose engine was refused sees whether another lane has replaced it
    already. Block digests are computed right after that, outside of the turn, while the bytes are still in the caches
    of this core.

    Lock order: ``_turn`` first, then the locks of a load (bad ranges, the pace of a device). A thread that waits for
    ``_turn`` holds no other lock. It may hold a share of the compressors' budget, but the thread with the turn never
    waits for that, so there is no deadlock. Spans are stored outside of the turn.

    Attributes:
        engine: the engine that currently loads and stores; None before `start`.
        hasher: computes the digest of the source's bytes, or None if no digest is wanted.
        hashes: whether ``hasher`` sees each byte while it is moved; otherwise the sink is read back to hash it.
        proved: whether the engine has moved anything; only before that may the kernel refuse it.
        taken: the number of spans taken so far.
        failed: whether a lane has failed; then no lane takes another span.
    """

    def __init__(self, planned: PlannedDump, stop: Stop) -> None:
        self.engine: Engine | None = None
        self.hasher: Hasher | None = new_digest(planned.checksum)
        self.hashes = False
        self.proved = False
        self.failed = False
        self._planned: Final = planned
        self._stop: Final = stop
        self._bad: Final = BadRanges()
        self._turn: Final = threading.Lock()
        self._route: Route
        self._others: list[Engine] = []
        self._spans: Iterator[Span] = iter(())
        self.taken = 0

    def start(self, route: Route, engines: list[Engine], spans: Iterator[Span], lane: Lane) -> None:
        """Begin with the first of the ``engines`` that doesn't refuse the route up front.

        Raises:
            MethodRefusedError: all of them refuse it.
        """
        self._route = route
        engine, *self._others = engines
        self.engine, self._spans = engine, spans
        if (refusal := engine.refuses(route)) is not None:
            engine = self._replace_engine(engine, refusal, lane)
        self.hashes = self.hasher is not None and engine.sees_bytes

    @property
    def bad(self) -> tuple[tuple[BadRange, ...], int]:
        """The unreadable ranges so far, in the order of the source, and the number of bytes in ranges not listed."""
        return self._bad.told()

    # --- spans -----------------------------------------------------------------------------------------------------

    def take(self, lane: Lane) -> Taken | None:
        """Take the next span, load and hash it; return None if none is left, or another lane has failed.

        Raises:
            AsyncdumpError: it can't be loaded, the source changed, or the run was stopped.
        """
        with self._turn:
            self._stop.check()  # Waiting for the turn may have taken long.
            # Two threads must not advance a generator; and its spans depend on the current engine (`cut`).
            span = None if self.failed else next(self._spans, None)
            if span is None:
                return None
            number, self.taken = self.taken, self.taken + 1
            assert self.engine is not None
            data = self.load(self.engine, span, lane)
            blocks = self._hash(span, data)
            taken = Taken(number, span, self.engine, data)
        self._hash_blocks(blocks)
        return taken

    def steps(self, offset: int, end: int) -> Iterator[Span]:
        """Yield the spans of a range of the source, cut by `cut`, with its holes."""
        assert self.engine is not None
        # An engine that sees the bytes finds short holes faster in the data than by seeking.
        shortest = self.engine.span if self.engine.sees_bytes else 1
        for extent in self._route.origin.spans(offset, end, shortest_hole=shortest):
            yield from self.cut(extent)

    def cut(self, extent: Span) -> Iterator[Span]:
        """Cut an extent into spans for the current engine, which may be replaced between two spans."""
        offset, start = extent.offset, self._route.start
        while offset < extent.end:
            assert self.engine is not None
            # Cut at multiples of the I/O size from the start, not from the extent: after a hole, spans are aligned to
            # the granularity of the sink again.
            step = _LONGEST_HOLE if extent.hole and self._route.sparse else self._step(self.engine.span)
            length = min(step - (offset - start) % step, extent.end - offset)
            yield Span(offset=offset, length=length, hole=extent.hole)
            offset += length

    def _step(self, span: int) -> int:
        """Return the I/O size in bytes: what both devices move in a short time."""
        for pace in (self._route.origin.pace, self._route.sink.pace):
            span = span if pace is None else pace.step(span)
        return span

    # --- loading ---------------------------------------------------------------------------------------------------

    def load(self, engine: Engine, span: Span, lane: Lane) -> memoryview | None:
        """Load a span; return None for a hole, and if only the kernel sees the bytes.

        Raises:
            MethodRefusedError: the kernel refuses the engine, which has moved nothing yet.
            AsyncdumpError: the span can't be loaded.
        """
        if span.hole:
            return None
        pace = self._route.origin.pace
        try:
            if pace is None:
                return engine.load(self._route, span, lane)
            with pace.timing(span.length):
                return engine.load(self._route, span, lane)
        except Refused as refused:
            raise self._refused(engine, refused.refusal, lane) from refused
        except OSError as error:
            if not self.proved and engine.method != "read" and is_refusal(engine.method, error):
                refusal = Refusal(reason=describe_errno(error.errno or 0), errno=error.errno)
                raise self._refused(engine, refusal, lane) from error
            return self.salvage(error, engine, span, lane)

    def load_again(self, engine: Engine, span: Span, lane: Lane, *, hashed: bool) -> memoryview | None:
        """Load a piece of a span whose engine was refused, and hash it if it wasn't hashed before (`fall_back`)."""
        with self._turn:
            data = self.load(engine, span, lane)
            blocks = self._hash(span, data) if hashed else None
        self._hash_blocks(blocks)
        return data

    def salvage(self, error: OSError, engine: Engine, span: Span, lane: Lane) -> memoryview:
        """Read a span that an engine failed to load into the lane's buffer, with zeros for unreadable pages.

        Raises:
            DumpError: the settings don't allow that, ``error`` isn't about an unreadable page, or reading fails again.
        """
        if not self.forgives(error):
            raise self.failure(error, engine, span, lane) from error
        origin = self._route.origin
        origin.check_end(span.end)
        view = lane.buffer.view[: span.length]
        with explain("read", origin.described.path):
            bad = merged(read_around(origin, span, view, self._stop.check))
        self._bad.add(bad)
        return view

    def forgives(self, error: OSError) -> bool:
        """Return whether an error is about an unreadable page that becomes zeros in the dump."""
        return self._planned.on_read_error == "zero" and error.errno in UNREADABLE

    def hash(self, span: Span, data: memoryview | None) -> None:
        """Hash a span, or the zeros of a hole, if bytes are hashed while they are moved."""
        self._hash_blocks(self._hash(span, data))

    def _hash(self, span: Span, data: memoryview | None) -> _Blocks | None:
        """Do the part of `hash` that depends on the order of the file; the rest is returned for `_hash_blocks`."""
        if self.hasher is None or not self.hashes:
            return None
        if data is not None:
            return self.hasher.take(data)
        self.hasher.zeros(span.length)
        return None

    def _hash_blocks(self, blocks: _Blocks | None) -> None:
        """Compute the digests of complete blocks, outside of the turn, because they don't depend on each other."""
        if blocks is not None:
            assert self.hasher is not None
            self.hasher.put(*blocks)

    # --- engines that are refused ----------------------------------------------------------------------------------

    def fall_back(self, refused: Engine, refusal: Refusal, lane: Lane, *, first: bool) -> Engine:
        """Replace an engine that the kernel refused, unless another lane has replaced it; return its successor.

        From now on, ``hashes`` can only be true if this is the ``first`` span, of which nothing was moved: `load_again`
        hashes its pieces, and `take` hashes all spans that follow. After the first span, bytes that were moved unseen
        are missing from the digest, so the sink is read back at the end. The first span is never hashed twice, because
        an engine that hashes has no successor: ``read`` is the last of each list, and of the two engines that feed a
        pipe, neither hashes.

        Raises:
            MethodRefusedError: no engine is left.
        """
        with self._turn:
            if refused is self.engine:
                successor = self._replace_engine(refused, refusal, lane)
                self.hashes = first and self.hasher is not None and successor.sees_bytes
            assert self.engine is not None
            return self.engine

    def _replace_engine(self, engine: Engine, refusal: Refusal, lane: Lane) -> Engine:
        """Take the next engine that doesn't refuse the route up front."""
        reason: Refusal | None = refusal
        while reason is not None:
            if not self._others:
                raise self._refused(engine, reason, lane)
            self.engine = engine = self._others.pop(0)
            reason = engine.refuses(self._route)
        return engine

    def _refused(self, engine: Engine, refusal: Refusal, lane: Lane) -> MethodRefusedError:
        others: list[str] = []
        # Trying engines spoils the sink, which is discarded because of this error anyway.
        with suppress(OSError, AsyncdumpError):
            others += accepting(self._route, lane)
        source = self._planned.source
        return MethodRefusedError(
            f"{engine.method} is refused for {source.path} ({source.kind}): {refusal.reason}",
            path=source.path,
            operation=engine.method,
            errno=refusal.errno,
            hint=f"use method auto, or one that works here: {', '.join(others)}" if others else "use method auto",
        )

    def failure(self, error: OSError, engine: Engine, span: Span, lane: Lane, *, storing: bool = False) -> DumpError:
        """Return the error to report for a call that failed on a span, of whichever end of the transfer it is."""
        return failure_of(error, self._route, engine, span, lane, self._stop.check, storing=storing)
