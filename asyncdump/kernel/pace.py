"""How much of a file is moved in one step: nothing ends a system call on a disk, so that a slow one gets short ones."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

FIRST: Final = 64 << 10
"""Bytes of the first step to a device that nothing is known of: eight threads begin with one each."""

_LEAST: Final = 16 << 10
_MOST: Final = 1 << 30
_SHORT: Final = 0.025
_WANTED: Final = 0.05
_LONG: Final = 0.15
_TRIALS: Final = 8


class Pace:
    """What one device has taken in some 50 ms, as far as that is known.

    Steps grow while they are short. One that was long makes the next ones shorter, unless that makes none of them so:
    where each call waits for a distant server, smaller ones would only be more of them.
    """

    def __init__(self, first: int = FIRST) -> None:
        self._most = first
        self._least = _LEAST
        self._turn = threading.Lock()
        self._before = (0, 0.0)  # The length of the first step that was too long, and its seconds.
        self._trials = 0
        self._best = 0.0

    def step(self, wanted: int) -> int:
        """Return how many bytes to move at once, of those that are ``wanted``: a power of two, or all of them."""
        return min(wanted, self._most)

    @contextmanager
    def timing(self, length: int) -> Iterator[None]:
        """Learn from a step of ``length`` bytes in the block."""
        began = time.perf_counter()
        yield
        self.took(length, time.perf_counter() - began)

    def took(self, length: int, seconds: float) -> None:
        """Learn from a step that took so many seconds."""
        if seconds < _SHORT and length < self._most:
            return  # The usual case: it says nothing of longer ones.
        with self._turn:
            if self._trials:
                self._try(length, seconds)
            if seconds < _SHORT and length >= self._most:
                self._most = min(4 * self._most, _MOST)
            elif seconds > _LONG and self._least < length <= self._most:
                if not self._trials:
                    # A tail may have any length, but a step stays a power of two: O_DIRECT takes no other.
                    whole = max(self._least, 1 << length.bit_length() - 1)
                    self._before, self._trials, self._best = (whole, seconds), _TRIALS, seconds
                wanted = max(int(length * _WANTED / seconds), 1)
                self._most = max(self._least, min(length, 1 << wanted.bit_length() - 1))

    def _try(self, length: int, seconds: float) -> None:
        """See whether shorter steps are over sooner: the best of some, for others may be at work beside them."""
        if length > self._most:
            return  # Begun before.
        self._trials -= 1
        self._best = min(self._best, seconds)
        before, long = self._before
        if not self._trials and self._best > long / 2:
            self._most = self._least = before


UNLIMITED: Final = Pace(_MOST)
"""The pace of what has no device: steps are as long as they are wanted."""

_paces: Final[dict[int, Pace]] = {}


def pace_of(fd: int) -> Pace:
    """Return the pace of the device that a file is on (stat(2)), which all share that move bytes to or from it.

    What is neither a file nor a block device has none: steps there are as long as they are wanted.
    """
    try:
        status = os.fstat(fd)
    except OSError:
        return Pace(_MOST)
    if stat.S_ISBLK(status.st_mode):
        return _paces.setdefault(status.st_rdev, Pace())
    return _paces.setdefault(status.st_dev, Pace()) if stat.S_ISREG(status.st_mode) else Pace(_MOST)
