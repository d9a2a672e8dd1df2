"""The I/O size for each device: a system call to a disk can't be interrupted, so slow disks get short calls."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FIRST: Final = 64 << 10
"""I/O size for a device of unknown speed, in bytes: eight threads start with one such call each."""

_LEAST: Final = 16 << 10
_MOST: Final = 1 << 30
_SHORT: Final = 0.025
_WANTED: Final = 0.05
_LONG: Final = 0.15
_TRIALS: Final = 8


class Pace:
    """How many bytes one device moves in about 50 ms, as far as is known.

    The I/O size grows while calls are short. After a long call it shrinks, unless shorter calls turn out to take just
    as long: if each call waits for a remote server, smaller calls would only be more calls.
    """

    def __init__(self, first: int = FIRST) -> None:
        self._most = first
        self._least = _LEAST
        self._turn = threading.Lock()
        self._before = (0, 0.0)  # The length and the seconds of the first call that took too long.
        self._trials = 0
        self._best = 0.0

    def step(self, wanted: int) -> int:
        """Return how many of the ``wanted`` bytes to move in one call: a power of two, or all of them."""
        return min(wanted, self._most)

    @contextmanager
    def timing(self, length: int) -> Iterator[None]:
        """Measure the block, which moves ``length`` bytes in one call."""
        began = time.perf_counter()
        yield
        self.took(length, time.perf_counter() - began)

    def took(self, length: int, seconds: float) -> None:
        """Note that a call which moved ``length`` bytes took ``seconds``."""
        # The usual case, decided without the lock: a stale `_most` only delays a change by one call.
        if seconds < _SHORT and length < self._most:
            return  # A short call below the limit says nothing about longer ones.
        with self._turn:
            if self._trials:
                self._try(length, seconds)
            if seconds < _SHORT and length >= self._most:
                self._most = min(4 * self._most, _MOST)
            elif seconds > _LONG and self._least < length <= self._most:
                if not self._trials:
                    # A tail may have any length, but the I/O size must stay a power of two for O_DIRECT.
                    whole = max(self._least, 1 << length.bit_length() - 1)
                    self._before, self._trials, self._best = (whole, seconds), _TRIALS, seconds
                wanted = max(int(length * _WANTED / seconds), 1)
                self._most = max(self._least, min(length, 1 << wanted.bit_length() - 1))

    def _try(self, length: int, seconds: float) -> None:
        """Check whether shorter calls take less time: the best of some trials, because other threads use the device."""
        if length > self._most:
            return  # It was started before the size was reduced.
        self._trials -= 1
        self._best = min(self._best, seconds)
        before, long = self._before
        if not self._trials and self._best > long / 2:
            self._most = self._least = before


UNLIMITED: Final = Pace(_MOST)
"""The pace of everything that isn't on a device: the I/O size isn't limited."""

_paces: Final[dict[int, Pace]] = {}


def pace_of(fd: int) -> Pace:
    """Return the pace of the device that a file is on (stat(2)), shared by all threads that use the device.

    For anything but a regular file or a block device, the I/O size isn't limited.
    """
    try:
        status = os.fstat(fd)
    except OSError:
        return Pace(_MOST)
    if stat.S_ISBLK(status.st_mode):
        return _paces.setdefault(status.st_rdev, Pace())
    return _paces.setdefault(status.st_dev, Pace()) if stat.S_ISREG(status.st_mode) else Pace(_MOST)
