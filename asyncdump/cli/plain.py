"""The listener that prints plain lines on stderr, for logs."""

from __future__ import annotations

import sys
import time
from typing import Final

from asyncdump.cli.listener import DUMPING, Listener, Words
from asyncdump.run.events import (
    Event,
    RunFinished,
    RunStarted,
)
from asyncdump.run.tally import Tally
from asyncdump.text import text
from asyncdump.vocabulary.size import format_size

_EVERY = 2.0
"""Seconds between two plain lines."""


class Plain(Tally, Listener):
    """Prints the total on stderr every two seconds, regardless of the number of files."""

    def __init__(self, words: Words = DUMPING) -> None:
        super().__init__()
        self.words: Final = words
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
    sys.stderr.write(f"{line}\n")  # One write for the whole line: threads log to stderr, too.
