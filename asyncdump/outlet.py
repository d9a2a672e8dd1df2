"""Standard output in the place of an output folder: one dump, written behind one another, to whoever reads it."""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final

from asyncdump.errors import DumpError, explain
from asyncdump.lane import grow_pipe
from asyncdump.linux import SPLICE_F_NONBLOCK, TRUE_ERRORS
from asyncdump.sink import Sink, Synced

_PATIENCE: Final = 0.05
"""Seconds after which a writer that waits looks whether the run goes on."""


class PipeSink(Sink):
    """Standard output, or another descriptor that takes bytes one behind the other. It is never waited for in a call.

    Attributes:
        fd: doesn't block.
    """

    sequential: ClassVar[bool] = True

    def __init__(self, fd: int, check: Callable[[], None]) -> None:
        super().__init__(_not_blocking(fd), "standard output", direct=False)
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            grow_pipe(fd)
        self._check = check
        self._may_splice = True

    def resize(self, size: int) -> None:
        """Nothing: it has no size."""

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` behind what was written before.

        Raises:
            BrokenPipeError: the reader has gone.
        """
        assert offset == self.stored
        while data:
            try:
                done = os.write(self.fd, data)
            except BlockingIOError:
                self.wait()
                continue
            data = data[done:]
            self._count(done)

    def splice_from(self, pipe: int, count: int) -> int:
        """Take up to ``count`` bytes from a pipe that holds as many, and return how many."""
        while self._may_splice:
            try:
                return os.splice(pipe, self.fd, count, flags=SPLICE_F_NONBLOCK)
            except BlockingIOError:
                self.wait()
            except OSError as error:
                if error.errno in TRUE_ERRORS:
                    raise
                self._may_splice = False  # A terminal, or a file that is appended to.
        data = os.read(pipe, count)
        stored = self.stored
        self.write(memoryview(data), stored)
        self.stored = stored
        return len(data)

    def wait(self) -> None:
        """Wait until it takes more, and look whether the run goes on."""
        self._check()
        poll = select.poll()  # Not select(2), which knows no descriptor beyond 1023.
        poll.register(self.fd, select.POLLOUT)
        poll.poll(_PATIENCE * 1000)


def _not_blocking(fd: int) -> int:
    """Return a descriptor for the same pipe that doesn't block, without making that of others so.

    The flag belongs to the open file, which standard output shares with the shell: it is opened a second time.
    """
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return os.dup(fd)  # A file has an offset, which a second opening would not share; and it never blocks.
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:  # A socket, or another user's terminal.
        return os.dup(fd)


class Outlet:
    """Stands for the output folder where a run has none: its one dump goes to standard output."""

    path: Final = "-"
    filesystem: Final = "pipe"

    def __init__(self, fd: int, check: Callable[[], None]) -> None:
        self.fd: Final = fd
        self._check = check

    def create(self, name: str) -> PipeSink:
        """Return the sink.

        Raises:
            DumpError: standard output is closed.
        """
        with explain("open", "standard output"):
            return PipeSink(self.fd, self._check)

    def publish(
        self, sinks: Sequence[Sink], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Close the sink: it has been read, or will be."""
        for sink in sinks:
            sink.close()
        return [None] * len(sinks)

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Nothing: there is no place for a receipt."""

    def close(self) -> None:
        """Nothing: standard output stays open."""
