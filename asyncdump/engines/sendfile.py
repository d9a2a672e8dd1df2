"""sendfile: the kernel moves the pages of the source into the sink's page cache."""

from __future__ import annotations

import os
from typing import ClassVar

from asyncdump.engines.base import Refusal, Refused, Route, Unseen
from asyncdump.kernel.lane import Lane
from asyncdump.vocabulary.values import Method, Span


class Sendfile(Unseen):
    """sendfile(2). Refused on hugetlbfs since Linux 5.10 (since commit 36e2c7421f02, it needs a ``splice_read``)."""

    method: ClassVar[Method] = "sendfile"
    span: ClassVar[int] = 16 << 20

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Send the span through a separate descriptor, because sendfile(2) writes at the file offset of its target."""
        target = route.target(span)
        try:
            out = route.sink.open_again()
        except FileNotFoundError as error:
            raise Refused(Refusal(reason="it needs /proc, which isn't mounted", errno=error.errno)) from error
        try:
            os.lseek(out, target, os.SEEK_SET)
            done = 0
            while done < span.length:
                sent = os.sendfile(out, route.fd, span.offset + done, span.length - done)
                if sent == 0:
                    raise route.origin.ended(span.offset + done, span.end)
                done += sent
        finally:
            os.close(out)
        route.sink.note_copied(span.length)
        route.sink.flush_behind(target, span.length)
