"""What /proc says of other processes: who has a file mapped, and which start of the system this is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

_PIECE: Final = 64 << 10
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STARTED: Final = 19
"""The place of ``starttime`` behind the name of the program, in proc_pid_stat(5)."""


FileKey = tuple[int, int]
"""A file as stat(2) numbers it: its device and its inode."""


class Mapped(NamedTuple):
    """One line of proc_pid_maps(5), and whose it is.

    Attributes:
        pid, comm: the process and its name, as bytes.
        started: when it began, in seconds since the system was started.
        address, offset, length: where the range begins in its memory and in the file, and its bytes.
        shared: whether it is a MAP_SHARED one.
    """

    pid: int
    comm: bytes
    started: float
    address: int
    offset: int
    length: int
    shared: bool


def boot_id() -> str:
    """Return what names this start of the system, or an empty string where nothing does (random(4))."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def find_mappings(
    files: Iterable[FileKey], seconds: float, ended: Callable[[], bool] = lambda: False
) -> Iterator[tuple[FileKey, Mapped]]:
    """Yield who has which of some files mapped, this process left out.

    What can't be looked into is left out too: processes of other users take CAP_SYS_PTRACE, and some end meanwhile.

    Args:
        files: the files that are looked for.
        seconds: how long to look at most; ``ended`` may end it sooner.

    Raises:
        TimeoutError: there were processes still to be looked at.
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
            raise TimeoutError(f"not all processes could be looked at in {seconds:g} s")
        if pid != own:
            with suppress(OSError, ValueError, IndexError):
                yield from _mappings_of(int(pid), wanted, devices)


def _processes() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def _column(file: FileKey) -> bytes:
    """Return a file as a line of maps shows it."""
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
    """Yield the lines of a process's maps that may hold one of some words: hardly any do, and none else is looked at.

    The kernel gives a page of them a call: other threads go on between two.
    """
    with open(f"/proc/{pid}/maps", "rb", buffering=0) as maps:
        rest = b""
        while piece := maps.read(_PIECE):
            whole, end, rest = (rest + piece).rpartition(b"\n")
            if end and any(word in whole for word in words):
                yield from whole.split(b"\n")


def _owner(pid: int) -> tuple[bytes, float]:
    """Return the name of a process and when it began, in seconds since the system was started."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        content = file.read()
    begin, end = content.index(b"("), content.rindex(b")")  # A name may hold brackets.
    return content[begin + 1 : end], int(content[end + 1 :].split()[_STARTED]) / _TICKS
