"""What /proc says about other processes: which of them have a file mapped; and which boot of the system this is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

_PIECE: Final = 64 << 10
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STARTED: Final = 19
"""The index of ``starttime`` among the fields after the program name, in proc_pid_stat(5)."""


FileKey = tuple[int, int]
"""A file, identified by its device and inode (stat(2))."""


class Mapped(NamedTuple):
    """One line of proc_pid_maps(5), with its process.

    Attributes:
        pid, comm: the process and its name, as bytes.
        started: when the process started, in seconds since boot.
        address, offset, length: the start of the range in memory and in the file, and its length in bytes.
        shared: whether it is a MAP_SHARED mapping.
    """

    pid: int
    comm: bytes
    started: float
    address: int
    offset: int
    length: int
    shared: bool


class Line(NamedTuple):
    """One line of proc_pid_maps(5): what is mapped from ``start`` up to ``end``; ``inode`` is 0 without a file."""

    start: int
    end: int
    permissions: bytes
    offset: int
    device: bytes
    inode: int
    path: bytes


def parsed(line: bytes) -> Line:
    """Return the parts of a line of maps.

    Raises:
        ValueError: it isn't such a line.
    """
    span, permissions, offset, device, inode, *path = line.split(None, 5)
    start, _, end = span.partition(b"-")
    name = path[0].rstrip(b"\n") if path else b""
    return Line(int(start, 16), int(end, 16), permissions, int(offset, 16), device, int(inode), name)


def boot_id() -> str:
    """Return the ID of this boot (random(4)), or an empty string if it isn't available."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def find_mappings(
    files: Iterable[FileKey], seconds: float, ended: Callable[[], bool] = lambda: False
) -> Iterator[tuple[FileKey, Mapped]]:
    """Yield the mappings of some files in other processes.

    Processes that can't be examined are skipped: those of other users without CAP_SYS_PTRACE, and those that exit
    meanwhile.

    Args:
        files: the files to search for.
        seconds: the time limit; ``ended`` may stop the search earlier.

    Raises:
        TimeoutError: the time limit was reached before all processes were examined.
    """
    wanted = {(b"%02x:%02x" % (os.major(device), os.minor(device)), inode): (device, inode) for device, inode in files}
    devices = {device for device, _ in wanted}
    if not wanted:
        return
    until, own = time.monotonic() + seconds, str(os.getpid())
    for pid in _processes():
        if ended():
            return
        if time.monotonic() > until:
            raise TimeoutError(f"not all processes could be examined in {seconds:g} s")
        if pid != own:
            with suppress(OSError, ValueError, IndexError):
                yield from _mappings_of(int(pid), wanted, devices)


def _processes() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def _mappings_of(
    pid: int, wanted: Mapping[tuple[bytes, int], FileKey], devices: Collection[bytes]
) -> Iterator[tuple[FileKey, Mapped]]:
    owner: tuple[bytes, float] | None = None
    for line in map(parsed, _lines(pid, devices)):
        file = wanted.get((line.device, line.inode))
        if file is None:
            continue
        owner = owner or _owner(pid)
        yield (
            file,
            Mapped(
                pid=pid,
                comm=owner[0],
                started=owner[1],
                address=line.start,
                offset=line.offset,
                length=line.end - line.start,
                shared=line.permissions.endswith(b"s"),
            ),
        )


def _lines(pid: int, words: Collection[bytes]) -> Iterator[bytes]:
    """Yield the lines of pieces of a process's maps that contain one of some words; other pieces aren't even split.

    Each read returns at most a page of lines, and other threads run between two reads.
    """
    with open(f"/proc/{pid}/maps", "rb", buffering=0) as maps:
        rest = b""
        while piece := maps.read(_PIECE):
            whole, end, rest = (rest + piece).rpartition(b"\n")
            if end and any(word in whole for word in words):
                yield from whole.split(b"\n")


def _owner(pid: int) -> tuple[bytes, float]:
    """Return the name of a process and when it started, in seconds since boot."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        content = file.read()
    begin, end = content.index(b"("), content.rindex(b")")  # A name may contain parentheses.
    return content[begin + 1 : end], int(content[end + 1 :].split()[_STARTED]) / _TICKS
