"""The mappings of a process: what is mapped at its addresses (``/proc/PID/maps``, proc_pid_maps(5))."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

import msgspec

from asyncdump.errors import DumpError, from_oserror
from asyncdump.kernel.processes import parsed
from asyncdump.sources.describe import describe
from asyncdump.sources.file import FileSource, open_file

_ZERO: Final = os.makedev(1, 5)
"""``/dev/zero``, whose private mappings are ordinary anonymous memory."""


class Mapping(msgspec.Struct, frozen=True):
    """One mapping: ``file`` identifies the file that is mapped from byte ``offset`` on; None for anonymous memory."""

    start: int
    end: int
    offset: int
    file: tuple[str, int] | None
    path: str

    @property
    def backing(self) -> tuple[tuple[str, int] | None, int]:
        """A value that is equal for adjacent mappings of consecutive parts of the same file, or of anonymous memory."""
        return self.file, self.offset - self.start if self.file else 0


def mappings_in(pid: int, start: int, end: int) -> list[Mapping]:
    """Return the mappings that overlap ``[start, end)``, in the order of their addresses.

    Raises:
        OSError: the mappings can't be read.
    """
    found = []
    with open(f"/proc/{pid}/maps", "rb") as lines:
        for line in map(parsed, lines):
            if line.start >= end:
                break
            if line.end > start:
                file = (line.device.decode(), line.inode) if line.inode else None
                found.append(Mapping(line.start, line.end, line.offset, file, os.fsdecode(line.path)))
    return found


def gaps_in(mappings: Iterable[Mapping], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of ``[start, end)`` that no mapping covers."""
    for mapping in mappings:
        if mapping.start > start:
            yield start, mapping.start
        start = mapping.end
    if start < end:
        yield start, end


def outline(mappings: Iterable[Mapping], start: int, end: int) -> list[tuple[int, int, object]]:
    """Return what is mapped in ``[start, end)``, with mappings merged that mprotect(2) or madvise(2) have split."""
    found: list[tuple[int, int, object]] = []
    for mapping in mappings:
        low, high = max(mapping.start, start), min(mapping.end, end)
        if found and found[-1][1:] == (low, mapping.backing):
            low = found.pop()[0]
        found.append((low, high, mapping.backing))
    return found


def open_mapped(pid: int, mapping: Mapping) -> FileSource | None:
    """Open the file of a mapping; return None for anonymous memory.

    ``/proc/PID/map_files`` opens the file even if it was removed or never had a name, which needs
    CAP_CHECKPOINT_RESTORE. Without that capability, its path is opened, if that is still the same file.

    Raises:
        DumpError: the file can't be opened, or is a device.
    """
    if mapping.file is None:
        return None
    found = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    failure: OSError | None = None
    for path in (found, mapping.path):
        try:
            status = os.stat(path)
        except OSError as error:
            failure = failure or error
            continue
        if path is not found and status.st_ino != mapping.file[1]:
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == _ZERO:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise DumpError(
                f"{mapping.start:#x}-{mapping.end:#x} of process {pid} is memory of a device, {mapping.path}",
                path=mapping.path,
                operation="open",
                hint="reading it may have side effects: omit it",
            )
        with suppress(OSError):
            return _opened(path)
    refused = from_oserror(failure or FileNotFoundError(), "open", mapping.path)
    refused.hint = "reading a file through a mapping of it needs the capability CAP_CHECKPOINT_RESTORE, or root"
    raise refused


def _opened(path: str) -> FileSource:
    fd = open_file(path)
    try:
        return FileSource(fd, describe(fd, path))
    except BaseException:
        os.close(fd)
        raise
