"""direct: a mapping of the source is written with O_DIRECT. The disk reads the pages, and nothing is copied."""

from __future__ import annotations

import errno
from typing import ClassVar

from asyncdump.engines.base import HOLES, Refusal, Route, Unseen, mapped
from asyncdump.kernel.lane import Lane
from asyncdump.sinks.file import ALIGNMENT
from asyncdump.vocabulary.values import Method, Span


class Direct(Unseen):
    """mmap(2), and pwrite(2) to an O_DIRECT descriptor: zero-copy from huge pages."""

    method: ClassVar[Method] = "direct"
    span: ClassVar[int] = 8 << 20

    def refuses(self, route: Route) -> Refusal | None:
        """Refuse a destination without O_DIRECT, a start that isn't aligned, and huge pages with holes."""
        if route.sink.direct is None:
            return Refusal(reason="the destination does not support O_DIRECT", errno=errno.EINVAL)
        if route.start % ALIGNMENT:
            return Refusal(reason=f"the offset is not a multiple of {ALIGNMENT} bytes", errno=errno.EINVAL)
        if route.source.in_huge_pages and route.source.has_holes:
            return HOLES
        return super().refuses(route)

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Write the mapping. Only the first span may be refused; later ones go through the page cache instead."""
        with mapped(route, span) as view:
            target = route.target(span)
            # Called directly while nothing is stored, so that an unsupported O_DIRECT raises and is a refusal.
            done = route.sink.write_direct(view, target) if route.sink.stored == 0 else 0
            with view[done:] as rest:
                route.sink.write(rest, target + done)
            route.sink.note_written(done)
