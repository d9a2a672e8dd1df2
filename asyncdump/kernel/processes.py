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
    wanted = {_column(file): file for file in files}
    devices = {column.partition(b" ")[0] for column in wanted}
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


def _column(file: FileKey) -> bytes:
    """Return a file in the notation of a line of maps."""
    device, inode = file
    return b"%02x:%02x %d" % (os.major(device), os.minor(device), inode)


def _mappings_of(
    pid: int, wanted: Mapping[bytes, FileKey], devices: Collection[bytes]
) -> Iterator[tuple[FileKey, Mapped]]:
    owner: tuple[bytes, float] | None = None
    for line in _lines(pid, devices):
        fields = line.split(None, 5)
        file = wanted.get(b" ".join(fields[3:5])) if len(fields) > 4 else None  # noqa: PLR2004 (device, inode)
        if file is None:
            continue
        owner = owner or _owner(pid)
        begin, _, end = fields[0].partition(b"-")
        address = int(begin, 16)
        yield (
            file,
            Mapped(
                pid=pid,
                comm=owner[0],
                started=owner[1],
                address=address,
                offset=int(fields[2], 16),
                length=int(end, 16) - address,
                shared=fields[1].endswith(b"s"),
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
