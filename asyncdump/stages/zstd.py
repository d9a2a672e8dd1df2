"""zstd frames, each compressed in one go: the cores are shared by all files, and memory keeps to a budget."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from asyncdump.lane import BUFFER, Buffer, Lane
from asyncdump.linux import cores, giving_way, is_zero

if TYPE_CHECKING:
    import zstandard

BUDGET: Final = 256 << 20
"""Bytes that compression may take at once: contexts, frames and what they became."""

LEVELS: Final = (-100, 22)
FRAMES: Final = (4 << 10, 128 << 20)
WINDOWS: Final = (10, 27)
"""The logarithms of window sizes that every reader of zstd opens without being told to (``zstd --long``)."""


class ZstdOptions(msgspec.Struct, frozen=True, kw_only=True):
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
        # Not asked with a long window: there the library divides by zero.
        context = _parameters(msgspec.structs.replace(self, long=None)).estimated_compression_context_size()
        far = (1 << min(self.long, self.frame.bit_length())) // 8 if self.long else 0
        return int(context) + far + 2 * self.frame + self.frame // 128


def _parameters(options: ZstdOptions) -> zstandard.ZstdCompressionParameters:
    import zstandard

    far = {"enable_ldm": True, "window_log": options.long} if options.long else {}
    return zstandard.ZstdCompressionParameters.from_level(
        options.level, source_size=options.frame, write_checksum=options.checksum, write_content_size=True, **far
    )


class Compressors:
    """The compressors of one run, used by any thread: as many at work as there are cores, within `BUDGET`."""

    def __init__(self) -> None:
        self._most_idle = cores()
        self._cores = threading.BoundedSemaphore(self._most_idle)
        self._lock = threading.Lock()
        self._budget = threading.Condition()
        self._taken = 0
        self._idle: list[tuple[ZstdOptions, zstandard.ZstdCompressor]] = []
        self._large: list[Buffer] = []
        self._zeros: dict[tuple[ZstdOptions, int], bytes] = {}

    @contextmanager
    def room(self, options: ZstdOptions, lane: Lane) -> Iterator[None]:
        """Wait until the budget has room for one more frame; the lane's buffer holds one within the block."""
        if options.frame <= BUFFER:
            with self._share(options.cost):
                yield
            return
        with self.buffer(options) as buffer, lane.borrowing(buffer):
            yield

    @contextmanager
    def buffer(self, options: ZstdOptions) -> Iterator[Buffer]:
        """Wait until the budget has room for one more frame, and lend a buffer for it."""
        with self._share(options.cost):
            with self._lock:
                buffer = next((kept for kept in self._large if len(kept.view) == options.frame), None)
                # Those of another size give way: what nobody uses isn't counted.
                self._large = [kept for kept in self._large if kept is not buffer and buffer is not None]
            buffer = buffer or Buffer(options.frame)
            try:
                yield buffer
            finally:
                with self._lock:
                    self._large.append(buffer)

    @contextmanager
    def _share(self, cost: int) -> Iterator[None]:
        with self._budget:
            # One that is alone is let in whatever it costs: a manifest that asks for too much was refused before.
            self._budget.wait_for(lambda: not self._taken or self._taken + cost <= BUDGET)
            self._taken += cost
        try:
            yield
        finally:
            with self._budget:
                self._taken -= cost
                self._budget.notify_all()

    def compress(self, options: ZstdOptions, data: memoryview) -> bytes:
        """Return one frame of ``data``; other threads go on meanwhile, the interpreter's lock is not held."""
        with self._cores, giving_way():
            compressor = self._compressor(options)
            frame = compressor.compress(data)
        with self._lock:
            self._idle.append((options, compressor))
        return frame

    def _compressor(self, options: ZstdOptions) -> zstandard.ZstdCompressor:
        import zstandard

        with self._lock:
            for index, (kind, compressor) in enumerate(self._idle):
                if kind == options:
                    del self._idle[index]
                    return compressor
            # The one kept longest gives way: no more are kept than there are cores.
            if len(self._idle) >= self._most_idle:
                del self._idle[0]
        return zstandard.ZstdCompressor(compression_params=_parameters(options))

    def frame(self, options: ZstdOptions, buffer: Buffer, length: int) -> bytes:
        """Return the frame of the first ``length`` bytes of a buffer."""
        words = length & ~7
        if words and is_zero(buffer.address, words) and not any(buffer.view[words:length]):
            return self.zeros(options, length)
        return self.compress(options, buffer.view[:length])

    def zeros(self, options: ZstdOptions, length: int) -> bytes:
        """Return the frame of ``length`` zeros, compressed but once."""
        key = (options, length)
        if (frame := self._zeros.get(key)) is None:
            frame = self.compress(options, memoryview(bytes(length)))
            if len(self._zeros) < _MOST_ZEROS:
                self._zeros[key] = frame
        return frame


_MOST_ZEROS: Final = 64
