"""The protocol of an engine: a way to move one span from a source into a sink, in a worker thread."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar, Final, Protocol

import msgspec

from asyncdump.kernel.lane import Lane
from asyncdump.sinks.place import Sink
from asyncdump.sources.source import OpenSource
from asyncdump.vocabulary.values import Method, Source, Span


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """An open source and the sink that it is moved into.

    Attributes:
        origin: the open source.
        start: the offset in the source that becomes byte 0 of the sink.
        sparse: whether zeros that the engine sees become holes of the sink.
    """

    origin: OpenSource
    sink: Sink
    start: int = 0
    sparse: bool = True

    @property
    def source(self) -> Source:
        """The source, as it was when it was opened."""
        return self.origin.described

    @property
    def fd(self) -> int:
        """The descriptor of the source.

        Raises:
            Refused: the source has none, and can only be read.
        """
        if (fd := self.origin.fd) is None:
            raise Refused(NO_DESCRIPTOR)
        return fd

    def target(self, span: Span) -> int:
        """Return the offset of a span in the sink, in bytes."""
        return span.offset - self.start

    @property
    def sink_fd(self) -> int:
        """The descriptor of the sink, for engines that refuse sinks without one."""
        assert self.sink.fd is not None
        return self.sink.fd


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an engine can't serve a route. No bytes were moved.

    Attributes:
        errno: the errno of the call, or None if the engine itself refuses.
    """

    reason: str
    errno: int | None = None


NO_DESCRIPTOR: Final = Refusal(reason="the source has no descriptor: its bytes can only be read")


class Refused(Exception):  # noqa: N818 (a message between engine and transfer, never shown to users)
    """Carries a `Refusal` out of a call."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class Engine(Protocol):
    """A way to move bytes. Engines have no state: everything that a thread needs is in its lane.

    Attributes:
        method: its name in manifests and reports.
        span: the maximum length of a span, in bytes. A run can be stopped between two spans; on a slow disk, they are
            shorter.
        sees_bytes: whether the bytes pass through user space, where they can be hashed and searched for zeros.
    """

    method: ClassVar[Method]
    span: ClassVar[int]
    sees_bytes: ClassVar[bool]

    def refuses(self, route: Route) -> Refusal | None:
        """Return why this can't work, as far as that is known without a call; the first call decides."""

    def load(self, route: Route, span: Span, lane: Lane) -> memoryview | None:
        """Read the span into the lane's buffer and return it; return None if bytes don't pass through user space.

        The spans of a file are loaded one after another and in order, so that they can be hashed.
        """

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Write the span to the sink. Several threads may store different spans of a file at the same time.

        Raises:
            OSError: with an errno of `REFUSALS` in the first call, if the kernel doesn't support this here.
            Refused: nothing of this span was moved, and another engine may try.
            DumpError: the source ended early.
        """


NO_WAY_IN: Final = Refusal(reason="the destination has no descriptor for the kernel to write to")


class Unseen:
    """The base class of engines that leave the bytes to the kernel."""

    sees_bytes: ClassVar[bool] = False

    def refuses(self, route: Route) -> Refusal | None:
        """Refuse a sink without a descriptor: it would dereference a mapping of the source, which may be a SIGBUS."""
        return NO_WAY_IN if route.sink.fd is None else None

    def load(self, route: Route, span: Span, lane: Lane) -> None:
        """Do nothing: only the kernel sees the bytes."""


HOLES: Final = Refusal(reason="the source has holes, and mapping them would take huge pages from the host's pool")


@contextmanager
def mapped(route: Route, span: Span) -> Iterator[memoryview]:
    """Map a span of the source (mmap(2)). Only the kernel may dereference the mapping.

    A mapping starts and ends at a page boundary of the source, which on hugetlbfs is that of a huge page.

    Raises:
        Refused: the source can't be mapped, or has got holes since it was opened.
        SourceChangedError: the file ends before the span does, or has lost memory.
    """
    fd, source, page = route.fd, route.source, route.source.page
    if source.in_huge_pages:
        if has_holes(fd):
            raise Refused(HOLES)
    elif source.in_memory:  # Reading the mapping would allocate lost pages again as zeros, and hide the loss.
        route.origin.check_still_valid(span.end)
    start = span.offset - span.offset % page
    length = min(-(-span.end // page) * page, max(source.size, span.end)) - start
    try:
        mapping = mmap.mmap(fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=start)
    except ValueError as error:  # Python itself compares the range with the size of the file.
        raise route.origin.ended(os.fstat(fd).st_size, span.end) from error
    view = memoryview(mapping)[span.offset - start : span.end - start]
    try:
        yield view
    finally:
        view.release()
        # After an error, its traceback still refers to slices of the view: the mapping is freed with the traceback.
        with suppress(BufferError):
            mapping.close()


def has_holes(fd: int) -> bool:
    """Return whether less memory is allocated for a file than its size (stat(2))."""
    status = os.fstat(fd)
    return status.st_blocks * 512 < status.st_size
