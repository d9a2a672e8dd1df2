"""reflink: the sink shares the blocks of the source, if both are on the same filesystem and it can clone."""

from __future__ import annotations

import os
from typing import ClassVar

from asyncdump.engines.base import Route, Unseen
from asyncdump.kernel.lane import Lane
from asyncdump.vocabulary.values import Method, Span


class Reflink(Unseen):
    """copy_file_range(2): a clone on XFS, Btrfs and similar; a copy by the server on NFS, by the kernel on ext4."""

    method: ClassVar[Method] = "reflink"
    span: ClassVar[int] = 64 << 20

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Clone the span."""
        target = route.target(span)
        done = 0
        while done < span.length:
            copied = os.copy_file_range(
                route.fd, route.sink_fd, span.length - done, offset_src=span.offset + done, offset_dst=target + done
            )
            if copied == 0:
                raise route.origin.ended(span.offset + done, span.end)
            done += copied
        route.sink.note_copied(span.length)
        route.sink.flush_behind(target, span.length)
