"""A count of what the events of a run say."""

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
    RunStarted,
)


class Tally:
    """Counts what the events tell, apart from any drawing."""

    def __init__(self) -> None:
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

    def _forget(self, name: str) -> None:
        self.in_flight.pop(name, None)
        self.methods.pop(name, None)
