"""What an engine is: a way of moving one span of one source into one sink, in a worker thread."""

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
    """From one open source into one sink.

    Attributes:
        origin: the open source.
        start: the byte of the source that becomes byte 0 of the sink.
        sparse: leave zeros out of the sink where the engine sees them.
    """

    origin: OpenSource
    sink: Sink
    start: int = 0
    sparse: bool = True

    @property
    def source(self) -> Source:
        """What the source was when it was opened."""
        return self.origin.described

    @property
    def fd(self) -> int:
        """The descriptor of the source.

        Raises:
            Refused: it has none: its bytes can only be read.
        """
        if (fd := self.origin.fd) is None:
            raise Refused(NO_DESCRIPTOR)
        return fd

    def target(self, span: Span) -> int:
        """Return the offset in the sink, in bytes, of a span of the source."""
        return span.offset - self.start

    @property
    def sink_fd(self) -> int:
        """The descriptor of the sink, for engines that refuse a route whose sink has none."""
        assert self.sink.fd is not None
        return self.sink.fd


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why an engine can't serve a route. No bytes were moved.

    Attributes:
        errno: the kernel's answer, or None where the engine itself declines.
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
    """A way of moving bytes. Engines have no state: whatever a thread needs is in its lane.

    Attributes:
        method: its name in manifests and reports.
        span: the most bytes of one step. A run can be cancelled between two steps: on a slow disk they are fewer.
        sees_bytes: whether bytes pass through user space: there a digest can be taken, zeros found, a short hole read.
    """

    method: ClassVar[Method]
    span: ClassVar[int]
    sees_bytes: ClassVar[bool]

    def refuses(self, route: Route) -> Refusal | None:
        """Say why this can't work, as far as that's known without a call; the truth comes from the first one."""

    def load(self, route: Route, span: Span, lane: Lane) -> memoryview | None:
        """Bring the span into the lane's buffer and return it, or None where bytes don't pass through user space.

        Spans of a file are loaded one after another, in their order: a digest can be taken here.
        """

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        """Write the span to the sink. Different spans of a file may be stored at once.

        Raises:
            OSError: with an errno of `REFUSALS` in the first call, if the kernel doesn't do this here.
            Refused: nothing of this span was moved, another engine may.
            DumpError: the source ended early.
        """


NO_WAY_IN: Final = Refusal(reason="the destination has no descriptor for the kernel to write to")


class Unseen:
    """What engines have in common that leave the bytes to the kernel."""

    sees_bytes: ClassVar[bool] = False

    def refuses(self, route: Route) -> Refusal | None:
        """Refuse a sink without a descriptor: it could only look at a mapping of the source, and die of it (SIGBUS)."""
        return NO_WAY_IN if route.sink.fd is None else None

    def load(self, route: Route, span: Span, lane: Lane) -> None:
        """Nothing: only the kernel sees the bytes."""


HOLES: Final = Refusal(reason="the source has holes: mapping them would take huge pages from the host's pool")


@contextmanager
def mapped(route: Route, span: Span) -> Iterator[memoryview]:
    """Map a span of the source, for the kernel alone to read (mmap(2)).

    A mapping must start and end on a page of the source, which on hugetlbfs is a huge one.

    Raises:
        Refused: the source can't be mapped, or has got holes since it was opened.
        SourceChangedError: the file ends before the span does, or has lost memory.
    """
    fd, source, page = route.fd, route.source, route.source.page
    if source.in_huge_pages:
        if has_holes(fd):
            raise Refused(HOLES)
    elif source.in_memory:  # What is lost is allocated anew, as zeros, where it is mapped: nothing shows it at the end.
        route.origin.check_still_valid(span.end)
    start = span.offset - span.offset % page
    length = min(-(-span.end // page) * page, max(source.size, span.end)) - start
    try:
        mapping = mmap.mmap(fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=start)
    except ValueError as error:  # Python compares with the file's size before the kernel does.
        raise route.origin.ended(os.fstat(fd).st_size, span.end) from error
    view = memoryview(mapping)[span.offset - start : span.end - start]
    try:
        yield view
    finally:
        view.release()
        # After an error its traceback still holds slices of the view: the mapping goes when the traceback does.
        with suppress(BufferError):
            mapping.close()


def has_holes(fd: int) -> bool:
    """Tell whether a file holds less memory than its size says (stat(2))."""
    status = os.fstat(fd)
    return status.st_blocks * 512 < status.st_size
