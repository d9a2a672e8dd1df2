"""A run, concurrent with the block of code that watches it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio

from asyncdump.log import logger
from asyncdump.run.events import Event
from asyncdump.run.run import Run
from asyncdump.run.threads import Host, current_task, in_thread

GRACE: Final = 10.0
"""Seconds that a handler has for an event once the run has ended, and only the handler keeps it from returning."""


Handler = Callable[[Event], None] | Callable[[Event], Awaitable[None]]
"""Called with each event. A plain function runs in the event loop, so it must not block."""


@asynccontextmanager
async def running(run: Run) -> AsyncIterator[None]:
    """Run concurrently with the block. After the block, the run has ended, regardless of exceptions and cancellations.

    An exception of the block cancels the run and propagates unwrapped.
    """
    task = current_task()
    run.start()
    try:
        yield
    except BaseException as error:
        run.cancel()
        # A task that is being destroyed can't wait: the threads of the run end and clean up on their own.
        if not run.forked and (not isinstance(error, GeneratorExit) or current_task() == task):
            with suppress(Exception, anyio.get_cancelled_exc_class()):  # The error of the block takes precedence.
                await run.wait()
        raise
    await run.wait()


async def listen(run: Run, handler: Handler) -> None:
    """Call a handler with each event of a run; once the run has ended, it has `GRACE` for each event that is left."""
    now = Host().time

    def hurry() -> None:
        scope.deadline = now() + GRACE

    with anyio.CancelScope() as scope:
        run.ended.then(hurry)
        try:
            async for event in run:
                if run.ended.given:
                    hurry()
                answer = handler(event)
                if inspect.isawaitable(answer):
                    await answer
        except BaseException as error:
            if not _is_the_handlers(error):
                raise
            failure = error
            await in_thread(lambda: logger().error("listener_failed", exc_info=failure))
    if scope.cancelled_caught:
        await in_thread(lambda: logger().error("listener_stuck", seconds=GRACE))


def _is_the_handlers(error: BaseException) -> bool:
    """Return whether an error is the handler's own: a cancellation is, too, if no one has cancelled this task."""
    if isinstance(error, Exception):
        return True
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # Trio has no asyncio task.
        return True
    return task is None or not task.cancelling()
