"""How a run is told while it lasts: a bar, plain lines, JSON, or not at all."""

from __future__ import annotations

import os
import re
import sys
import time
from types import TracebackType
from typing import Any, Final, Self

import anyio
import msgspec

from asyncdump.cli.output import behind
from asyncdump.errors import AsyncdumpError
from asyncdump.records.record import error_record
from asyncdump.run.events import (
    Event,
    FileFailed,
    FileFinished,
    FileKept,
    FileRetried,
    FileStarted,
    Progress,
    RunFinished,
    RunStarted,
)
from asyncdump.text import text
from asyncdump.vocabulary.size import format_size

_EVERY = 2.0
"""Seconds between two plain lines."""

_LOOK: Final = 0.05
"""Seconds after which it is looked whether a slow reader takes more."""


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


class Words(msgspec.Struct, frozen=True):
    """What is being done, and what has become of what is done."""

    doing: str
    where: str
    done: str


DUMPING: Final = Words("dumping", "to", "durable")
VERIFYING: Final = Words("verifying", "in", "proved")
RESTORING: Final = Words("restoring", "to", "restored")


def new_listener(progress: str, words: Words = DUMPING) -> Listener:
    """Return the listener of that name; ``auto`` is a bar on a terminal and plain lines elsewhere."""
    if progress == "auto":
        progress = "bar" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"
    match progress:
        case "bar":
            from asyncdump.cli.bar import Bar

            return Bar(words)
        case "plain":
            return Plain(words)
        case "json":
            return Json()
        case _:
            return Listener()


class Tally(Listener):
    """Counts what the events tell, apart from any drawing."""

    def __init__(self, words: Words = DUMPING) -> None:
        self.words: Final = words
        self.files = self.finished = self.failed = 0
        self.total = self.durable = 0
        self.began = time.monotonic()
        self.in_flight: dict[str, Progress] = {}
        self.methods: dict[str, str] = {}

    @property
    def flying(self) -> list[Progress]:
        """How far the files in flight are: a copy, for a bar is drawn by another thread than the one that is told."""
        return list(self.in_flight.values())

    @property
    def moved(self) -> int:
        """Bytes moved, those of files that failed meanwhile not counted."""
        return self.durable + sum(progress.done for progress in self.flying)

    @property
    def rate(self) -> float:
        """Bytes a second since the run began."""
        return self.moved / max(time.monotonic() - self.began, 1e-6)

    def tell(self, event: Event) -> None:
        match event:
            case RunStarted():
                self.files, self.total, self.began = event.files, event.bytes, time.monotonic()
            case FileStarted():
                self.methods[event.name] = event.method
            case Progress():
                self.in_flight[event.name] = event
            case FileFinished() | FileKept():
                self.finished += 1
                self.durable += event.bytes
                self._forget(event.name)
            case FileRetried():
                self._forget(event.name)
            case FileFailed():
                self.failed += 1
                self._forget(event.name)

    def _forget(self, name: str) -> None:
        self.in_flight.pop(name, None)
        self.methods.pop(name, None)


class Plain(Tally):
    """A line on stderr every two seconds, for logs: the total only, whatever the number of files."""

    def __init__(self, words: Words = DUMPING) -> None:
        super().__init__(words)
        self._next = time.monotonic() + _EVERY

    def tell(self, event: Event) -> None:
        super().tell(event)
        if isinstance(event, RunStarted):
            files = "file" if event.files == 1 else "files"
            _say(
                f"{self.words.doing} {event.files} {files}, {format_size(event.bytes)}, "
                f"{self.words.where} {text(event.output)}"
            )
        elif time.monotonic() >= self._next and not isinstance(event, RunFinished):
            self._next = time.monotonic() + _EVERY
            _say(self._line())

    def _line(self) -> str:
        share = 100 * self.moved // max(self.total, 1)
        left = (self.total - self.moved) / self.rate if self.rate else 0
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{share:3d} %  {format_size(self.moved)} of {format_size(self.total)} moved, "
            f"{format_size(self.durable)} {self.words.done}, {self.finished} of {self.files} files{failed}, "
            f"{format_size(self.rate)}/s, {left:.0f} s left"
        )


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # In one piece: what threads log is written there too.


class Json(Listener):
    """Each event as a line of JSON on stdout; meanwhile the mailbox keeps the latest progress of each file alone."""

    def tell(self, event: Event) -> None:
        sys.stdout.write(f"{msgspec.json.encode(event_record(event)).decode()}\n")
        sys.stdout.flush()

    async def ready(self) -> None:
        pause = 0.001
        while behind(sys.stdout):
            await anyio.sleep(pause)
            pause = min(2 * pause, _LOOK)


def event_record(event: Event) -> dict[str, Any]:
    """Return an event as JSON can hold it: ``{"event": "file_finished", "at": 0.42, ...}``."""
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
