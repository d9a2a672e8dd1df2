"""The flag that ends a run."""

from __future__ import annotations

from asyncdump.errors import (
    InterruptedDumpError,
)


class Stop:
    """A flag that ends a run: set from any thread, looked at before each step."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Have the run end at its next look."""
        self.requested = True

    def check(self) -> None:
        """Raise `InterruptedDumpError` when the run is to end."""
        if self.requested:
            raise InterruptedDumpError("interrupted before it was whole", operation="move")
