"""The base class of the listeners, which prints nothing, and the words for each verb."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import msgspec

from asyncdump.run.events import (
    Event,
)


class Words(msgspec.Struct, frozen=True):
    """The words for one verb: "dumping 3 files to ...", "2 of 3 files durable"."""

    doing: str
    where: str
    done: str


DUMPING: Final = Words("dumping", "to", "durable")


VERIFYING: Final = Words("verifying", "in", "verified")


RESTORING: Final = Words("restoring", "to", "restored")


class Listener:
    """Receives each event of a run; this one prints nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def tell(self, event: Event) -> None:
        """Handle an event."""

    async def ready(self) -> None:
        """Wait until the next event can be handled."""
