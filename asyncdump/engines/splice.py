"""splice: pages of the source go through a pipe into the sink."""

from __future__ import annotations

import os
from typing import ClassVar

from asyncdump.engines.base import Route, Unseen
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import some
from asyncdump.vocabulary.values import Method, Span


class Splice(Unseen):
    """splice(2) through the lane's pipe of the maximum size. Refused on hugetlbfs, like sendfile."""

    method: ClassVar[Method] = "splice"
    span: ClassVar[int] = 16 << 20

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Alternate between filling the pipe and emptying it into the sink."""
        target = route.target(span)
        try:
            self._move(route, span, lane, target)
        except BaseException:
            lane.drop_pipe()  # Bytes that are left in it must not go into the next file.
            raise
        route.sink.note_copied(span.length)
        route.sink.flush_behind(target, span.length)

    def _move(self, route: Route, span: Span, lane: Lane, target: int) -> None:
        reading, writing = lane.pipe
        done = 0
        while done < span.length:
            wanted = min(span.length - done, lane.pipe_size)
            filled = os.splice(route.fd, writing, wanted, offset_src=span.offset + done)
            if filled == 0:
                raise route.origin.ended(span.offset + done, span.end)
            end = done + filled
            while done < end:
                done += some(os.splice(reading, route.sink_fd, end - done, offset_dst=target + done))
