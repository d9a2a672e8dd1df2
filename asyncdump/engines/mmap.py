"""mmap: a mapping of the source is written through the page cache."""

from __future__ import annotations

from typing import ClassVar

from asyncdump.engines.base import HOLES, Refusal, Route, Unseen, mapped
from asyncdump.kernel.lane import Lane
from asyncdump.vocabulary.values import Method, Span


class Mmap(Unseen):
    """mmap(2) and pwrite(2): one copy, for destinations without O_DIRECT."""

    method: ClassVar[Method] = "mmap"
    span: ClassVar[int] = 8 << 20

    def refuses(self, route: Route) -> Refusal | None:
        """Refuse huge pages with holes, and a sink without a descriptor."""
        if route.source.in_huge_pages and route.source.has_holes:
            return HOLES
        return super().refuses(route)

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Write the mapping, and start write-back."""
        target = route.target(span)
        with mapped(route, span) as view:
            route.sink.write_cached(view, target)
        route.sink.flush_behind(target, span.length)
