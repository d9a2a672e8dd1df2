"""zstd frames, each compressed in one go: the cores are shared by all files, and memory keeps to a budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from asyncdump.kernel.lane import BUFFER, Buffer, Lane
from asyncdump.kernel.linux import cores, giving_way, is_zero

if TYPE_CHECKING:
    import zstandard

BUDGET: Final = 256 << 20
"""Bytes that compression may take at once: contexts, frames and what they became."""

LEVELS: Final = (-100, 22)
FRAMES: Final = (4 << 10, 128 << 20)
WINDOWS: Final = (10, 27)
"""The logarithms of window sizes that every reader of zstd opens without being told to (``zstd --long``)."""


class ZstdOptions(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a file is compressed.

    Attributes:
        level: from -100 (fastest) to 22 (smallest).
        threads: how many threads work on one file at most; 0 for as many as there are.
        frame: the bytes of content in each frame: the grain of parallel work, and of reading back.
        checksum: whether each frame holds the low 32 bits of the XXH64 of its content.
        long: the logarithm of the window for matches far away (``zstd --long``), or None.
    """

    level: int = 3
    threads: int = 0
    frame: int = BUFFER
    checksum: bool = True
    long: int | None = None

    def __str__(self) -> str:
        return f"zstd:{self.level}"

    @property
    def cost(self) -> int:
        """The bytes that one thread needs to compress: its context, a frame, and the frame compressed."""
        return _cost(self)


@lru_cache
def _cost(options: ZstdOptions) -> int:
    # Not asked with a long window: there the library divides by zero. A buffer takes a huge page at least.
    context = _parameters(msgspec.structs.replace(options, long=None)).estimated_compression_context_size()
    far = (1 << min(options.long, options.frame.bit_length())) // 8 if options.long else 0
    return int(context) + far + max(options.frame, BUFFER) + options.frame + options.frame // 128


def _parameters(options: ZstdOptions) -> zstandard.ZstdCompressionParameters:
    import zstandard

    far = {"enable_ldm": True, "window_log": options.long} if options.long else {}
    return zstandard.ZstdCompressionParameters.from_level(
        options.level, source_size=options.frame, write_checksum=options.checksum, write_content_size=True, **far
    )


class Press:
    """The right to compress frames of one kind, and to a context for that; a buffer where a lane's own doesn't do."""

    def __init__(self, options: ZstdOptions) -> None:
        self.options: Final = options

    @cached_property
    def buffer(self) -> Buffer:
        return Buffer(self.options.frame)


class Compressors:
    """The compressors of one run, used by any thread: as many at work as there are cores, within `BUDGET`.

    Whoever waits calls ``check`` each time it has waited a moment, which may raise.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check
        self._cores = threading.BoundedSemaphore(cores())
        # The costs of the presses that are lent and of those that are idle never exceed the budget together; of each
        # kind there are never more contexts than presses. Contexts go from press to press: as many as are at work at
        # once stay in the caches of the cores.
        self._budget = threading.Condition()
        self._lent = 0
        self._idle: list[Press] = []
        self._contexts: dict[ZstdOptions, list[zstandard.ZstdCompressor]] = {}
        self._zeros: dict[tuple[ZstdOptions, int], bytes] = {}

    @contextmanager
    def room(self, options: ZstdOptions, lane: Lane) -> Iterator[Press]:
        """Wait until the budget has room for one more frame; the lane's buffer holds one within the block."""
        with self.press(options) as press:
            if options.frame <= BUFFER:
                yield press
                return
            with lane.borrowing(press.buffer):
                yield press

    @contextmanager
    def press(self, options: ZstdOptions) -> Iterator[Press]:
        """Wait until the budget has room for one more frame, and lend what is needed for it.

        A thread that has one must not wait for another: what it holds may be what others wait for.
        """
        press = self._borrow(options)
        try:
            yield press
        finally:
            with self._budget:
                self._lent -= options.cost
                self._idle.append(press)
                self._budget.notify_all()

    def _borrow(self, options: ZstdOptions) -> Press:
        cost = options.cost
        with self._budget:
            # One that is alone is let in whatever it costs: a manifest that asks for too much was refused before.
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

    def _drop(self, kind: ZstdOptions) -> None:
        """Drop the contexts that a press of some kind leaves behind, those used last first kept."""
        left = sum(kept.options == kind for kept in self._idle)
        contexts = self._contexts.get(kind, [])
        del contexts[: max(0, len(contexts) - left)]

    def compress(self, press: Press, data: memoryview) -> bytes:
        """Return one frame of ``data``; other threads go on meanwhile, the interpreter's lock is not held."""
        while not self._cores.acquire(timeout=_PATIENCE):
            self._check()
        try:
            context = self._context(press.options)
            with giving_way():
                frame = context.compress(data)
            with self._budget:
                self._contexts.setdefault(press.options, []).append(context)
            return frame
        finally:
            self._cores.release()

    def _context(self, kind: ZstdOptions) -> zstandard.ZstdCompressor:
        import zstandard

        with self._budget:
            if kept := self._contexts.get(kind):
                return kept.pop()
        return zstandard.ZstdCompressor(compression_params=_parameters(kind))

    def frame(self, press: Press, buffer: Buffer, length: int) -> bytes:
        """Return the frame of the first ``length`` bytes of a buffer."""
        words = length & ~7
        if words and is_zero(buffer.address, words) and not any(buffer.view[words:length]):
            return self.zeros(press, length)
        return self.compress(press, buffer.view[:length])

    def zeros(self, press: Press, length: int) -> bytes:
        """Return the frame of ``length`` zeros, compressed but once."""
        key = (press.options, length)
        if (frame := self._zeros.get(key)) is None:
            frame = self.compress(press, memoryview(bytes(length)))
            if len(self._zeros) < _MOST_ZEROS:
                self._zeros[key] = frame
        return frame


_MOST_ZEROS: Final = 64

_PATIENCE: Final = 0.05
"""Seconds after which a thread that waits looks whether the run goes on."""
