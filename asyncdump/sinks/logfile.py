"""One of our own files that is only appended to: each piece completely, or not at all."""

from __future__ import annotations

import os
from typing import Final

from asyncdump.errors import DumpError, explain, from_oserror
from asyncdump.kernel.linux import close_quietly, some


class LogFile:
    """A `Log` in a directory; used by one thread at a time.

    Attributes:
        lost: why the content on disk is unknown, or None: a sync failed, or a partly written piece could not be
            removed. Anything that is appended after that isn't reliable.
    """

    def __init__(self, fd: int, path: str, end: int = 0) -> None:
        """Take over the descriptor of a file of ``end`` bytes."""
        self.path: Final = path
        self.lost: DumpError | None = None
        self._fd = fd
        self._end = end

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        with explain("write", self.path):
            os.lseek(self._fd, self._end, os.SEEK_SET)
            done = 0
            try:
                while done < len(view):
                    done += some(os.write(self._fd, view[done:]))
            except OSError:
                self._take_back()
                raise
            self._end += done

    def _take_back(self) -> None:
        # The next piece may be shorter, and complete lines of this one after it would be read.
        try:
            os.ftruncate(self._fd, self._end)
        except OSError as error:
            self.lost = from_oserror(error, "ftruncate", self.path)

    def sync(self) -> DumpError | None:
        if self.lost is None:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self.lost = from_oserror(error, "fdatasync", self.path)
        return self.lost

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)
