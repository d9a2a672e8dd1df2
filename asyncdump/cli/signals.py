"""SIGINT, SIGTERM and SIGHUP: each command stops in its own way, with the exit code that shells expect."""

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
"""Seconds within which a second signal counts as the first one: a terminal signals the entire foreground process group,
and sudo, timeout and similar programs forward the signal once more."""


@contextmanager
def heeding(action: Callable[[Signals], None]) -> Iterator[None]:
    """Call ``action`` on one of the signals. Signals that are ignored (by nohup, or ``&`` in a script) stay ignored."""

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
    """Return the exit code by which a shell reports that signal."""
    return 128 + number


def end(number: Signals) -> None:
    """Exit immediately: there is nothing to clean up, or the user insists with a second signal."""
    last_words(f"asyncdump: stopped by {number.name}\n")
    os._exit(exit_code(number))


def ending(cancel: Callable[[str], None]) -> AbstractContextManager[None]:
    """Call ``cancel`` with the name of the first signal; exit immediately on a second one."""

    def act(number: Signals) -> None:
        since = hurried()
        if since is not None and since > _TWICE:
            end(number)
        hurry(number)
        cancel(number.name)

    return heeding(act)
