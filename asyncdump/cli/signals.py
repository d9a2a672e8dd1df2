"""SIGINT, SIGTERM and SIGHUP: each command ends in its own way, and with the exit code that shells expect."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from signal import Signals
from typing import Any, Final

from asyncdump.cli.output import hurried, hurry, last_words

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TWICE: Final = 0.2
"""Seconds within which a second signal is the first one again: sudo, timeout and the like pass on what a terminal has
sent to all of us."""


@contextmanager
def heeding(action: Callable[[Signals], None]) -> Iterator[None]:
    """Call ``action`` when one of them comes. One that is ignored, as nohup and a script's ``&`` have it, stays so."""

    def heed(number: int, _frame: Any) -> None:
        action(Signals(number))

    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, heed) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(number: Signals) -> int:
    """Return what a shell takes for the end by that signal."""
    return 128 + number


def end(number: Signals) -> None:
    """End the process at once: where this is called there is nothing to put in order, or a second signal says so."""
    last_words(f"asyncdump: ended by {number.name}\n")
    os._exit(exit_code(number))


def ending(cancel: Callable[[str], None]) -> AbstractContextManager[None]:
    """Have the first signal call ``cancel`` with its name, and a second one end the process at once."""

    def act(number: Signals) -> None:
        since = hurried()
        if since is not None and since > _TWICE:
            end(number)
        hurry(number)
        cancel(number.name)

    return heeding(act)
