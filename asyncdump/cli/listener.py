"""A listener that says nothing, which the others derive from, and the words for what is being done."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import msgspec

from asyncdump.run.events import (
    Event,
)


class Words(msgspec.Struct, frozen=True):
    """What is being done, and what has become of what is done."""

    doing: str
    where: str
    done: str


DUMPING: Final = Words("dumping", "to", "durable")


VERIFYING: Final = Words("verifying", "in", "proved")


RESTORING: Final = Words("restoring", "to", "restored")


class Listener:
    """Hears each event of a run; this one says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def tell(self, event: Event) -> None:
        """Take note of an event."""

    async def ready(self) -> None:
        """Wait until there is a use in the next one."""
