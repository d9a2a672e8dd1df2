"""The resources that a worker thread keeps from file to file: a buffer and a pipe."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Final

from asyncdump.kernel.linux import close_quietly

BUFFER: Final = 2 << 20
"""Size of a lane's buffer in bytes. In ``bench chunk``, larger ones were not faster and smaller ones cost CPU time."""

_HUGE: Final = 2 << 20
_PIPE: Final = 64 << 10  # The capacity of a new pipe (pipe(7)).


class Buffer:
    """Aligned private memory that is reused, so that its page faults happen only once.

    It is aligned to 2 MiB and requests a transparent huge page: O_DIRECT then passes the disk one segment instead of
    512, which saves a fifth of the time of a dump with digests. A shared anonymous mapping would never get a huge page.
    """

    def __init__(self, size: int = BUFFER) -> None:
        self._memory = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        skip = -start % _HUGE
        with suppress(OSError):  # A kernel without transparent huge pages is only slower.
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.view: Final = memoryview(self._memory)[skip : skip + size]
        self.address: Final = start + skip


class Buffers:
    """A pool of buffers of `BUFFER` bytes for all threads. It never has more buffers than were in use at one time."""

    def __init__(self) -> None:
        self._free: list[Buffer] = []
        self._lock = threading.Lock()

    def take(self) -> Buffer:
        with self._lock:
            return self._free.pop() if self._free else Buffer()

    def give_back(self, buffer: Buffer) -> None:
        with self._lock:
            self._free.append(buffer)


class Lane:
    """The resources of one worker, used by one thread at a time; ``number`` says which worker of its run."""

    def __init__(self, number: int = 0) -> None:
        self.number: Final = number
        self._pipe: tuple[int, int] | None = None
        self.pipe_size = 0

    @cached_property
    def buffer(self) -> Buffer:
        return Buffer()

    @cached_property
    def spare(self) -> Buffer:
        """A second buffer, for data that is read before it is decompressed."""
        return Buffer()

    @contextmanager
    def borrowing(self, buffer: Buffer) -> Iterator[None]:
        """Use another, larger buffer within the block."""
        own = self.__dict__.pop("buffer", None)
        self.buffer = buffer
        try:
            yield
        finally:
            del self.buffer
            if own is not None:
                self.buffer = own

    @property
    def pipe(self) -> tuple[int, int]:
        """The read end and the write end of an empty pipe of the maximum size (pipe(7))."""
        if self._pipe is None:
            self._pipe = os.pipe2(os.O_CLOEXEC)
            self.pipe_size = grow_pipe(self._pipe[1])
        return self._pipe

    def drop_pipe(self) -> None:
        """Close the pipe, and discard the bytes that a failed call left in it."""
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            close_quietly(end)

    def close(self) -> None:
        self.drop_pipe()


def grow_pipe(fd: int) -> int:
    """Grow a pipe to ``/proc/sys/fs/pipe-max-size`` and return its size in bytes (F_SETPIPE_SZ, fcntl(2))."""
    with suppress(OSError):  # EPERM: the user's pipe pages are exhausted. The pipe works at its current size.
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _largest_pipe())
    with suppress(OSError):
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    return _PIPE


def _largest_pipe() -> int:
    try:
        with open("/proc/sys/fs/pipe-max-size", encoding="ascii") as limit:
            return int(limit.read())
    except (OSError, ValueError):
        return 1 << 20  # The kernel's default.
