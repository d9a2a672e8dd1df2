"""Which of the two ends of a transfer a failed call is about: an engine may read and write in the same call."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from asyncdump.engines import Engine, Route
from asyncdump.errors import DamagedError, DumpError, SourceChangedError, from_oserror
from asyncdump.kernel.lane import Lane
from asyncdump.transfer.salvage import pieces, read_around
from asyncdump.vocabulary.values import UNREADABLE, BadRange, Span

_OF_SINK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""The errnos that only a write has."""


def failure_of(
    error: OSError, route: Route, engine: Engine, span: Span, lane: Lane, check: Callable[[], None], *, storing: bool
) -> DumpError:
    """Return the error to report for a call that failed on a span: often, the reason is that the source changed.

    Args:
        error: what the call raised.
        route, engine, span, lane: what was moved, by which engine; the lane's buffer is overwritten.
        check: called before each read of the search for the reason; it may raise to end that.
        storing: whether the engine was to write the span, rather than to load it.
    """
    # First the source: a truncation explains any errno, in particular EFAULT.
    try:
        route.origin.check_end(span.end)
    except (SourceChangedError, DamagedError) as changed:
        return changed
    # An engine that sees the bytes reads and writes in different calls, so that the call shows which side failed.
    if (storing and engine.sees_bytes) or error.errno in _OF_SINK:
        return _of_sink(error, route, engine, span)
    if error.errno not in UNREADABLE:
        return route.origin.failure(error, engine.method, span.offset)
    bad = _first_bad(route, span, lane, check)
    if bad is not None:
        return route.origin.failure(OSError(bad.errno, ""), engine.method, bad.offset)
    if storing and error.errno == errno.EIO:  # All of the source can be read.
        return _of_sink(error, route, engine, span)
    return route.origin.failure(error, engine.method, span.offset)


def _of_sink(error: OSError, route: Route, engine: Engine, span: Span) -> DumpError:
    what = "write" if engine.sees_bytes else engine.method  # Not "read": reading didn't fail.
    failure = from_oserror(error, f"{what} at byte {route.target(span)}", route.sink.path)
    failure.operation = engine.method
    return failure


def _first_bad(route: Route, span: Span, lane: Lane, check: Callable[[], None]) -> BadRange | None:
    """Return the first page of a span that can't be read, or None if all of them can."""
    with suppress(OSError, DumpError):
        for piece in pieces(span, lane):
            for bad in read_around(route.origin, piece, lane.buffer.view, check):
                return bad
    return None
