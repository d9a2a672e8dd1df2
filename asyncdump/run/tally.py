"""Totals from the events of a run."""

from __future__ import annotations

import time

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


class Tally:
    """Adds up the events of a run, for any display: call `tell` with each event.

    Attributes:
        files, total: the files of the plan, and their bytes.
        finished, durable: the files that are finished or kept, and their bytes.
        failed: the files that failed.
        in_flight: the latest progress of each file that is in progress, by name.
        methods: the method of each of those files, by name.
        began: when the run started, on the clock of ``time.monotonic``.
    """

    def __init__(self) -> None:
        self.files = self.finished = self.failed = 0
        self.total = self.durable = 0
        self.began = time.monotonic()
        self.in_flight: dict[str, Progress] = {}
        self.methods: dict[str, str] = {}

    @property
    def flying(self) -> list[Progress]:
        """The progress of each file in flight: a copy, because another thread may draw the display."""
        return list(self.in_flight.values())

    @property
    def moved(self) -> int:
        """Bytes moved so far; those of files that failed don't count."""
        return self.durable + sum(progress.done for progress in self.flying)

    @property
    def rate(self) -> float:
        """Bytes per second since the run started."""
        return self.moved / max(time.monotonic() - self.began, 1e-6)

    def tell(self, event: Event) -> None:
        """Count an event."""
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
            case RunFinished():
                pass

    def _forget(self, name: str) -> None:
        self.in_flight.pop(name, None)
        self.methods.pop(name, None)
