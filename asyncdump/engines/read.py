"""read: each block is read once into a buffer, hashed and searched for zeros there, and written from there."""

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
    """Reads with the source's own read (pread(2) for a file) into an aligned buffer, and writes with O_DIRECT.

    The hashed bytes are the written bytes.
    """

    method: ClassVar[Method] = "read"
    span: ClassVar[int] = BUFFER
    sees_bytes: ClassVar[bool] = True

    def refuses(self, route: Route) -> Refusal | None:
        """Never refuse: any source that can be opened can be read."""
        return None

    def load(self, route: Route, span: Span, lane: Lane) -> memoryview:
        """Read the span. A hole in it reads as zeros, and no page is allocated, as it would be through a mapping."""
        return fill(route, span, lane)

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Write the data that isn't zero. Many small pieces go through the page cache, which takes them faster."""
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
    """Read a span into the lane's buffer, except for the first ``done`` bytes, which are there; return all of it."""
    view = lane.buffer.view[: span.length]
    while done < span.length:
        got = route.origin.read(view[done:], span.offset + done)
        if got == 0:
            raise route.origin.ended(span.offset + done, span.end)
        done += got
    return view


def data_runs(buffer: Buffer, length: int, grain: int) -> Iterator[tuple[int, int]]:
    """Yield the ``(start, stop)`` of non-zero data in the first ``length`` bytes, in multiples of ``grain``.

    The last grain may be shorter.
    """
    view = buffer.view
    begin = 0
    if grain == SMALL_PAGE and 0 not in bytes(view[:length:grain]):
        # Comparing one byte of each page in a single operation saves 512 calls per buffer for random data.
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
