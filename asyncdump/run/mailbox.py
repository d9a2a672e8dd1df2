"""The mailbox in which events wait for a listener."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import Final, Self

import anyio.lowlevel

from asyncdump.run.events import Event, FileFailed, FileFinished, FileKept, FileRetried, Progress
from asyncdump.run.threads import Signal


class Mailbox:
    """A queue of events for one listener, which may be arbitrarily slow.

    Threads call `put`, one at a time. Progress and retries are conflated to the latest of each file; the other events
    are kept: at most two for a file and two for the run.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._progress: dict[str, Progress] = {}
        self._retried: dict[str, FileRetried] = {}
        self._news = Signal()
        self._closed = False
        self._listener: weakref.ref[Listener] | None = None
        self._turn = threading.Lock()  # Held for moments; the event loop never waits for it.

    def put(self, event: Event) -> None:
        """Add an event, without waiting for the listener."""
        with self._turn:
            if isinstance(event, Progress):
                self._progress[event.name] = event
            else:
                self._keep(event)
            # A listener takes the signal under the turn, after it has found nothing: it can't miss an event.
            news, self._news = self._news, Signal()
        news.give()

    def _keep(self, event: Event) -> None:
        if isinstance(event, FileFinished | FileKept | FileFailed | FileRetried):
            self._progress.pop(event.name, None)
        if not isinstance(event, FileRetried):
            self._events.append(event)
            return
        if event.name not in self._retried:
            self._events.append(event)  # Only its position counts: `next` returns the latest retry in its place.
        self._retried[event.name] = event

    def close(self) -> None:
        """Note that no more events will come."""
        with self._turn:
            self._closed = True
            news = self._news
        news.give()

    def __aiter__(self) -> Listener:
        listener = Listener(self)
        self.claim(listener)
        return listener

    def claim(self, listener: Listener) -> None:
        """Make an iteration the one that gets events, if no other does.

        An iteration ends when ``async for`` drops it, or when waiting for an event is cancelled: another can continue.

        Raises:
            RuntimeError: there is one already. Each event is given once: two listeners would get a part of them each.
        """
        listening = None if self._listener is None else self._listener()
        if listening not in {None, listener} and not (self._closed and not self._events):
            raise RuntimeError("this run already has a listener: each event is delivered once, to one task")
        self._listener = weakref.ref(listener)

    def release(self) -> None:
        """Let another iteration continue."""
        self._listener = None

    async def next(self) -> Event | None:
        """Return the next event, or None at the end."""
        while True:
            # A blocking acquire would block the event loop; threads hold the turn only for moments.
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
            await news.wait()


class Listener:
    """One iteration over the events of a run."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox: Final = mailbox

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        self._mailbox.claim(self)
        try:
            event = await self._mailbox.next()
        except BaseException:  # Its traceback may keep this iteration alive.
            self._mailbox.release()
            raise
        if event is None:
            raise StopAsyncIteration
        return event
