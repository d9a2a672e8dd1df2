"""The base class of sinks that aren't files: no descriptor, no page cache, nothing to flush."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import ClassVar

from asyncdump.errors import DumpError, from_oserror
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.pace import UNLIMITED, Pace
from asyncdump.sinks.file import ZEROS
from asyncdump.vocabulary.digest import Hasher


class PlainSink:
    """A `PlacedSink` without `write`, whose other methods do nothing."""

    fd: int | None = None
    direct: ClassVar[int | None] = None
    sequential: bool = False
    most_lanes: int | None = None
    grain: ClassVar[int] = 4096
    pace: ClassVar[Pace] = UNLIMITED
    replaces: bool = False
    lost: DumpError | None = None

    def __init__(self, path: str) -> None:
        self.path = path
        self.stored = 0
        self._lock = threading.Lock()

    def status(self) -> tuple[int, int]:
        return 0, 0

    def open_again(self) -> int:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def resize(self, size: int) -> None:
        """Do nothing: it has no size."""

    def expect(self, size: int) -> None:
        self.resize(size)

    def write(self, data: memoryview, offset: int) -> None:
        raise NotImplementedError

    def write_direct(self, data: memoryview, offset: int) -> int:
        return 0

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
        self.write(data, offset)

    def write_zeros(self, offset: int, length: int) -> None:
        for done in range(0, length, len(ZEROS)):
            self.write(ZEROS[: length - done], offset + done)

    def _count(self, length: int) -> None:
        with self._lock:
            self.stored += length

    def note_written(self, length: int) -> None:
        self._count(length)

    def note_copied(self, length: int) -> None:
        self._count(length)

    def flush_behind(self, offset: int, length: int) -> None:
        """Do nothing: there is nothing to flush."""

    def read_back(self, size: int, digest: Hasher, lane: Lane, check: Callable[[], None]) -> None:
        raise DumpError(f"{self.path} can't be read back", path=self.path, operation="read back")

    def lose(self, error: OSError, operation: str) -> DumpError:
        """Keep an error that is reported only once, and return the first one."""
        with self._lock:
            self.lost = self.lost or from_oserror(error, operation, self.path)
            return self.lost

    def sync(self) -> DumpError | None:
        return self.lost

    def ask(self) -> DumpError | None:
        return self.lost

    def drop_cache(self) -> None:
        """Do nothing: there is no page cache."""

    def rename(self, *, overwrite: bool) -> DumpError | None:
        return None

    def discard(self) -> None:
        """Do nothing: it keeps no data."""

    def close_direct(self) -> None:
        """Do nothing: `direct` is None."""

    def abort(self) -> None:
        self.discard()
        self.close()

    def close(self) -> None:
        """Do nothing: nothing is open."""
