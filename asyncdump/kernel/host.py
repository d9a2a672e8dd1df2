"""What this process may use of the host: cores, turns at the interpreter, open files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final


def cores() -> int:
    """Return how many cores this process may use (sched_getaffinity(2)), or all cores if that call fails."""
    try:
        return len(os.sched_getaffinity(0))
    except OSError:
        return os.cpu_count() or 1


@contextmanager
def giving_way() -> Iterator[None]:
    """Let other threads run first while this thread computes: the event loop, and the other work of the host.

    A SCHED_BATCH thread never preempts a thread that wakes up, and returning to SCHED_OTHER needs no privilege
    (sched(7)).
    """
    before = None
    with suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, _NO_PRIORITY)
            before = os.SCHED_OTHER
    try:
        yield
    finally:
        if before is not None:
            with suppress(OSError):
                os.sched_setscheduler(0, before, _NO_PRIORITY)


def open_files(limit: int) -> int:
    """Return how many descriptors this process has open, all of which are below ``limit``."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # No /proc: try each of the few thousand numbers that are likely.
        return sum(_is_open(fd) for fd in range(min(limit, 4096)))


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


_NO_PRIORITY: Final = os.sched_param(0)
