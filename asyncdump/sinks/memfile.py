"""A dump and a log of a `MemoryPlace`: pieces of anonymous memory (memfd_create(2))."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, Protocol

from asyncdump.errors import DumpError, explain
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import close_quietly, read_at, some
from asyncdump.sinks.plain import PlainSink
from asyncdump.vocabulary.digest import Hasher


class Naming(Protocol):
    """What gives a dump its name: a `MemoryPlace`."""

    @property
    def path(self) -> str: ...

    def put(self, name: str, fd: int, *, overwrite: bool) -> DumpError | None:
        """Give memory a name, and take its descriptor over; return the error, if any."""


class MemorySink(PlainSink):
    """A dump in a `MemoryPlace`: memory without a name until it is published."""

    def __init__(self, place: Naming, name: str, memory: int, *, sequential: bool) -> None:
        """Take over a descriptor of anonymous memory."""
        super().__init__(os.path.join(place.path, name))
        self.name: Final = name
        self.sequential = sequential
        self.most_lanes = 1 if sequential else None
        self._place: Final = place
        self._memory = memory

    def status(self) -> tuple[int, int]:
        status = os.fstat(self._memory)
        return status.st_size, status.st_ino

    def resize(self, size: int) -> None:
        if not self.sequential:
            with explain("ftruncate", self.path):
                os.ftruncate(self._memory, size)

    def write(self, data: memoryview, offset: int) -> None:
        if self.sequential and offset != self.stored:
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))
        done = 0
        while done < len(data):
            done += some(os.pwrite(self._memory, data[done:], offset + done))
        self._count(done)

    def read_back(self, size: int, digest: Hasher, lane: Lane, check: Callable[[], None]) -> None:
        view, offset = lane.buffer.view, 0
        while offset < size:
            check()
            got = min(read_at(self._memory, view, offset), size - offset)
            if got == 0:
                message = f"{self.path} has {offset} bytes instead of {size}"
                raise DumpError(message, path=self.path, operation="read back")
            digest.update(view[:got])
            offset += got

    def rename(self, *, overwrite: bool) -> DumpError | None:
        failure = self._place.put(self.name, self._memory, overwrite=overwrite)
        if failure is None:
            self._memory = -1
        return failure

    def discard(self) -> None:
        memory, self._memory = self._memory, -1
        if memory >= 0:
            close_quietly(memory)


class MemoryLog:
    """A `Log` in a `MemoryPlace`."""

    lost: DumpError | None = None

    def __init__(self, memory: int, path: str) -> None:
        """Take over a descriptor of anonymous memory."""
        self._memory = memory
        self._path: Final = path

    def append(self, data: bytes) -> None:
        with explain("write", self._path):
            end = os.fstat(self._memory).st_size
            os.ftruncate(self._memory, end + len(data))
            os.pwrite(self._memory, data, end)

    def sync(self) -> DumpError | None:
        return None

    def close(self) -> None:
        memory, self._memory = self._memory, -1
        if memory >= 0:
            close_quietly(memory)
