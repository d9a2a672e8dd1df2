"""A store in the memory of this process: dumps and records without a directory, which end with the process.

Each file is anonymous memory (memfd_create(2)) with a name in a dictionary. Its sinks have no descriptor for engines:
all bytes go through `MemorySink.write`, as they would with an object store.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import ClassVar, Final, Self

from asyncdump.errors import BusyError, DumpError, explain
from asyncdump.kernel.linux import close_quietly
from asyncdump.sinks.memfile import MemoryLog, MemorySink
from asyncdump.sinks.place import Entry, PlacedSink, Synced

SCHEME: Final = "memory"


class _Contents:
    """The content of all places with one name. ``turn`` guards it.

    Attributes:
        files: a descriptor for each name.
        readers, writers: how many shared and exclusive locks there are.
        sequential: whether sinks only accept bytes in order.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.sequential = False
        self.files: dict[str, int] = {}
        self.readers = 0
        self.writers = 0


_all: Final[dict[str, _Contents]] = {}
_numbers: Final = count(1)


class MemoryPlace:
    """A ``Store`` in memory. Within a process, all places of the same name have the same content.

    Pass it as ``output=``, or pass its address, ``memory://NAME``::

        with MemoryPlace() as place:
            await asyncdump.dump_all([asyncdump.Dump(source=path)], output=place)
            assert place.read("name") == Path(path).read_bytes()
            (await asyncdump.verify_all(place)).raise_for_failures()

    The content exists until `clear`, which the end of the ``with`` block calls. Each dump takes a file descriptor.
    """

    filesystem: ClassVar[str] = SCHEME
    streams: ClassVar[bool] = False
    fd: ClassVar[int | None] = None

    def __init__(self, name: str | None = None, *, sequential: bool = False) -> None:
        """Open the place of a name, or a new one.

        Args:
            name: the name; by default an unused number.
            sequential: whether its dumps only accept bytes in order, from one thread, as an object store would.
        """
        self.name: Final = name if name is not None else f"unnamed-{next(_numbers)}"
        self.path: Final = f"{SCHEME}://{self.name}"
        self._contents: Final = _all.setdefault(self.name, _Contents())
        self._contents.sequential |= sequential
        self._held: Final[set[str]] = set()
        self._locked: bool | None = None  # Whether the lock is shared; None without a lock.

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"MemoryPlace({self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def read(self, name: str) -> bytes:
        """Return the content of a file: a dump, or a record.

        Raises:
            DumpError: there is no such file.
        """
        fd = self.open(name)
        try:
            with open(fd, "rb", closefd=False) as file:
                file.seek(0)
                return file.read()
        finally:
            os.close(fd)

    def clear(self) -> None:
        """Remove everything, and free its memory."""
        with self._contents.turn:
            files = list(self._contents.files.values())
            self._contents.files.clear()
        for fd in files:
            close_quietly(fd)

    # --- a place ------------------------------------------------------------------------------------------------------

    def create(self, name: str) -> MemorySink:
        path = os.path.join(self.path, name)
        with explain("memfd_create", path):
            memory = os.memfd_create("asyncdump", os.MFD_CLOEXEC)
        return MemorySink(self, name, memory, sequential=self._contents.sequential)

    def publish(
        self, sinks: Sequence[PlacedSink], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        errors: list[DumpError | None] = []
        for sink in sinks:
            error = sink.lost or sink.rename(overwrite=overwrite or sink.replaces)
            if error is not None:
                sink.discard()
            sink.close()
            errors.append(error)
        return errors

    def put(self, name: str, fd: int, *, overwrite: bool) -> DumpError | None:
        """Store a descriptor under a name, and take it over; return the error, if any."""
        path = os.path.join(self.path, name)
        with self._contents.turn:
            replaced = self._contents.files.get(name, -1)
            if replaced >= 0 and not overwrite and name not in self._held:
                message = f"{path} appeared while it was written"
                hint = "choose an empty place, or pass {overwrite}"
                return DumpError(message, path=path, operation="rename", errno=errno.EEXIST, hint=hint)
            self._contents.files[name] = fd
            self._held.add(name)
        if replaced >= 0:
            close_quietly(replaced)
        return None

    def close(self) -> None:
        locked, self._locked = self._locked, None
        with self._contents.turn:
            self._contents.readers -= locked is True
            self._contents.writers -= locked is False

    # --- a store ------------------------------------------------------------------------------------------------------

    def lock(self, *, shared: bool = False) -> None:
        with self._contents.turn:
            if self._contents.writers or (self._contents.readers and not shared):
                raise BusyError(
                    f"another run is using {self.path}",
                    path=self.path,
                    operation="flock",
                    errno=errno.EAGAIN,
                    hint="wait for it to end, or choose another place",
                )
            self._contents.readers += shared
            self._contents.writers += not shared
            self._locked = shared

    def sweep(self) -> None:
        """Do nothing: unpublished files vanished with their descriptors."""

    def names(self) -> list[str]:
        """Return the names of all files: dumps and records."""
        with self._contents.turn:
            return list(self._contents.files)

    def entry(self, name: str) -> Entry | None:
        with self._contents.turn:
            fd = self._contents.files.get(name)
            return None if fd is None else Entry.of(os.fstat(fd))

    def exists(self, name: str) -> bool:
        return name in self.names()

    def open(self, name: str) -> int:
        path = os.path.join(self.path, name)
        with self._contents.turn, explain("open", path):
            if (fd := self._contents.files.get(name)) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return os.dup(fd)

    def settle(self, name: str) -> None:
        os.close(self.open(name))

    def hold(self, name: str) -> bool:
        if not self.exists(name):
            return False
        self._held.add(name)
        return True

    def holder(self, name: str) -> str | None:
        return name if name in self._held and self.exists(name) else None

    def clashes(self, names: Iterable[str]) -> list[tuple[str, str]]:
        return []

    def read_small(self, name: str, largest: int) -> bytes | None:
        entry = self.entry(name)
        if entry is None:
            return None
        if entry.size > largest:
            path = os.path.join(self.path, name)
            raise DumpError(f"{path} has more than {largest} bytes", path=path, operation="read")
        return self.read(name)

    def write_small(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            self.renew_log(name, content).close()

    def new_log(self, name: str) -> MemoryLog:
        return self.renew_log(name, b"")

    def renew_log(self, name: str, content: bytes) -> MemoryLog:
        sink = self.create(name)
        try:
            sink.write(memoryview(content), 0)
            if (failure := sink.rename(overwrite=True)) is not None:
                raise failure
            return MemoryLog(self.open(name), sink.path)
        finally:
            sink.abort()

    def remove(self, name: str) -> None:
        with self._contents.turn:
            fd = self._contents.files.pop(name, -1)
        if fd >= 0:
            close_quietly(fd)


def open_memory(address: str, *, make: bool) -> MemoryPlace:
    """Open the place of an address; with ``make``, create it if it is missing.

    Raises:
        DumpError: there is none, and ``make`` is False.
    """
    name = address.partition("://")[2]
    if not make and name not in _all:
        raise DumpError(f"there is no {address}", path=address, operation="open", errno=errno.ENOENT)
    return MemoryPlace(name)
