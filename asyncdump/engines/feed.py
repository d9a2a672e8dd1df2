"""How bytes get to a stage: read into a buffer, or through a pipe that the kernel fills with splice(2)."""

from __future__ import annotations

import os
from typing import ClassVar

from asyncdump.engines.base import HOLES, Refused, Route, has_holes
from asyncdump.engines.read import Read
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import map_for_kernel, some, unmap, vmsplice
from asyncdump.vocabulary.values import Method, Source, Span


class FeedBySplice(Read):
    """splice(2) into the lane's pipe, vmsplice(2) of a mapping on hugetlbfs; the buffer is filled from the pipe."""

    method: ClassVar[Method] = "splice"

    def load(self, route: Route, span: Span, lane: Lane) -> memoryview:
        """Load the span, as much at a time as the pipe holds."""
        view = lane.buffer.view[: span.length]
        reading, writing = lane.pipe
        done = 0
        try:
            while done < span.length:
                wanted = min(span.length - done, lane.pipe_size)
                filled = fill_pipe(route, span.offset + done, wanted, writing)
                if filled == 0:
                    raise route.origin.ended(span.offset + done, span.end)
                end = done + filled
                while done < end:
                    done += some(os.readv(reading, [view[done:end]]))
        except BaseException:
            lane.drop_pipe()  # Bytes that are left in it must not go into the next file.
            raise
        return view


def fill_pipe(route: Route, offset: int, count: int, pipe: int, flags: int = 0) -> int:
    """Splice up to ``count`` bytes of the source into a pipe and return how many bytes it took.

    Raises:
        Refused: a mapping would take huge pages from the pool of the host.
        OSError: EINVAL if the kernel doesn't splice from this kind of file; BlockingIOError for a full pipe, if
            ``flags`` is SPLICE_F_NONBLOCK.
    """
    fd, source = route.fd, route.source
    if not source.in_huge_pages:
        return os.splice(fd, pipe, count, offset_src=offset, flags=flags)
    # vmsplice(2) of a page past the end of the file fails with EFAULT. The size shows that it was truncated.
    if os.fstat(fd).st_size < offset + count:
        return 0
    return vmsplice_from(source, fd, offset, count, pipe, flags)


def vmsplice_from(source: Source, fd: int, offset: int, count: int, pipe: int, flags: int = 0) -> int:
    """Map a range of a source and pass its pages to a pipe; the reader sees what they contain when it reads them.

    Raises:
        Refused: the mapping would take huge pages from the pool of the host.
        OSError: see vmsplice(2).
    """
    if source.in_huge_pages and has_holes(fd):
        raise Refused(HOLES)
    begin = offset - offset % source.page
    length = -(-(offset + count) // source.page) * source.page - begin
    address = map_for_kernel(fd, length, begin)
    try:
        return vmsplice(pipe, address + offset - begin, count, flags)
    finally:
        unmap(address, length)
