"""Our own threads, and the tasks that wait for them: no cancellation closes a descriptor that a thread still uses.

Nothing that must happen is left to a task. Any code may cancel a task, even before its first step, as a service does
when it shuts down (``for task in asyncio.all_tasks(): task.cancel()``), and the event loop may be closed while a thread
is running. Threads therefore close what they use themselves, and a task only waits until they have done so.
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
    """The running event loop, of asyncio or trio, for use by other threads.

    Attributes:
        time: returns the time of the loop in seconds, which the deadlines of anyio refer to.
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
        """Whether the loop is closed or its thread has ended, so that no task can be waiting there."""
        return self._closed() or not self._thread.is_alive()

    def call(self, function: Callable[[], object]) -> bool:
        """Schedule a function call in the loop; return False if the loop is closed."""
        try:
            self._call(function)
        except RuntimeError:  # Trio's RunFinishedError is a subclass.
            return False
        return True


def current_task() -> int | None:
    """Return the ID of the current task, or None if there is none, because a coroutine is being destroyed."""
    with suppress(Exception):  # Which exception it is depends on what is running instead of a task.
        return anyio.get_current_task().id
    return None


class Signal:
    """A one-time signal from any thread to tasks of any event loop. Neither side ever waits for a lock.

    `give` sets ``given`` before it reads the table of waiters, and `then` adds its waiter before it reads ``given``. In
    every interleaving, at least one of them sees what the other wrote, so no wake-up is lost. Both may see it, so
    functions must tolerate a second call.
    """

    def __init__(self) -> None:
        self.given = False
        self._waiting: dict[Callable[[], object], Host] = {}

    def give(self) -> None:
        """Wake all waiters, present and future."""
        self.given = True
        # The loop terminates: a waiter that comes after this point finds `given` set and isn't added.
        with suppress(KeyError):
            while True:
                function, host = self._waiting.popitem()
                host.call(function)

    def then(self, function: Callable[[], object]) -> None:
        """Call a function in the running event loop when the signal is given, or now if it has been."""
        if not self.given:
            self._waiting[function] = Host()
        if self.given:
            function()

    async def wait(self) -> None:
        """Wait until the signal is given."""
        event = anyio.Event()
        wake = event.set
        self.then(wake)
        try:
            await event.wait()
        finally:
            # `outlast` starts a new wait after each cancellation: none of them may leave a waiter behind.
            self._waiting.pop(wake, None)


def start(function: Callable[[], object]) -> threading.Thread:
    """Start a thread that inherits the context variables of this one (structlog keeps bound values there).

    Raises:
        DumpError: the system doesn't allow another thread.
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
    """Wait for a thread through any number of cancellations; call ``give_up`` on the first one.

    The thread gives ``done`` as its last action.

    Raises:
        BaseException: the last cancellation, after the thread has ended; or immediately GeneratorExit, if the task is
            destroyed and can't wait.
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
    while thread.is_alive():  # It is returning from its last call.
        await anyio.lowlevel.checkpoint()


async def _wait_on(thread: threading.Thread, done: Signal, cancelled: type[BaseException]) -> None:
    last: BaseException | None = None
    while thread.is_alive():
        try:
            await _end_of(thread, done)
        except cancelled as error:  # From asyncio's Task.cancel(), which a shielded scope doesn't keep out.
            last = error
    if last is not None:
        raise last


class _Errand(Generic[Made]):
    """One call in a thread.

    Its result belongs to the side that pops it from ``_made`` first. `deque.pop` is atomic, so a result is either
    returned or dropped, and never both.
    """

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
        # Appended before the flag is read here, and the flag set before the pop in `abandon`: one side drops it.
        if self._abandoned:
            self._drop_made()
        self.done.give()

    def abandon(self) -> None:
        """Drop the result, now or when there is one."""
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
                del error  # Its traceback refers to this frame: avoid the reference cycle.
        return self._made.pop()


async def in_thread(
    make: Callable[[], Made], drop: Callable[[Made], object] = bool, give_up: Callable[[], object] = bool
) -> Made:
    """Call ``make`` in a thread and return its result; wait for the thread even if the task is cancelled.

    If the task is cancelled, the result is passed to ``drop`` instead, and ``give_up`` is called so that ``make``
    returns soon.

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
