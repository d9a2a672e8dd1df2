"""What drains the last program."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Final

from asyncdump.codecs.compressors import Compressors, Press
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import SPLICE_F_NONBLOCK, TRUE_ERRORS
from asyncdump.sinks.place import Sink
from asyncdump.transfer.feeds import STEP
from asyncdump.transfer.packer import Packer
from asyncdump.vocabulary.digest import Hasher

_BEHIND: Final = 4 << 20


class Empty(Exception):  # noqa: N818 (no failure: it will have more)
    """The pipe is empty at the moment. This isn't an EAGAIN, because an EAGAIN of the sink is a failure."""


def _taken(pipe: int, view: memoryview) -> int:
    """Read from a pipe into ``view`` and return how many bytes were read; 0 at the end.

    Raises:
        Empty: the pipe is empty at the moment.
    """
    try:
        return os.readv(pipe, [view])
    except BlockingIOError as error:
        raise Empty from error


class Drain(ABC):
    """What drains the output of the last program. A step raises `Empty` if there is no output at the moment.

    Attributes:
        hasher: hashes everything that is written, or None if no digest is wanted.
    """

    hasher: Hasher | None = None

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self.done = False

    @abstractmethod
    def step(self, lane: Lane) -> bool:
        """Move some bytes; return False at the end of the output."""

    @abstractmethod
    def finish(self, lane: Lane) -> None:
        """Write what is still buffered."""


class CopiedDrain(Drain):
    """The output is read into the second buffer of the lane, and hashed and written from there.

    The hashed bytes are the written bytes. A program may pass on pages that are still being changed (splice(2)), so
    that reading a pipe twice, with tee(2), could give two results.
    """

    def __init__(self, sink: Sink, pipe: int, hasher: Hasher | None) -> None:
        super().__init__(pipe)
        self.hasher = hasher
        self._sink = sink
        self._filled = 0
        self._written = 0

    def step(self, lane: Lane) -> bool:
        # The first buffer of the lane may hold bytes that are still to be fed.
        view = lane.spare.view
        moved = _taken(self._pipe, view[self._filled :])
        if moved == 0:
            self.done = True
            return False
        if self.hasher is not None:
            self.hasher.update(view[self._filled : self._filled + moved])
        self._filled += moved
        if self._filled == len(view) or self._sink.sequential:
            self._write(view)
        return True

    def _write(self, view: memoryview) -> None:
        self._sink.write(view[: self._filled], self._written)
        self._written += self._filled
        self._filled = 0

    def finish(self, lane: Lane) -> None:
        self._write(lane.spare.view)
        self._sink.resize(self._written)


class SplicedDrain(Drain):
    """The output is spliced into the page cache of the sink, with write-back close behind.

    ``bench filter`` found O_DIRECT slower: a pipe passes single pages to the disk, and each write waits for the disk.
    """

    def __init__(self, sink: Sink, fd: int, pipe: int) -> None:
        """``fd`` is that of the sink."""
        super().__init__(pipe)
        self._sink = sink
        self._fd = fd
        self._flushed = 0
        self._denied = False

    def step(self, lane: Lane) -> bool:
        sink, step = self._sink, self._sink.pace.step(STEP)
        moved = self._move(lane, step)
        self.done = moved == 0
        if sink.stored - self._flushed >= sink.pace.step(_BEHIND):
            self._flush()
        return moved > 0

    def _move(self, lane: Lane, count: int) -> int:
        sink = self._sink
        if not self._denied:
            try:
                moved = os.splice(self._pipe, self._fd, count, offset_dst=sink.stored, flags=SPLICE_F_NONBLOCK)
            except BlockingIOError as error:
                raise Empty from error
            except OSError as error:
                if error.errno in TRUE_ERRORS:
                    raise
                self._denied = True
            else:
                sink.note_copied(moved)
                return moved
        moved = _taken(self._pipe, lane.spare.view[:count])
        sink.write_cached(lane.spare.view[:moved], sink.stored)
        return moved

    def _flush(self) -> None:
        self._sink.flush_behind(self._flushed, self._sink.stored - self._flushed)
        self._flushed = self._sink.stored

    def finish(self, lane: Lane) -> None:
        if self._flushed < self._sink.stored:
            self._flush()


class FramesDrain(Drain):
    """The output is gathered into frames, compressed, and written by a packer."""

    def __init__(self, compressors: Compressors, pipe: int, press: Press, packer: Packer) -> None:
        super().__init__(pipe)
        self._compressors = compressors
        self._press = press
        self._packer = packer
        self.hasher = packer.hasher
        self._filled = 0
        self._count = 0

    def step(self, lane: Lane) -> bool:
        frame = self._press.options.frame
        moved = _taken(self._pipe, self._press.buffer.view[self._filled : frame])
        self._filled += moved
        if moved == 0:
            self.done = True
        if self._filled == frame or (moved == 0 and (self._filled or not self._count)):
            self._pack()
        return moved > 0

    def _pack(self) -> None:
        frame = self._compressors.frame(self._press, self._press.buffer, self._filled)
        self._packer.append(self._count, frame, self._filled)
        self._count += 1
        self._filled = 0

    def finish(self, lane: Lane) -> None:
        self._packer.finish()
