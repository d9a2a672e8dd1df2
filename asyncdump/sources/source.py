"""The protocol of an open source: where its bytes are, how they are read, and whether it has changed.

A planned source is a frozen `Source`. Opening it yields an `OpenSource`. A new kind of source is one module that
implements this protocol, and one row in `asyncdump.sources.opening`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from asyncdump.errors import DumpError, SourceChangedError
from asyncdump.kernel.pace import Pace
from asyncdump.vocabulary.values import Source, Span


class OpenSource(Protocol):
    """A source that is open for reading. Several threads may read it at the same time.

    Attributes:
        described: the source as it was when it was opened.
        fd: a descriptor that the kernel can map or move bytes from, or None if there is none.
        pace: the I/O size for its device, or None if the source is in memory.
    """

    @property
    def described(self) -> Source: ...

    @property
    def fd(self) -> int | None: ...

    @property
    def pace(self) -> Pace | None: ...

    def spans(self, offset: int, end: int, *, shortest_hole: int = 1) -> Iterator[Span]:
        """Yield the data and the holes of ``[offset, end)`` bytes, in order and without gaps.

        Holes of less than ``shortest_hole`` bytes may count as data.

        Raises:
            DumpError: the source has changed.
        """

    def read(self, view: memoryview, offset: int) -> int:
        """Read into ``view`` from byte ``offset`` in one call; return how many bytes were read, 0 at the end.

        Raises:
            OSError: with an errno of `UNREADABLE` for an unreadable page.
        """

    def ended(self, at: int, expected: int) -> DumpError:
        """Return the error for a source that ends at byte ``at`` instead of byte ``expected``."""

    def failure(self, error: OSError, operation: str, offset: int) -> DumpError:
        """Return the error for an ``operation`` that failed to read the source at byte ``offset``."""

    def check_end(self, end: int) -> None:
        """Raise the error of `ended` if the source now ends before byte ``end``."""

    def check_still_valid(self, end: int) -> None:
        """Check that the source still has what it had when it was planned, up to byte ``end``.

        Raises:
            SourceChangedError: it is shorter, was replaced, or has lost memory.
        """

    def close(self) -> None:
        """Release its resources; further calls do nothing."""


def truncated(path: str, found: int, expected: int) -> SourceChangedError:
    """Return the error for a source that ends at byte ``found`` instead of byte ``expected``."""
    return SourceChangedError(
        f"{path} was truncated while it was dumped: it ends at byte {found} instead of byte {expected}",
        path=path,
        operation="read",
        hint="dump it again when its owner has stopped resizing it",
    )


def replaced(path: str) -> SourceChangedError:
    """Return the error for a source that was replaced by another file."""
    return SourceChangedError(
        f"{path} was replaced by a different file after the run was planned",
        path=path,
        operation="open",
        hint="run again: the new file will be dumped",
    )
