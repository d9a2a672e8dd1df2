"""The frozen values that cross seams: sources, spans, unreadable ranges, and the values of settings."""

from __future__ import annotations

import errno
from typing import Final, Literal

import msgspec

from asyncdump.errors import EHWPOISON
from asyncdump.kernel.filesystems import traits

SMALL_PAGE: Final = 4096


class Span(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A range of bytes of a source; a hole has no memory allocated and reads as zeros."""

    offset: int
    length: int
    hole: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length


class Identity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What identifies the state of a source (stat(2)); the mtime is in nanoseconds since the epoch.

    Stores through a mapping change the mtime on few filesystems, and never on hugetlbfs.
    """

    inode: int
    size: int
    mtime_ns: int


class Stat(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The type, the owner and the mtime of a source (stat(2)).

    Attributes:
        mode: its type and permissions; ``stat.filemode`` shows them.
        uid, gid: the IDs of its owner and group.
        mtime_ns: its mtime, in nanoseconds since the epoch.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int


class ProcessMapping(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A range of a source that a process had mapped (proc_pid_maps(5)).

    Attributes:
        pid: the process; comm: its name, at most 15 bytes, made printable.
        started: when the process started, in seconds since boot; together with ``pid``, this identifies the process.
        address: the start of the range in the memory of the process.
        offset: the start of the range in the source, in bytes.
        length: the length of the range, in bytes.
        inode: the inode of the source.
        shared: whether stores of the process go into the source (MAP_SHARED).
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
    """A range of addresses of one process, as it was when it was examined.

    Attributes:
        pid: the process.
        address: the start of the range.
        started: when the process was started, in clock ticks since boot (proc_pid_stat(5)).
        executed: a digest that differs for each program that the process executes (execve(2)).
    """

    pid: int
    address: int
    started: int
    executed: str


class Source(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A source, as it was when it was examined.

    Attributes:
        path: its path; for the memory of a process, ``pid 4242 0x7f0000000000-0x7f0000200000``.
        filesystem: ``hugetlbfs``, ``tmpfs``, ``ext4`` and so on, or ``block device``, or ``process``.
        page: the page size of its mapping in bytes: 4096, or the size of a huge page.
        size: its size, in bytes.
        allocated: the bytes for which memory or disk blocks are allocated; less than ``size`` if it has holes.
        device, inode: the identity of the file (stat(2)).
        mtime_ns: its mtime, in nanoseconds since the epoch.
        memfd: True for a memfd, opened through ``/proc/PID/fd/N``.
        sized: False if reading yields more or less than ``size`` bytes (``/proc``, ``/sys``, some of FUSE).
        found: whether a glob found it. If so, a symbolic link in its place isn't followed, because anyone could have
            put it there.
        stat: its type, owner and mtime, or None if it isn't a file.
        process: the range of memory, if it is memory of a process.
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
        """Which kind of source it is, and so which module opens it."""
        return "file" if self.process is None else "process"

    @property
    def label(self) -> str:
        """What the names of dumps are derived from: its path, or ``pid-4242-0x7f0000000000``."""
        return self.path if self.process is None else f"pid-{self.process.pid}-{self.process.address:#x}"

    @property
    def kind(self) -> str:
        """The kind of source for display: ``hugetlbfs 2 MiB``, ``memfd``, ``ext4``."""
        if self.in_huge_pages:
            size = f"{self.page >> 30} GiB" if self.page >> 30 else f"{self.page >> 20} MiB"
            return f"memfd {size}" if self.memfd else f"{self.filesystem} {size}"
        return "memfd" if self.memfd else self.filesystem

    @property
    def identity(self) -> Identity | None:
        """What shows whether it has changed, or None if nothing does."""
        if self.filesystem == "block device" or self.process is not None or not self.sized:
            return None
        return Identity(inode=self.inode, size=self.size, mtime_ns=self.mtime_ns)

    @property
    def in_memory(self) -> bool:
        return traits(self.filesystem).in_memory or self.process is not None

    @property
    def in_huge_pages(self) -> bool:
        """Whether it is a file of huge pages: it has no SEEK_HOLE, and reading a mapped hole takes a page of a pool."""
        return traits(self.filesystem).huge_pages

    @property
    def has_holes(self) -> bool:
        return self.allocated < self.size


Method = Literal["reflink", "direct", "sendfile", "splice", "mmap", "read"]


Choice = Literal["auto", "reflink", "direct", "sendfile", "splice", "mmap", "read"]
"""A method, or ``auto`` to let the kernel decide."""


OnReadError = Literal["fail", "zero"]


UNREADABLE: Final = frozenset({errno.EIO, EHWPOISON, errno.EFAULT})
"""The errnos of an unreadable page: EIO and EHWPOISON from a read, EFAULT from a call that reads a mapping."""


class BadRange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A range of a source that could not be read, and is zeros in the dump.

    Attributes:
        offset: its start in the source, in bytes.
        length: its length, in bytes.
        errno: the errno of reading it.
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
