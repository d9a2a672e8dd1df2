"""The engines that read a dump back: raw, bypassing the page cache, or frame by frame."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar, Final

from asyncdump.codecs.codec import Codec
from asyncdump.codecs.frames import damaged, decompress, stored_frame
from asyncdump.codecs.seekable import SeekTable
from asyncdump.engines import Route
from asyncdump.engines.read import Read, fill
from asyncdump.errors import DamagedError, DumpError, explain
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import close_quietly, read_at
from asyncdump.sinks.file import ALIGNMENT, NOT_DIRECT
from asyncdump.sources.file import open_file
from asyncdump.vocabulary.digest import Hasher
from asyncdump.vocabulary.values import Span

_STEP: Final = 1 << 20


class DirectRead(Read):
    """`Read` that bypasses the page cache (O_DIRECT) if possible: a dump is read once, so caching it is useless."""

    def __init__(self, fd: int) -> None:
        try:
            self._fd = open_file(f"/proc/self/fd/{fd}", flags=os.O_DIRECT)
        except OSError:
            self._fd = -1
        self._refused = self._fd < 0

    def load(self, route: Route, span: Span, lane: Lane) -> memoryview:
        """Read the span, in complete blocks with O_DIRECT, and the rest without."""
        done = 0
        whole = -(-span.length // ALIGNMENT) * ALIGNMENT
        while not self._refused and done < span.length and (span.offset + done) % ALIGNMENT == 0:
            try:
                got = read_at(self._fd, lane.buffer.view[done:whole], span.offset + done)
            except OSError as error:
                if error.errno not in NOT_DIRECT:
                    raise
                self._refused = True
                break
            if got == 0:
                break
            done += got
        return fill(route, span, lane, done)

    def close(self) -> None:
        """Close the descriptor."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)


class Unpack(Read):
    """The frames of a compressed dump, decompressed one after another, with their checksums verified."""

    span: ClassVar[int] = Read.span

    def __init__(self, codec: Codec, frames: SeekTable, stored: Hasher | None) -> None:
        self._codec = codec
        self.stored: Final = stored
        self._frames = frames
        self._next = 0
        self._rest = memoryview(b"")
        self._end = 0

    def load(self, route: Route, span: Span, lane: Lane) -> memoryview:
        """Decompress the next span; spans come in order."""
        view = lane.buffer.view[: span.length]
        filled = 0
        while filled < span.length:
            if not self._rest and self._frames[self._next].length <= span.length - filled:
                filled += self._unpack(route, lane, view[filled:])  # The frame fits: decompress it into the buffer.
                continue
            if not self._rest:
                held = memoryview(bytearray(self._frames[self._next].length))
                self._unpack(route, lane, held)
                self._rest = held
            piece = self._rest[: span.length - filled]
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            # Don't keep even an empty slice of a finished frame, which would keep all of its memory.
            self._rest = self._rest[len(piece) :] if len(piece) < len(self._rest) else memoryview(b"")
        return view

    def _unpack(self, route: Route, lane: Lane, target: memoryview) -> int:
        """Decompress the next frame into ``target`` and return its length."""
        index, frame = self._next, self._frames[self._next]
        self._next += 1
        stored = stored_frame(self._codec, route.fd, frame, index, route.source.path, lane.spare.view)
        if self.stored is not None:
            self.stored.update(stored)
        self._end = frame.stored_offset + frame.stored
        try:
            decompress(self._codec, frame, index, stored, route.source.path, target[: frame.length])
        except DamagedError:
            raise
        except DumpError as error:  # A valid frame of another program, but not one that asyncdump has written.
            raise damaged(frame, index, route.source.path, error) from error
        return frame.length

    def finish(self, route: Route, lane: Lane, check: Callable[[], None]) -> None:
        """Read what follows the last byte of content: empty frames, and the seek table."""
        while self._next < len(self._frames):
            self._unpack(route, lane, memoryview(b""))
        self.skip(route, check)

    def skip(self, route: Route, check: Callable[[], None]) -> None:
        """Hash the rest of the file without decompressing it; ``check`` may raise."""
        with explain("read", route.source.path):
            while piece := os.pread(route.fd, _STEP, self._end):
                check()
                if self.stored is not None:
                    self.stored.update(memoryview(piece))
                self._end += len(piece)
