"""What a source is while it is open: where its bytes are, how they are read, whether it still is what it was.

A source that was looked at is a frozen `Source`; what is opened from it is an `OpenSource`. A new kind of source is one
module that implements this protocol, and one row in `asyncdump.sources.opening`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from asyncdump.errors import DumpError, SourceChangedError
from asyncdump.kernel.pace import Pace
from asyncdump.vocabulary.values import Source, Span


class OpenSource(Protocol):
    """A source that is open for reading; several threads may read it at once.

    Attributes:
        described: what it was when it was opened, with its identity.
        fd: a descriptor that the kernel can move bytes from or map, or None where there is none.
        pace: how much its device gives in one step, or None where nothing has to be waited for.
    """

    @property
    def described(self) -> Source: ...

    @property
    def fd(self) -> int | None: ...

    @property
    def pace(self) -> Pace | None: ...

    def spans(self, offset: int, end: int, *, shortest_hole: int = 1) -> Iterator[Span]:
        """Yield the data and the holes of ``[offset, end)`` bytes, in order and without gaps.

        Holes of less than ``shortest_hole`` bytes may be counted as data.

        Raises:
            DumpError: it isn't what it was any more.
        """

    def read(self, view: memoryview, offset: int) -> int:
        """Read into ``view`` from byte ``offset``, in one call; return how many bytes it gave, 0 at the end.

        Raises:
            OSError: an errno of `UNREADABLE` for a page that can't be read.
        """

    def ended(self, at: int, expected: int) -> DumpError:
        """Return the error that says that it ended at byte ``at``, before byte ``expected``."""

    def failure(self, error: OSError, operation: str, offset: int) -> DumpError:
        """Return the error that says that an ``operation`` failed to read it at a byte."""

    def check_end(self, end: int) -> None:
        """Raise the error of `ended` if it ends before byte ``end`` now."""

    def check_still_valid(self, end: int) -> None:
        """Raise unless it still holds what it held when it was planned, up to byte ``end``.

        Raises:
            SourceChangedError: it ends before, is another one, or has lost memory.
        """

    def close(self) -> None:
        """Give back what it holds; calls after the first do nothing."""


def truncated(path: str, found: int, expected: int) -> SourceChangedError:
    """Return the error that says a source ended before its time; both figures are bytes."""
    return SourceChangedError(
        f"{path} was truncated while it was dumped: it ends at byte {found}, {expected} were expected",
        path=path,
        operation="read",
        hint="dump it again when its owner no longer resizes it",
    )


def replaced(path: str) -> SourceChangedError:
    """Return the error that says another file is in the place of a source."""
    return SourceChangedError(
        f"{path} was replaced by another file after the run was planned",
        path=path,
        operation="open",
        hint="run again: the new file will be dumped",
    )
