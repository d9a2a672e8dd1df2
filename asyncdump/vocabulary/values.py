"""The frozen values that cross seams: what a source is, what is asked for, what could not be read."""

from __future__ import annotations

import errno
from typing import Final, Literal

import msgspec

from asyncdump.errors import (
    EHWPOISON,
)

MEMORY: Final = frozenset({"hugetlbfs", "tmpfs", "ramfs"})
"""Filesystems whose files live in memory: there is no disk to read ahead from and no cache to spoil."""


SMALL_PAGE: Final = 4096


class Span(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A range of bytes of a source; a hole holds no memory and reads as zeros."""

    offset: int
    length: int
    hole: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length


class Identity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What tells whether a source is still the same: stat(2), times in nanoseconds since the epoch.

    What is stored through a mapping changes the time on few filesystems, and never on hugetlbfs.
    """

    inode: int
    size: int
    mtime_ns: int


class Stat(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Whose a source was, and since when (stat(2)).

    Attributes:
        mode: its type and permissions; ``stat.filemode`` shows them.
        uid, gid: the numbers of its owner and group.
        mtime_ns: the time of its last change, in nanoseconds since the epoch.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int


class ProcessMapping(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A range of a source that a process had mapped (proc_pid_maps(5)).

    Attributes:
        pid: the process; comm: its name, at most 15 bytes, escaped where that can't be shown.
        started: when the process began, in seconds since the system was started: with ``pid`` this names one process.
        address: where in the memory of the process the range begins.
        offset: where in the source it begins, in bytes.
        length: in bytes.
        inode: of the source.
        shared: whether what the process stores there goes into the source (MAP_SHARED).
    """

    pid: int
    comm: str
    started: float
    address: int
    offset: int
    length: int
    inode: int
    shared: bool


class ProcessRange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A range of addresses of one process, as it was when it was looked at.

    Attributes:
        pid: its number.
        address: where the range begins.
        started: when the process was started, in clock ticks since the system was (proc_pid_stat(5)).
        executed: differs for each program that the process executes (execve(2)); a digest.
    """

    pid: int
    address: int
    started: int
    executed: str


class Source(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a source was when it was looked at.

    Attributes:
        path: as it was opened; of memory of a process, ``pid 4242 0x7f0000000000-0x7f0000200000``.
        filesystem: ``hugetlbfs``, ``tmpfs``, ``ext4`` and so on, or ``block device``, or ``process``.
        page: the bytes of one page of its mapping: 4096, or the size of a huge page.
        size: in bytes.
        allocated: the bytes that hold memory or disk blocks; less than ``size`` where there are holes.
        device, inode: the identity of the file (stat(2)).
        mtime_ns: the time of its last change, in nanoseconds since the epoch.
        memfd: True for a memfd, reached through ``/proc/PID/fd/N``.
        sized: False where ``size`` isn't what a read gives (``/proc``, ``/sys``, some of FUSE).
        found: whether a glob found it. A symbolic link in its place isn't followed: anybody could have put it there.
        stat: whose it is, or None for what is no file.
        process: the range of memory that it is, unless it is a file.
    """

    path: str
    filesystem: str
    page: int
    size: int
    allocated: int
    device: int
    inode: int
    mtime_ns: int
    memfd: bool = False
    sized: bool = True
    found: bool = False
    stat: Stat | None = None
    process: ProcessRange | None = None

    @property
    def scheme(self) -> Literal["file", "process"]:
        """What opens it."""
        return "file" if self.process is None else "process"

    @property
    def label(self) -> str:
        """What names of dumps are made from: its path, or ``pid-4242-0x7f0000000000``."""
        return self.path if self.process is None else f"pid-{self.process.pid}-{self.process.address:#x}"

    @property
    def kind(self) -> str:
        """The kind of file for people: ``hugetlbfs 2 MiB``, ``memfd``, ``ext4``."""
        if self.filesystem == "hugetlbfs":
            size = f"{self.page >> 30} GiB" if self.page >> 30 else f"{self.page >> 20} MiB"
            return f"memfd {size}" if self.memfd else f"hugetlbfs {size}"
        return "memfd" if self.memfd else self.filesystem

    @property
    def identity(self) -> Identity | None:
        """What tells whether it is still the same, or None where nothing does."""
        if self.filesystem == "block device" or self.process is not None or not self.sized:
            return None
        return Identity(inode=self.inode, size=self.size, mtime_ns=self.mtime_ns)

    @property
    def in_memory(self) -> bool:
        return self.filesystem in MEMORY or self.process is not None

    @property
    def in_huge_pages(self) -> bool:
        """Whether it is a file of huge pages: it doesn't list its holes, and mapping one takes a page from the pool."""
        return self.filesystem == "hugetlbfs"

    @property
    def has_holes(self) -> bool:
        return self.allocated < self.size


Method = Literal["reflink", "direct", "sendfile", "splice", "mmap", "read"]


Choice = Literal["auto", "reflink", "direct", "sendfile", "splice", "mmap", "read"]
"""A method, or ``auto`` to let the kernel decide."""


OnReadError = Literal["fail", "zero"]


UNREADABLE: Final = frozenset({errno.EIO, EHWPOISON, errno.EFAULT})
"""What the kernel answers where a page can't be read: by a call that reads, by one that was handed a mapping of it."""


class BadRange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A range of a source that could not be read: in the dump it is zeros.

    Attributes:
        offset: where it begins in the source, in bytes.
        length: in bytes.
        errno: the kernel's answer to reading it.
    """

    offset: int
    length: int
    errno: int

    @property
    def end(self) -> int:
        return self.offset + self.length


Checksum = Literal["xxh128", "blake3", "sha256", "none"]


OnError = Literal["continue", "abort"]


Concurrency = int | Literal["auto"]


STANDARD_OUTPUT: Final = "-"
