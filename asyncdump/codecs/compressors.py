"""The compressors of a run: one call compresses a frame, all files share the cores, and memory has a budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Final

from asyncdump.codecs.codec import BUDGET, Compression, Compressor
from asyncdump.kernel.host import cores, giving_way
from asyncdump.kernel.lane import BUFFER, Buffer, Lane
from asyncdump.kernel.linux import is_zero

_MOST_ZEROS: Final = 64
"""The maximum number of frames of zeros that are kept, by length. A file has at most two lengths."""

_PATIENCE: Final = 0.05
"""Seconds after which a waiting thread checks whether the run continues."""


class Press:
    """Permission to compress frames with some settings, and a buffer for frames that exceed the buffer of a lane."""

    def __init__(self, options: Compression) -> None:
        self.options: Final = options

    @cached_property
    def buffer(self) -> Buffer:
        return Buffer(self.options.frame)


class Compressors:
    """The compressors of one run, for any thread. At most one thread for each core compresses, all within `BUDGET`.

    A waiting thread calls ``check`` every `_PATIENCE` seconds, which may raise.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._cores = threading.BoundedSemaphore(cores())
        # Guarded by `_budget`. Invariants: the presses that are lent and those that are idle never cost more than
        # BUDGET together (a single one may); a kind never has more contexts than presses, so that the cost of a press
        # covers its context. Contexts are not bound to a press: the one used last is used next, and is still cached.
        self._budget = threading.Condition()
        self._lent = 0
        self._idle: list[Press] = []
        self._contexts: dict[Compression, list[Compressor]] = {}
        self._zeros: dict[tuple[Compression, int], bytes] = {}

    @contextmanager
    def room(self, options: Compression, lane: Lane) -> Iterator[Press]:
        """Wait until the budget allows one more frame, and make the buffer of the lane large enough for it."""
        with self.press(options) as press:
            if options.frame <= BUFFER:
                yield press
                return
            with lane.borrowing(press.buffer):
                yield press

    @contextmanager
    def press(self, options: Compression) -> Iterator[Press]:
        """Wait until the budget allows one more frame, and lend a press for it.

        A thread that holds a press must not wait for a second one: every other press may be held by a thread that does
        the same, and none would ever be returned.
        """
        press = self._borrow(options)
        try:
            yield press
        finally:
            with self._budget:
                self._lent -= options.cost
                self._idle.append(press)
                self._budget.notify_all()

    def _borrow(self, options: Compression) -> Press:
        cost = options.cost
        with self._budget:
            # With nothing lent, any cost is admitted: a manifest that exceeds the budget was rejected earlier.
            while self._lent and self._lent + cost > BUDGET:
                self._budget.wait(_PATIENCE)
                self._check()
            self._lent += cost
            press = next((kept for kept in reversed(self._idle) if kept.options == options), None)
            if press is not None:
                self._idle.remove(press)
            while self._idle and self._lent + sum(kept.options.cost for kept in self._idle) > BUDGET:
                self._drop(self._idle.pop(0).options)
        return press or Press(options)

    def _drop(self, kind: Compression) -> None:
        """Drop the contexts of a kind that now has one idle press less, the least recently used ones first."""
        left = sum(kept.options == kind for kept in self._idle)
        contexts = self._contexts.get(kind, [])
        del contexts[: max(0, len(contexts) - left)]

    def compress(self, press: Press, data: memoryview) -> bytes:
        """Compress ``data`` into one frame. Other threads can run meanwhile, because the GIL is released."""
        while not self._cores.acquire(timeout=_PATIENCE):
            self._check()
        try:
            context = self._context(press.options)
            with giving_way():
                frame = context(data)
            with self._budget:
                self._contexts.setdefault(press.options, []).append(context)
            return frame
        finally:
            self._cores.release()

    def _context(self, kind: Compression) -> Compressor:
        with self._budget:
            if kept := self._contexts.get(kind):
                return kept.pop()
        return kind.new_compressor()

    def frame(self, press: Press, buffer: Buffer, length: int) -> bytes:
        """Return the frame of the first ``length`` bytes of a buffer."""
        words = length & ~7
        if words and is_zero(buffer.address, words) and not any(buffer.view[words:length]):
            return self.zeros(press, length)
        return self.compress(press, buffer.view[:length])

    def zeros(self, press: Press, length: int) -> bytes:
        """Return the frame of ``length`` zeros, which is compressed only once."""
        key = (press.options, length)
        if (frame := self._zeros.get(key)) is None:
            frame = self.compress(press, memoryview(bytes(length)))
            if len(self._zeros) < _MOST_ZEROS:
                self._zeros[key] = frame
        return frame
