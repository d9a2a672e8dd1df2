"""Threads of our own, and the tasks that wait for them: whoever cancels a task, what its thread uses stays open.

Nothing that has to happen is left to a task. Somebody else may cancel it, before its first step too (as a service does
that ends: ``for task in asyncio.all_tasks(): task.cancel()``), and its event loop may be closed while a thread is at
work. So threads close what they use themselves, and a task only waits until they have.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Final, Generic, TypeVar

import anyio.lowlevel

from asyncdump.errors import DumpError

Made = TypeVar("Made")


class Host:
    """The event loop that runs here, asyncio's or trio's, as other threads see it.

    Attributes:
        time: its clock, in seconds, by which deadlines of anyio go.
    """

    time: Callable[[], float]

    def __init__(self) -> None:
        import asyncio

        self._thread: Final = threading.current_thread()
        self._call: Callable[[Callable[[], object]], object]
        self._closed: Callable[[], bool]
        if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
            loop = asyncio.get_running_loop()
            self._call, self._closed, self.time = loop.call_soon_threadsafe, loop.is_closed, loop.time
        else:
            import trio

            self._call = trio.lowlevel.current_trio_token().run_sync_soon
            self._closed = lambda: not self.call(bool)
            self.time = trio.current_time

    @property
    def gone(self) -> bool:
        """Whether the loop is closed, or its thread has ended: nobody waits there any more."""
        return self._closed() or not self._thread.is_alive()

    def call(self, function: Callable[[], object]) -> bool:
        """Have a function called in the loop, soon; return False where it is closed."""
        try:
            self._call(function)
        except RuntimeError:  # trio's RunFinishedError is one too.
            return False
        return True


def current_task() -> int | None:
    """Return what tells the task that runs here from others, or None where none does: it is being destroyed."""
    with suppress(Exception):  # Which one it is depends on what runs here instead of a task.
        return anyio.get_current_task().id
    return None


class Signal:
    """Given once, by any thread; tasks of any loop wait for it. Neither side ever waits for a lock.

    ``given`` is written before the list is read, and the list before ``given`` is read: one of the two sides sees.
    """

    def __init__(self) -> None:
        self.given = False
        self._waiting: dict[Callable[[], object], Host] = {}

    def give(self) -> None:
        """Wake whoever waits, now and later."""
        self.given = True
        # It ends: whoever comes from here on finds it given, and isn't listed.
        with suppress(KeyError):
            while True:
                function, host = self._waiting.popitem()
                host.call(function)

    def then(self, function: Callable[[], object]) -> None:
        """Have a function called in the event loop that runs here once it is given, or now."""
        if not self.given:
            self._waiting[function] = Host()
        if self.given:
            function()

    async def wait(self) -> None:
        """Wait until it is given."""
        event = anyio.Event()
        wake = event.set
        self.then(wake)
        try:
            await event.wait()
        finally:
            # Cancelled again and again, the wait begins anew each time: none of them leaves anything.
            self._waiting.pop(wake, None)


def start(function: Callable[[], object]) -> threading.Thread:
    """Start a thread, with the context variables of this one (loggers keep theirs there).

    Raises:
        DumpError: the system allows no more threads.
    """
    thread = threading.Thread(target=copy_context().run, args=(function,), name="asyncdump")
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise DumpError(
            f"no thread can be started: {error}",
            operation="clone",
            errno=errno.EAGAIN,
            hint="raise the limit of processes (ulimit -u, or pids.max of the control group)",
        ) from error
    return thread


async def outlast(thread: threading.Thread, done: Signal, give_up: Callable[[], object]) -> None:
    """Wait for a thread through any number of cancellations; ``give_up`` is called at the first of them.

    ``done`` is what the thread gives as the last that it does.

    Raises:
        BaseException: the last cancellation, once the thread has ended; GeneratorExit at once, where the task is
            destroyed and nothing can be waited for.
    """
    cancelled = anyio.get_cancelled_exc_class()
    try:
        await _end_of(thread, done)
    except cancelled:
        give_up()
        with anyio.CancelScope(shield=True):
            await _wait_on(thread, done, cancelled)
        raise
    except BaseException:
        give_up()
        raise


async def _end_of(thread: threading.Thread, done: Signal) -> None:
    await done.wait()
    while thread.is_alive():  # It returns from its last call now.
        await anyio.lowlevel.checkpoint()


async def _wait_on(thread: threading.Thread, done: Signal, cancelled: type[BaseException]) -> None:
    last: BaseException | None = None
    while thread.is_alive():
        try:
            await _end_of(thread, done)
        except cancelled as error:  # asyncio's own, which no scope keeps out.
            last = error
    if last is not None:
        raise last


class _Errand(Generic[Made]):
    """One call in a thread. What it makes belongs to whoever takes it out of ``_made`` first, which only one can."""

    def __init__(self, make: Callable[[], Made], drop: Callable[[Made], object]) -> None:
        self.done: Final = Signal()
        self._make = make
        self._drop = drop
        self._made: deque[Made] = deque()
        self._error: BaseException | None = None
        self._abandoned = False

    def run(self) -> None:
        try:
            self._made.append(self._make())
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            self._error = error
        if self._abandoned:
            self._drop_made()
        self.done.give()

    def abandon(self) -> None:
        """Have what is made, or will be, dropped."""
        self._abandoned = True
        self._drop_made()

    def _drop_made(self) -> None:
        with suppress(IndexError):
            self._drop(self._made.pop())

    def take(self) -> Made:
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # It holds this frame, by its traceback.
        return self._made.pop()


async def in_thread(
    make: Callable[[], Made], drop: Callable[[Made], object] = bool, give_up: Callable[[], object] = bool
) -> Made:
    """Return what ``make`` returns, called in a thread that is waited for, whoever cancels the task meanwhile.

    A task that is cancelled gets nothing: what was made is given to ``drop``. ``give_up`` is to have ``make`` end soon.

    Raises:
        DumpError: no thread can be started.
    """
    errand = _Errand(make, drop)
    thread = start(errand.run)

    def abandon() -> None:
        errand.abandon()
        give_up()

    await outlast(thread, errand.done, abandon)
    return errand.take()
