"""Frames on their way to a sink: in the order of the file, gathered into aligned blocks, listed in a seek table."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from asyncdump.digest import Marked
from asyncdump.errors import InterruptedDumpError
from asyncdump.lane import Buffer, Buffers
from asyncdump.pace import pace_of
from asyncdump.seekable import Frame, seek_table
from asyncdump.sink import Sink

_PATIENCE: Final = 0.05
"""Seconds after which a thread that waits for its turn looks whether the run goes on at all."""


class Table:
    """The frames of one file so far.

    Attributes:
        stored: bytes of all of them.
    """

    def __init__(self) -> None:
        self.frames: Final[list[Frame]] = []
        self.stored = 0
        self._content = 0

    def add(self, frame: bytes, length: int, *, checksum: bool) -> None:
        """List a frame of ``length`` bytes of content; with ``checksum`` it ends with one."""
        self.frames.append(
            Frame(
                offset=self._content,
                length=length,
                stored_offset=self.stored,
                stored=len(frame),
                # A frame ends with the very 32 bits of its content's XXH64 that a seek table wants (RFC 8878).
                checksum=int.from_bytes(frame[-4:], "little") if checksum else None,
            )
        )
        self._content += length
        self.stored += len(frame)

    def encoded(self) -> bytes:
        """Return the table as it stands at the end of a file."""
        return seek_table(self.frames)


class Packer:
    """Takes frames from several threads, writes them one behind the other.

    Attributes:
        hasher: what hashes all that is written, or None if nothing does.
    """

    def __init__(self, sink: Sink, hasher: Marked | None, buffers: Buffers, check: Callable[[], None]) -> None:
        self._sink = sink
        self.hasher: Final = hasher
        self._buffers = buffers
        self._check = check
        self._table = Table()
        self._next = 0
        self._turn = threading.Condition()
        self._block: Buffer | None = None
        self._filled = 0
        self._written = 0
        self._failed = False

    def append(self, number: int, frame: bytes, length: int, *, checksum: bool) -> None:
        """Add frame ``number`` of ``length`` bytes of content, once those before it are there.

        Raises:
            OSError: it can't be written.
            InterruptedDumpError: the run was stopped, or another thread failed with a frame before this one.
        """
        with self._turn:
            while self._next != number:
                self._turn.wait(_PATIENCE)
                self._check()
                if self._failed:
                    raise InterruptedDumpError("another part of the file failed", operation="write")
            self._table.add(frame, length, checksum=checksum)
            blocks = self._add(memoryview(frame))
            if self._sink.sequential:
                self._flush(blocks)
                blocks = []
            self._next += 1
            self._turn.notify_all()
        self._flush(blocks)

    def give_up(self) -> None:
        """Tell threads that wait for their turn that it won't come."""
        self._failed = True

    def _add(self, data: memoryview) -> list[tuple[Buffer, int, int]]:
        """Copy data into blocks and return those that are full, as ``(block, length, offset)``."""
        full = []
        if self.hasher is not None:
            self.hasher.update(data)
        while data:
            if self._block is None:
                self._block = self._buffers.take()
            room = len(self._block.view) - self._filled
            piece = data[:room]
            self._block.view[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            data = data[room:]
            if self._filled == len(self._block.view) or self._sink.sequential:
                full.append((self._block, self._filled, self._written))
                self._written += self._filled
                self._block, self._filled = None, 0
        return full

    def _flush(self, blocks: list[tuple[Buffer, int, int]]) -> None:
        for block, length, offset in blocks:
            try:
                self._write(block.view[:length], offset)
            finally:
                self._buffers.give_back(block)

    def _write(self, data: memoryview, offset: int) -> None:
        """Write a block, on a slow disk in pieces: the run may be stopped between them."""
        pace, done = pace_of(self._sink.fd), 0
        while done < len(data):
            self._check()
            piece = data[done : done + pace.step(len(data))]
            self._sink.write(piece, offset + done)
            done += len(piece)

    def finish(self) -> None:
        """Write the seek table and whatever waits for its block to fill, and set the size of the file.

        Raises:
            OSError: it can't be written.
        """
        blocks = self._add(memoryview(self._table.encoded()))
        if self._block is not None:
            blocks.append((self._block, self._filled, self._written))
            self._written += self._filled
            self._block = None
        self._flush(blocks)
        self._sink.resize(self._written)

    def discard(self) -> None:
        """Give the block back that was being filled."""
        if self._block is not None:
            self._buffers.give_back(self._block)
            self._block = None
