"""One file under way: from its opening to a sealed sink that only waits to be made durable.

Any number of lanes (worker threads) may work on a transfer at once. Choosing an engine, falling back to the next one
and the chunk loop stand here and nowhere else.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from typing import Concatenate, Final, ParamSpec

from asyncdump.engines import ENGINES, Engine, Refusal, Refused, Route, accepting, candidates, is_refusal
from asyncdump.errors import (
    AsyncdumpError,
    DamagedError,
    DumpError,
    FilterError,
    MethodRefusedError,
    SourceChangedError,
    describe_errno,
    explain,
    from_oserror,
)
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import close_quietly
from asyncdump.kernel.pace import Pace, pace_of
from asyncdump.sinks.file import Sink
from asyncdump.sinks.place import Place
from asyncdump.sources.file import check_kept, find_spans, reopen, truncated
from asyncdump.transfer.salvage import BadRanges, merged, read_around
from asyncdump.vocabulary.blocks import Blocks
from asyncdump.vocabulary.digest import Hasher, new_digest
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import UNREADABLE, BadRange, Checksum, Choice, OnReadError, Source, Span

P = ParamSpec("P")

_LONGEST_HOLE: Final = 64 << 20
"""Bytes of a hole that are taken in one step: hashing that many zeros takes some 3 ms, with sha256 some 40."""

_UNREADABLE_HINT: Final = (
    "a page of it can't be read: see dmesg; on_read_error: zero (--on-read-error zero) dumps the rest, with zeros there"
)


def _gives_back(step: Callable[Concatenate[Transfer, P], None]) -> Callable[Concatenate[Transfer, P], None]:
    """Have a step that fails give back at once what its transfer holds, in its own thread: others may wait for it."""

    @wraps(step)
    def giving_back(self: Transfer, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            step(self, *args, **kwargs)
        except BaseException as error:
            self._failed = True
            self.give_back(error)
            raise

    return giving_back


class Transfer:
    """One dump: `begin`, then `work` in one or more lanes, then `seal`; `abort` ends it at any point before.

    A step that fails gives back at once what the transfer holds, but for its files: those `abort` removes and closes.

    With ``on_read_error`` of ``zero``, a page that can't be read is zeros, and listed in ``bad``. ``most`` is how many
    bytes are wanted of a source that doesn't tell its size; without it they are ``length``.

    Attributes:
        length: bytes to move; of a source that doesn't tell its size this is known once `begin` has read it.
        size, inode: of the file as it is stored (in bytes), once sealed.
        moved: bytes moved so far, holes included.
        engine: what moves them, once `begin` has returned.
        digest: the digest of the file as it is stored, in hexadecimal, once sealed.
        content_digest: the digest of the bytes of the source; the same, unless they went through stages.
        blocks, content_blocks: the digests of the blocks of both.
        stage: what is being done: ``open``, ``move``, ``digest``.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        *,
        offset: int,
        length: int,
        method: Choice,
        checksum: Checksum,
        sparse: bool,
        stop: Stop,
        on_read_error: OnReadError = "fail",
        most: int | None = None,
    ) -> None:
        self.source: Final = source
        self.name: Final = name
        self.length = length
        self.moved = 0
        self.stage = "open"
        self.size = 0
        self.inode = 0
        self.engine: Engine | None = None
        self.digest: str | None = None
        self.content_digest: str | None = None
        self.blocks: Blocks | None = None
        self.content_blocks: Blocks | None = None
        self.sink: Sink | None = None
        self._offset: Final = offset
        self._choice: Final[Choice] = method
        self._checksum: Final[Checksum] = checksum
        self._sparse: Final = sparse
        self._stop: Final = stop
        self._on_read_error: Final[OnReadError] = on_read_error
        self._most: Final = most
        self._bad = BadRanges()
        self._fd: int | None = None
        self._route: Route
        self._failed = False
        self._proved = False  # Has the engine moved anything yet? Only before that may the kernel refuse it.
        self._engines: list[Engine] = []
        self._pace: Pace | None = None
        self._sink_pace: Pace | None = None
        self._spans: Iterator[Span] = iter(())
        self._hasher: Hasher | None = None
        self._hash_on_the_way = False
        self._turn = threading.Lock()  # Held while a span is taken, loaded and hashed: in the order of the file.
        self._counting = threading.Lock()

    @property
    def bad(self) -> tuple[BadRange, ...]:
        """What could not be read so far, in the order of the source: it is zeros in the sink."""
        return self._bad.told()[0]

    @property
    def bad_left_out(self) -> int:
        """The bytes that could not be read either, and are not in ``bad``, which has an end."""
        return self._bad.told()[1]

    @property
    def remaining(self) -> int:
        return self.length - self.moved

    @_gives_back
    def begin(self, folder: Place, lane: Lane) -> None:
        """Open both ends and move the first span with the first engine that the kernel accepts.

        Raises:
            MethodRefusedError: it accepts none of those that were asked for.
            AsyncdumpError: an end can't be opened, the source changed, or a call failed.
        """
        self._stop.check()
        self._fd, source = reopen(self.source)
        if not self.source.sized:
            self._measure(source.size)
        self.sink = folder.create(self.name)
        self.stage = "move"
        self._route = Route(source=source, fd=self._fd, sink=self.sink, start=self._offset, sparse=self._sparse)
        self._hasher = new_digest(self._checksum)
        self._pace = None if source.in_memory else pace_of(self._fd)  # Memory is as fast as can be.
        self._sink_pace = pace_of(self.sink.fd)
        self._engines = self._prepare(folder)
        self.engine = self._engines[0]
        if (refusal := self.engine.refuses(self._route)) is not None:
            self._fall_back(refusal, lane)
        self._hash_on_the_way = self._hasher is not None and self.engine.sees_bytes
        self._spans = self._cut_spans(self._route)
        self._step(lane)

    def _measure(self, size: int) -> None:
        """Take the length from what a source has given that didn't tell its size."""
        if self._most is not None:
            self.length = max(0, min(self._most, size - self._offset))
        if size < (needed := self._offset + self.length):
            raise truncated(self.source.path, size, needed)

    def _prepare(self, folder: Place) -> list[Engine]:
        """Get the sink ready and return the engines to try, the best first."""
        self._route.sink.resize(self.length)
        return candidates(
            self._choice,
            source=self._route.source.filesystem,
            destination=folder.filesystem,
            hashing=self._hasher is not None,
            cloning=self._on_read_error == "fail",
        )

    def _cut_spans(self, route: Route) -> Iterator[Span]:
        assert self.engine is not None
        extents = find_spans(
            route.fd,
            route.source,
            self._offset,
            self._offset + self.length,
            shortest_hole=self.engine.span if self.engine.sees_bytes else 1,
        )
        for extent in extents:
            yield from self._cut(extent)

    def _cut(self, extent: Span) -> Iterator[Span]:
        """Yield the steps in which the present engine takes an extent; it may be another one before the next step."""
        offset = extent.offset
        while offset < extent.end:
            assert self.engine is not None
            # Cut at multiples of the step: behind a hole the grains of the sink are aligned again.
            step = _LONGEST_HOLE if extent.hole and self._sparse else self._pace_of_step(self.engine.span)
            length = min(step - (offset - self._offset) % step, extent.end - offset)
            yield Span(offset=offset, length=length, hole=extent.hole)
            offset += length

    def _pace_of_step(self, span: int) -> int:
        """Return the bytes of a step: no more than both ends take in a short time."""
        for pace in (self._pace, self._sink_pace):
            span = span if pace is None else pace.step(span)
        return span

    def _fall_back(self, refusal: Refusal, lane: Lane) -> Engine:
        """Drop the present engine because of ``refusal`` and return the next one that doesn't refuse at sight."""
        reason: Refusal | None = refusal
        while reason is not None:
            last = self._engines.pop(0)
            if not self._engines:
                raise self._refused(last, reason, lane)
            self.engine = self._engines[0]
            reason = self.engine.refuses(self._route)
        return self._engines[0]

    def _refused(self, engine: Engine, refusal: Refusal, lane: Lane) -> MethodRefusedError:
        others: list[str] = []
        with suppress(OSError, AsyncdumpError):
            others += accepting(self._route, lane)
        return MethodRefusedError(
            f"{engine.method} is refused for {self.source.path} ({self.source.kind}): {refusal.reason}",
            path=self.source.path,
            operation=engine.method,
            errno=refusal.errno,
            hint=f"use method: auto, or one that works here: {', '.join(others)}" if others else "use method: auto",
        )

    @_gives_back
    def work(self, lane: Lane) -> None:
        """Move spans until none is left; several lanes may do so at once.

        Raises:
            AsyncdumpError: a call failed, the source changed, or the run was stopped. Other lanes then stop too.
        """
        while self._step(lane):
            pass

    def _step(self, lane: Lane) -> bool:
        """Move one span; return False when none is left."""
        self._stop.check()
        with self._turn:
            self._stop.check()  # Others have had their turn meanwhile, one after another.
            span = None if self._failed else next(self._spans, None)
            if span is None:
                return False
            engine = self.engine
            assert engine is not None
            data = self._load(engine, span, lane)
            rest = self._hash(span, data)
        self._hash_blocks(rest)
        if not span.hole:
            self._store(engine, span, lane, data)
        elif not self._sparse:
            self._store_zeros(span)
        self._count(span)
        return True

    def _count(self, span: Span) -> None:
        with self._counting:
            self.moved += span.length

    def _load(self, engine: Engine, span: Span, lane: Lane) -> memoryview | None:
        if span.hole:
            return None
        try:
            if self._pace is None:
                return engine.load(self._route, span, lane)
            with self._pace.timing(span.length):
                return engine.load(self._route, span, lane)
        except OSError as error:
            return self.salvage(error, engine, span, lane)

    def salvage(self, error: OSError, engine: Engine, span: Span, lane: Lane) -> memoryview:
        """Bring a span that an engine failed to load into the lane's buffer, with zeros for what can't be read of it.

        Raises:
            DumpError: that isn't asked for, ``error`` is none of a page that can't be read, or reading fails anew.
        """
        if not self._forgives(error):
            raise self._failure(error, engine, span, lane) from error
        self._check_size(span)
        view = lane.buffer.view[: span.length]
        with explain("read", self.source.path):
            bad = merged(read_around(self._route, span, view, self._stop.check))
        self._bad.add(bad)
        return view

    def _forgives(self, error: OSError) -> bool:
        return self._on_read_error == "zero" and error.errno in UNREADABLE

    def _hash(self, span: Span, data: memoryview | None) -> tuple[int, memoryview] | None:
        """Hash what comes next in the file; for whoever has the turn. What is returned is for `_hash_blocks`."""
        if self._hasher is None or not self._hash_on_the_way:
            return None
        if data is not None:
            return self._hasher.take(data)
        self._hasher.zeros(span.length)
        return None

    def _hash_blocks(self, rest: tuple[int, memoryview] | None) -> None:
        """Take the digests of whole blocks: without the turn, for no block needs another to be hashed before it."""
        if rest is not None:
            assert self._hasher is not None
            self._hasher.put(*rest)

    def _store(self, engine: Engine, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Write one span; what is refused goes to the next engine, as long as that loses nothing."""
        try:
            engine.store(self._route, span, lane, data)
        except Refused as refused:
            refusal = refused.refusal
        except OSError as error:
            if self._forgives(error) and not engine.sees_bytes:
                self._store_around(error, span, lane)
                return
            if self._proved or not is_refusal(engine.method, error):
                raise self._failure(error, engine, span, lane, storing=True) from error
            refusal = Refusal(reason=describe_errno(error.errno or 0), errno=error.errno)
        else:
            self._proved = True
            return
        first = span.offset == self._offset
        with self._turn:
            if engine is self.engine:  # Else another lane was refused too, and has chosen already.
                engine = self._fall_back(refusal, lane)
                self._hash_on_the_way = first and self._hasher is not None and engine.sees_bytes
            engine = self._engines[0]
        for piece in self._cut(span):
            with self._turn:
                data = self._load(engine, piece, lane)
                rest = self._hash(piece, data) if first else None
            self._hash_blocks(rest)
            self._store(engine, piece, lane, data)

    def _store_around(self, error: OSError, span: Span, lane: Lane) -> None:
        """Write a span that the kernel could not move by itself from the buffer: that has the sink's errors alone.

        All of it is written, whatever the engine has left there.
        """
        sink = self._route.sink
        for piece in _pieces(span, lane):
            data = self.salvage(error, ENGINES["read"], piece, lane)
            target = self._route.target(piece)
            with explain(f"write at byte {target}", sink.path):
                sink.write_cached(data, target)
                sink.flush_behind(target, piece.length)

    def _store_zeros(self, span: Span) -> None:
        sink = self._route.sink
        with explain("write", sink.path):
            sink.write_zeros(self._route.target(span), span.length)

    def _failure(self, error: OSError, engine: Engine, span: Span, lane: Lane, *, storing: bool = False) -> DumpError:
        """Return the error to show for a call that failed on a span: often it's the source that changed."""
        try:
            self._check_size(span)
        except (SourceChangedError, DamagedError) as changed:
            return changed
        if storing and engine.sees_bytes:
            failure = self._failure_of_sink(error, engine, span)
        elif error.errno in UNREADABLE:
            failure = self._failure_to_read(error, engine, span, lane, storing=storing)
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            failure = self._failure_of_sink(error, engine, span)
        else:
            failure = from_oserror(error, f"{engine.method} at byte {span.offset}", self.source.path)
        failure.operation = engine.method
        return failure

    def _failure_of_sink(self, error: OSError, engine: Engine, span: Span) -> DumpError:
        what = "write" if engine.sees_bytes else engine.method  # To read was not what failed.
        return from_oserror(error, f"{what} at byte {self._route.target(span)}", self._route.sink.path)

    def _failure_to_read(self, error: OSError, engine: Engine, span: Span, lane: Lane, *, storing: bool) -> DumpError:
        """Find the page that can't be read; if there is none, an EIO of a call that also wrote is the sink's."""
        bad: BadRange | None = None
        with suppress(OSError, DumpError):
            bad = next(self._look_for_bad(span, lane), None)
        if bad is None and storing and error.errno == errno.EIO:
            return self._failure_of_sink(error, engine, span)
        offset = span.offset if bad is None else bad.offset
        reason = error if bad is None else OSError(bad.errno, os.strerror(bad.errno))
        failure = from_oserror(reason, f"{engine.method} at byte {offset}", self.source.path)
        failure.hint = _UNREADABLE_HINT
        return failure

    def _look_for_bad(self, span: Span, lane: Lane) -> Iterator[BadRange]:
        for piece in _pieces(span, lane):
            yield from read_around(self._route, piece, lane.buffer.view, self._stop.check)

    def _check_size(self, span: Span) -> None:
        """Raise `SourceChangedError` where the source ends before a span does."""
        size = os.fstat(self._route.fd).st_size
        if size < span.end and self._route.source.filesystem != "block device":
            raise truncated(self.source.path, size, span.end)

    def _check_kept(self) -> None:
        """Raise `SourceChangedError` unless the source still holds what it held when it was planned."""
        planned = self.source if self.source.sized else self._route.source
        check_kept(self._route.fd, planned, self._offset + self.length)

    @_gives_back
    def seal(self, lane: Lane) -> None:
        """Check that the source still holds what was moved, take the digest if it wasn't taken on the way, close it.

        Raises:
            SourceChangedError: the source has shrunk meanwhile, or lost memory: what was moved last may be zeros.
            DumpError: the sink can't be read back.
        """
        assert self.sink is not None
        self._check_kept()
        self._finish(lane)
        self.sink.close_direct()
        self.size, self.inode = self.sink.status()
        self._close_source()

    def _finish(self, lane: Lane) -> None:
        """Take the digests, with whatever has to be written before."""
        if self._hasher is None:
            return
        if not self._hash_on_the_way:
            self.stage = "digest"
            self._route.sink.read_back(self.length, self._hasher, lane, self._stop.check)
        self._note_content(self._hasher)
        self._note_stored(self._hasher)

    def _note_content(self, hasher: Hasher | None) -> None:
        if hasher is not None:
            self.content_digest, self.content_blocks = hasher.hexdigest(), hasher.blocks()

    def _note_stored(self, hasher: Hasher | None) -> None:
        if hasher is not None:
            self.digest, self.blocks = hasher.hexdigest(), hasher.blocks()

    def give_back(self, error: BaseException | None = None) -> None:
        """Give back what others may be waiting for, with ``error`` if a step has failed; called more than once.

        Raises:
            FilterError: something of it can't be had back.
        """

    def abort(self) -> None:
        """Remove what was written and close both ends."""
        with suppress(FilterError):  # Told when it failed.
            self.give_back()
        self._close_source()
        if self.sink is not None:
            self.sink.abort()

    def _close_source(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            close_quietly(fd)


def _pieces(span: Span, lane: Lane) -> Iterator[Span]:
    """Yield a span in pieces that the lane's buffer holds."""
    step = len(lane.buffer.view)
    for offset in range(span.offset, span.end, step):
        yield Span(offset=offset, length=min(step, span.end - offset))
