"""The verbs for scripts: each one blocks until it is done, in its own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial, update_wrapper
from typing import Any, Final, ParamSpec, TypeVar

import anyio

from asyncdump.dumping import dump_all
from asyncdump.restoring import restore_all
from asyncdump.verifying import verify_all

_Parameters = ParamSpec("_Parameters")
_Outcome = TypeVar("_Outcome")


def _loop_is_running() -> bool:
    """Return whether an event loop is running in this thread, of asyncio or trio."""
    for ask in (asyncio.get_running_loop, anyio.get_cancelled_exc_class):
        with suppress(RuntimeError):
            ask()
            return True
    return False


def _blocking(name: str, verb: Callable[_Parameters, Coroutine[Any, Any, _Outcome]]) -> Callable[_Parameters, _Outcome]:
    """Return a blocking version of a verb."""

    def function(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Outcome:
        if _loop_is_running():
            raise RuntimeError(f"{name} would block the event loop of this thread: await {verb.__name__} instead")
        return anyio.run(partial(verb, *args, **kwargs), backend_options={"use_uvloop": True})

    update_wrapper(function, verb)
    function.__name__ = function.__qualname__ = name
    function.__module__ = __name__
    function.__doc__ = f"""Do what `{verb.__name__}` does, with the same arguments, and block until that is done.

    For scripts, and for threads of a program. Handlers are called in an event loop (uvloop) that lasts as long as the
    call. Ctrl-C in the main thread cancels the run, and raises `KeyboardInterrupt` when that has ended cleanly.

    Raises:
        RuntimeError: an event loop runs in this thread.
    """
    return function


dump_sync: Final = _blocking("dump_sync", dump_all)
verify_sync: Final = _blocking("verify_sync", verify_all)
restore_sync: Final = _blocking("restore_sync", restore_all)
