"""read: each block is read once into a buffer of ours, looked at there, and written from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from asyncdump.engines.base import Refusal, Route
from asyncdump.kernel.lane import BUFFER, Buffer, Lane
from asyncdump.kernel.linux import is_zero
from asyncdump.vocabulary.values import SMALL_PAGE, Method, Span

_HUGE_GRAIN: Final = 2 << 20
_MOST_PIECES: Final = 8


class Read:
    """The source's own read, pread(2) of a file, into an aligned buffer; O_DIRECT out. It hashes what it writes."""

    method: ClassVar[Method] = "read"
    span: ClassVar[int] = BUFFER
    sees_bytes: ClassVar[bool] = True

    def refuses(self, route: Route) -> Refusal | None:
        """Never: what can be opened can be read."""
        return None

    def load(self, route: Route, span: Span, lane: Lane) -> memoryview:
        """Read the span; a hole in it reads as zeros and gains no page (unlike one that is mapped)."""
        return fill(route, span, lane)

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Write what isn't zero; in many small pieces the page cache takes it sooner than the disk would."""
        assert data is not None
        target = route.target(span)
        if not route.sparse:
            route.sink.write(data, target)
            return
        grain = _HUGE_GRAIN if route.source.in_huge_pages else route.sink.grain
        pieces = list(data_runs(lane.buffer, span.length, grain))
        for start, stop in pieces:
            if len(pieces) > _MOST_PIECES:
                route.sink.write_cached(data[start:stop], target + start)
            else:
                route.sink.write(data[start:stop], target + start)
        if len(pieces) > _MOST_PIECES:
            route.sink.flush_behind(target, span.length)


def fill(route: Route, span: Span, lane: Lane, done: int = 0) -> memoryview:
    """Read what of a span is not ``done``, in bytes, into the lane's buffer, and return all of it."""
    view = lane.buffer.view[: span.length]
    while done < span.length:
        got = route.origin.read(view[done:], span.offset + done)
        if got == 0:
            raise route.origin.ended(span.offset + done, span.end)
        done += got
    return view


def data_runs(buffer: Buffer, length: int, grain: int) -> Iterator[tuple[int, int]]:
    """Yield the ``(start, stop)`` of what isn't zero in the first ``length`` bytes, in whole grains.

    Bytes after the last whole word count as data, unless everything before them is zero and they are too.
    """
    view = buffer.view
    begin = 0
    if grain == SMALL_PAGE and 0 not in bytes(view[:length:grain]):
        # One byte of each page, looked at in one go, spares random data 512 calls a buffer.
        yield 0, length
        return
    for start in range(0, length, grain):
        stop = min(start + grain, length)
        if view[start] == 0 and _zero(buffer, start, stop):
            if begin < start:
                yield begin, start
            begin = stop
    if begin < length:
        yield begin, length


def _zero(buffer: Buffer, start: int, stop: int) -> bool:
    words = (stop - start) & ~7
    return (words == 0 or is_zero(buffer.address + start, words)) and not any(buffer.view[start + words : stop])
