"""The flag that stops a run."""

from __future__ import annotations

from asyncdump.errors import (
    InterruptedDumpError,
)


class Stop:
    """A flag that stops a run: set from any thread, checked before each read or write.

    It is a plain attribute, so that a signal handler may set it and checking it costs no lock.
    """

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Stop the run at its next check."""
        self.requested = True

    def check(self) -> None:
        """Raise `InterruptedDumpError` if the run is to stop."""
        if self.requested:
            raise InterruptedDumpError("interrupted before it was complete", operation="move")
