"""What happens in a run, as frozen values, and the mailbox in which they wait for a listener.

The events of one file come in a promised order: `FileStarted`, any number of `Progress` and `FileRetried`, then exactly
one of `FileFinished` and `FileFailed`. A file that fails before it was opened only has the last. What an earlier run
has dumped has `Progress` while it is verified, and then `FileKept`, or all that any other has.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, Self

import anyio.lowlevel
import msgspec

from asyncdump.engines import Method
from asyncdump.errors import AsyncdumpError
from asyncdump.run.threads import Signal


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened, ``at`` seconds after the run began."""

    at: float


class RunStarted(Event, frozen=True, kw_only=True):
    """The plan stands and the first file is about to be opened."""

    output: str
    files: int
    bytes: int
    concurrency: int


class FileStarted(Event, frozen=True, kw_only=True):
    """A file is being moved, by ``method``."""

    name: str
    source: str
    kind: str
    bytes: int
    method: Method


class Progress(Event, frozen=True, kw_only=True):
    """``done`` of ``total`` bytes of a file are moved; a listener that is behind is told the latest only.

    ``stage`` is ``verify`` while an earlier dump is compared with its record, ``move``, ``digest`` while the dump is
    read back, or ``sync`` while it is made durable.
    """

    name: str
    done: int
    total: int
    stage: str


class FileFinished(Event, frozen=True, kw_only=True):
    """A dump is whole, durable and has its name.

    ``bytes`` is its size, ``stored`` what of it was written (the rest is holes), ``seconds`` the time from its opening
    to its name. ``digest`` is that of the file as stored, ``xxh128:...`` and the like, or None without a checksum;
    ``content_digest`` is that of the bytes of the source, another one where they were compressed. ``bad_bytes`` of the
    source could not be read, and are zeros in the dump.
    """

    name: str
    source: str
    bytes: int
    stored: int
    seconds: float
    method: Method
    digest: str | None
    content_digest: str | None = None
    bad_bytes: int = 0


class FileKept(Event, frozen=True, kw_only=True):
    """An earlier run has dumped this file, and what it wrote was found whole: nothing else happens to it."""

    name: str
    source: str
    bytes: int
    digest: str | None


class FileRetried(Event, frozen=True, kw_only=True):
    """A dump failed for a reason that may pass: ``attempt`` 1, 2 and so on begins in ``delay`` seconds or later."""

    name: str
    error: AsyncdumpError
    attempt: int
    delay: float


class FileFailed(Event, frozen=True, kw_only=True):
    """A dump failed or was given up in ``stage``: nothing is left of it."""

    name: str
    source: str
    error: AsyncdumpError
    stage: str


class RunFinished(Event, frozen=True, kw_only=True):
    """All is done, the receipt too. ``interrupted`` says what ended the run early, or is None."""

    files: int
    failed: int
    bytes: int
    seconds: float
    interrupted: str | None


class Mailbox:
    """Events on their way to one listener, which may be as slow as it likes.

    `put` is called by threads, one at a time. Progress and retries are conflated to the latest of each file, the other
    events are kept: two a file and two a run at the most.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._progress: dict[str, Progress] = {}
        self._retried: dict[str, FileRetried] = {}
        self._news = Signal()
        self._closed = False
        self._listener: Listener | None = None
        self._waiting = False
        self._turn = threading.Lock()  # Held for moments, and never waited for by the event loop.

    def put(self, event: Event) -> None:
        """Add an event; never waits for the listener."""
        with self._turn:
            if isinstance(event, Progress):
                self._progress[event.name] = event
            else:
                self._keep(event)
            news, self._news = self._news, Signal()
        news.give()

    def _keep(self, event: Event) -> None:
        if isinstance(event, FileFinished | FileKept | FileFailed | FileRetried):
            self._progress.pop(event.name, None)
        if not isinstance(event, FileRetried):
            self._events.append(event)
            return
        if event.name not in self._retried:
            self._events.append(event)  # Keeps the place of the latest.
        self._retried[event.name] = event

    def close(self) -> None:
        """Say that no more events will come."""
        with self._turn:
            self._closed = True
            news = self._news
        news.give()

    def __aiter__(self) -> Listener:
        return Listener(self)

    def claim(self, listener: Listener, *, again: bool) -> None:
        """Have a listener be the one. It takes over from one that was left, not from one that waits.

        Raises:
            RuntimeError: another waits, or has taken over: each would be told a part of what happens.
        """
        if listener is not self._listener and (again or self._waiting) and not (self._closed and not self._events):
            raise RuntimeError("another listener iterates over this run: each event is told once")
        self._listener = listener

    async def next(self) -> Event | None:
        """Return what is to be told next, or None at the end."""
        while True:
            while not self._turn.acquire(blocking=False):
                await anyio.lowlevel.checkpoint()
            try:
                if self._events:
                    event = self._events.popleft()
                    return self._retried.pop(event.name) if isinstance(event, FileRetried) else event
                if self._progress:
                    return self._progress.pop(next(iter(self._progress)))
                if self._closed:
                    return None
                news = self._news
            finally:
                self._turn.release()
            self._waiting = True
            try:
                await news.wait()
            finally:
                self._waiting = False


class Listener:
    """One iteration over the events of a run."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox: Final = mailbox
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        self._mailbox.claim(self, again=self._begun)
        self._begun = True
        event = await self._mailbox.next()
        if event is None:
            raise StopAsyncIteration
        return event
