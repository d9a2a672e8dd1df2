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


class Source(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a source was when it was looked at.

    Attributes:
        path: as it was opened.
        filesystem: ``hugetlbfs``, ``tmpfs``, ``ext4`` and so on, or ``block device``.
        page: the bytes of one page of its mapping: 4096, or the size of a huge page.
        size: in bytes.
        allocated: the bytes that hold memory or disk blocks; less than ``size`` where there are holes.
        device, inode: the identity of the file (stat(2)).
        mtime_ns: the time of its last change, in nanoseconds since the epoch.
        memfd: True for a memfd, reached through ``/proc/PID/fd/N``.
        sized: False where ``size`` isn't what a read gives (``/proc``, ``/sys``, some of FUSE).
        found: whether a glob found it. A symbolic link in its place isn't followed: anybody could have put it there.
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
        if self.filesystem == "block device" or not self.sized:
            return None
        return Identity(inode=self.inode, size=self.size, mtime_ns=self.mtime_ns)

    @property
    def in_memory(self) -> bool:
        return self.filesystem in MEMORY

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
