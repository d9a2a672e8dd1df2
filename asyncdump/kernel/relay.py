"""Write to a descriptor that other processes share, without waiting for its reader and without side effects on them.

O_NONBLOCK is a flag of the open file description (open(2)), which the shell and its other children share. It is never
set here.
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
"""Seconds between two checks whether waiting for a reader is still wanted."""

_PIECE: Final = 1 << 16


def has_offset(fd: int) -> bool:
    """Return whether a descriptor has a file offset (lseek(2)), which a second open of the file would not share."""
    try:
        os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return False
    return True


def not_waiting(fd: int) -> int | None:
    """Return a new descriptor for the same file as ``fd``, on which no write blocks; None if that is impossible.

    A regular file is duplicated: it has no reader to wait for, and the shared offset advances, as the next command of a
    shell script expects. A pipe or a terminal is opened a second time. A socket can't be opened, and neither can
    another user's terminal.
    """
    if has_offset(fd) or not os.get_blocking(fd):
        return os.dup(fd)
    with suppress(OSError):
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    return None


def wait_for_room(fd: int, seconds: float = PATIENCE) -> None:
    """Wait until a descriptor is writable (poll(2)), for at most ``seconds``."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll(seconds * 1000)


def wait_for_bytes(fd: int, seconds: float = PATIENCE) -> None:
    """Wait until a descriptor is readable or at its end (poll(2)), for at most ``seconds``."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(seconds * 1000)


def write_all(fd: int, data: memoryview) -> None:
    """Write all of ``data``; wait for the reader as long as necessary, even if another process has set O_NONBLOCK."""
    while data:
        try:
            data = data[some(os.write(fd, data)) :]
        except BlockingIOError:
            wait_for_room(fd)


class Relay:
    """A pipe, and a thread that copies its content to ``fd`` and waits for the reader there.

    The thread is a daemon and is the only user of the two descriptors that it reads from and writes to, so that it can
    be abandoned while it blocks.

    Attributes:
        fd: the write end, non-blocking; writes fail with EPIPE after the thread has failed to write.
        error: why the thread failed, or None.
    """

    def __init__(self, fd: int) -> None:
        """Start the thread.

        Raises:
            DumpError: there are too many open descriptors or too many threads.
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
        """Close the write end: the thread ends after it has copied what is in the pipe."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def finish(self, check: Callable[[], None]) -> None:
        """Close the write end and wait until everything is copied; ``check`` is called meanwhile, and may raise.

        Raises:
            OSError: the thread could not write.
        """
        self.close()
        while not self._ended.wait(PATIENCE):
            check()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """Close the write end; the thread copies at most the piece that it has already read."""
        self._given_up = True
        self.close()
