"""SIGINT, SIGTERM and SIGHUP: each command ends in its own way, and with the exit code that shells expect."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from signal import Signals
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    """End the process at once: where this is called there is nothing to put in order."""
    with suppress(OSError):
        os.write(2, f"asyncdump: ended by {number.name}\n".encode())
    os._exit(exit_code(number))
