"""Frames are written to a sink: in the order of the file, gathered into aligned blocks, and listed in a seek table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from asyncdump.codecs.seekable import Table
from asyncdump.errors import InterruptedDumpError
from asyncdump.kernel.lane import Buffer, Buffers
from asyncdump.sinks.place import Sink
from asyncdump.vocabulary.digest import Hasher

_PATIENCE: Final = 0.05
"""Seconds after which a thread that waits for its turn checks whether the run continues."""


class Packer:
    """Takes frames from several threads and writes them in order.

    A thread waits until its frame is the next one. It copies the frame into the current block under the turn, and
    writes a full block after that, in parallel with the next frame. Only a sequential sink is written to under the
    turn, because it takes blocks in order.

    Attributes:
        hasher: hashes everything that is written, or None if no digest is wanted.
    """

    def __init__(
        self, sink: Sink, hasher: Hasher | None, buffers: Buffers, check: Callable[[], None], *, checksums: bool
    ) -> None:
        self._sink = sink
        self.hasher: Final = hasher
        self._buffers = buffers
        self._check = check
        self._table = Table(checksums=checksums)
        self._next = 0
        self._turn = threading.Condition()
        self._block: Buffer | None = None
        self._filled = 0
        self._written = 0
        self._failed = False

    def append(self, number: int, frame: bytes, length: int) -> None:
        """Append frame ``number`` with ``length`` bytes of content, after all frames before it.

        Raises:
            OSError: it can't be written.
            DumpError: there are too many frames.
            InterruptedDumpError: the run was stopped, or another thread failed.
        """
        with self._turn:
            while self._next != number and not self._failed:
                self._turn.wait(_PATIENCE)
                self._check()
            if self._failed:
                raise InterruptedDumpError("another part of the file failed", operation="write")
            self._table.add(frame, length)
            blocks: list[tuple[Buffer, int, int]] = []
            for block in self._add(memoryview(frame)):
                # The last block is written after the turn. A large frame fills many blocks: write all others now, so
                # that it takes no more than two buffers.
                self._flush(blocks)
                blocks = [block]
            if self._sink.sequential:
                self._flush(blocks)
                blocks = []
            self._next += 1
            self._turn.notify_all()
        self._flush(blocks)

    def _add(self, data: memoryview) -> Iterator[tuple[Buffer, int, int]]:
        """Copy data into blocks and yield each full block as ``(block, length, offset)``."""
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
                full = (self._block, self._filled, self._written)
                self._written += self._filled
                self._block, self._filled = None, 0
                yield full

    def _flush(self, blocks: Iterable[tuple[Buffer, int, int]]) -> None:
        for block, length, offset in blocks:
            try:
                self._write(block.view[:length], offset)
            finally:
                self._buffers.give_back(block)

    def _write(self, data: memoryview, offset: int) -> None:
        """Write a block, on a slow disk in pieces, between which the run may be stopped."""
        pace, done = self._sink.pace, 0
        while done < len(data):
            self._check()
            piece = data[done : done + pace.step(len(data))]
            self._sink.write(piece, offset + done)
            done += len(piece)

    def finish(self) -> None:
        """Write the seek table and the last block, and set the size of the file.

        Raises:
            OSError: it can't be written.
        """
        for piece in self._table.encoded():
            self._flush(self._add(piece))
        if self._block is not None:
            block, self._block = self._block, None
            self._flush([(block, self._filled, self._written)])
            self._written += self._filled
        self._sink.resize(self._written)

    def discard(self) -> None:
        """Release the current block; threads that wait for their turn raise, because it will never come."""
        with self._turn:
            self._failed = True
            self._turn.notify_all()
            if self._block is not None:
                self._buffers.give_back(self._block)
                self._block = None
