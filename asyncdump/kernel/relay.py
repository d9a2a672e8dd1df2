"""A descriptor that others share, written to without waiting for its reader, and without making it so for them.

O_NONBLOCK belongs to the open file, and that to the shell and all that it has started: it is never set here.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from asyncdump.errors import DumpError, explain
from asyncdump.kernel.linux import some

PATIENCE: Final = 0.05
"""Seconds after which whoever waits for a reader looks whether that is still wanted."""

_PIECE: Final = 1 << 16


def has_offset(fd: int) -> bool:
    """Tell whether a descriptor has a file offset (lseek(2)), which a second opening of its file would not share."""
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return False
    return True


def not_waiting(fd: int) -> int | None:
    """Return a new descriptor for what ``fd`` writes to, on which no write waits for a reader; None if there is none.

    A file is duplicated: its offset goes on with what is written, as the next command of a shell expects, and it has
    no reader to wait for. A pipe or a terminal is opened a second time. A socket can't be, nor another user's terminal.
    """
    if has_offset(fd) or not os.get_blocking(fd):
        return os.dup(fd)
    with suppress(OSError):
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    return None


def wait_for_room(fd: int, seconds: float = PATIENCE) -> None:
    """Wait until a descriptor takes more (poll(2)), for so many seconds at the most."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll(seconds * 1000)


def wait_for_bytes(fd: int, seconds: float = PATIENCE) -> None:
    """Wait until a descriptor gives something, or its end (poll(2)), for so many seconds at the most."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(seconds * 1000)


def write_all(fd: int, data: memoryview) -> None:
    """Write all of ``data``, waiting for the reader as long as that takes, also where others have set O_NONBLOCK."""
    while data:
        try:
            data = data[some(os.write(fd, data)) :]
        except BlockingIOError:
            wait_for_room(fd)


class Relay:
    """A pipe of our own, and a thread that carries what is in it to ``fd``, and waits there in our place.

    The thread is a daemon, and alone uses what it reads from and writes to: whoever gives up leaves it behind.

    Attributes:
        fd: the end to write to, which doesn't block; it fails with EPIPE once the thread could not write.
        error: why it could not, or None.
    """

    def __init__(self, fd: int) -> None:
        """Start the thread.

        Raises:
            DumpError: there are too many descriptors, or threads.
        """
        self.error: OSError | None = None
        self._given_up = False
        self._ended = threading.Event()
        with explain("open", "standard output"):
            target = os.dup(fd)
            try:
                reading, self.fd = os.pipe2(os.O_CLOEXEC)
            except OSError:
                os.close(target)
                raise
            os.set_blocking(self.fd, False)
        try:
            threading.Thread(target=self._carry, args=(reading, target), name="asyncdump-relay", daemon=True).start()
        except RuntimeError as error:
            for end in (reading, self.fd, target):
                os.close(end)
            raise DumpError(f"no thread can be started: {error}", operation="pthread_create") from error

    def _carry(self, reading: int, target: int) -> None:
        try:
            while (piece := os.read(reading, _PIECE)) and not self._given_up:
                write_all(target, memoryview(piece))
        except OSError as error:
            self.error = error
        finally:
            os.close(reading)
            os.close(target)
            self._ended.set()

    def close(self) -> None:
        """Say that this was all: the thread ends when it has carried that."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def finish(self, check: Callable[[], None]) -> None:
        """Close it, and wait until all has been carried; ``check`` is called meanwhile, and may raise to end that.

        Raises:
            OSError: it could not be.
        """
        self.close()
        while not self._ended.wait(PATIENCE):
            check()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """Close it, and carry no more than what is on its way."""
        self._given_up = True
        self.close()
