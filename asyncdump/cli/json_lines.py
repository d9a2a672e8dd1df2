"""The listener that prints each event as a line of JSON."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

import anyio
import msgspec

from asyncdump.cli.listener import Listener
from asyncdump.cli.output import behind
from asyncdump.errors import AsyncdumpError
from asyncdump.records.record import error_record
from asyncdump.run.events import (
    Event,
)
from asyncdump.text import text

_LOOK: Final = 0.05
"""The longest pause between two checks whether a slow reader has caught up, in seconds."""


class Json(Listener):
    """Prints each event as a line of JSON on stdout.

    While the reader is behind, no event is fetched, and the mailbox keeps only the latest progress of each file.
    """

    def tell(self, event: Event) -> None:
        sys.stdout.write(f"{msgspec.json.encode(event_record(event)).decode()}\n")
        sys.stdout.flush()

    async def ready(self) -> None:
        pause = 0.001
        while behind(sys.stdout):
            await anyio.sleep(pause)
            pause = min(2 * pause, _LOOK)


def event_record(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object: ``{"event": "file_finished", "at": 0.42, ...}``."""
    kind = re.sub(r"(?<!^)([A-Z])", r"_\1", type(event).__name__).lower()
    values = msgspec.structs.asdict(event)
    return {"event": kind, **{name: _plain(value) for name, value in values.items()}}


def _plain(value: Any) -> Any:
    match value:
        case AsyncdumpError():
            return error_record(value)
        case str():
            return text(value)
        case float():
            return round(value, 6)
        case _:
            return value
