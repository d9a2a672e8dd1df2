"""The mailbox in which events wait for a listener."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, Self

import anyio.lowlevel

from asyncdump.run.events import Event, FileFailed, FileFinished, FileKept, FileRetried, Progress
from asyncdump.run.threads import Signal


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
