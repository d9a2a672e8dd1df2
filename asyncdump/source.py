"""A memory-mapped file as the kernel sees it: its kind, page size, holes and spans.

Nothing here, and nothing in an engine, reads source memory from user space: a source that is truncated while it is
mapped would kill the process with SIGBUS. Only the kernel dereferences it, and answers with an error instead.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

import msgspec

from asyncdump.errors import DumpError, SourceChangedError, explain
from asyncdump.linux import filesystem

MEMORY: Final = frozenset({"hugetlbfs", "tmpfs", "ramfs"})
"""Filesystems whose files live in memory: there is no disk to read ahead from and no cache to spoil."""

SMALL_PAGE: Final = 4096


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A range of bytes of a source; a hole holds no memory and reads as zeros."""

    offset: int
    length: int
    hole: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What tells whether a source is still the same: stat(2), times in nanoseconds since the epoch.

    What is stored through a mapping changes the time on few filesystems, and never on hugetlbfs.
    """

    inode: int
    size: int
    mtime_ns: int


class Source(msgspec.Struct, frozen=True, kw_only=True):
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
        if self.filesystem == "block device":
            return None
        return Identity(inode=self.inode, size=self.size, mtime_ns=self.mtime_ns)

    @property
    def in_memory(self) -> bool:
        return self.filesystem in MEMORY

    @property
    def has_holes(self) -> bool:
        return self.allocated < self.size


def open_source(path: str) -> int:
    """Open a source for reading and return its descriptor; the caller closes it.

    A fifo or a device can't make this call wait (O_NONBLOCK), and the source's access time is left as it was where
    the kernel allows that (O_NOATIME, owner and root only; open(2)).

    Raises:
        DumpError: it can't be opened, or is neither a regular file nor a block device.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    with explain("open", path):
        refuse_special(path, os.stat(path).st_mode)
        try:
            fd = os.open(path, flags | os.O_NOATIME)
        except OSError:
            fd = os.open(path, flags)
    try:
        refuse_special(path, os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def refuse_special(path: str, mode: int) -> None:
    """Raise `DumpError` unless ``mode`` (stat(2)) is that of a regular file or a block device."""
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise DumpError(
            f"{path} is a {_type_name(mode)}, not a file that can be dumped",
            path=path,
            operation="open",
            hint="name a regular file or a block device",
        )


def _type_name(mode: int) -> str:
    tests = {
        "folder": stat.S_ISDIR,
        "fifo": stat.S_ISFIFO,
        "socket": stat.S_ISSOCK,
        "character device": stat.S_ISCHR,
    }
    return next((name for name, is_type in tests.items() if is_type(mode)), "special file")


def describe(fd: int, path: str) -> Source:
    """Return what the kernel says of an open source.

    Raises:
        DumpError: the kernel doesn't say.
    """
    with explain("stat", path):
        status = os.fstat(fd)
        if stat.S_ISBLK(status.st_mode):
            size = os.lseek(fd, 0, os.SEEK_END)
            kind, page, allocated = "block device", SMALL_PAGE, size
        else:
            kind, block = filesystem(fd)
            size, allocated = status.st_size, status.st_blocks * 512
            page = block if kind == "hugetlbfs" else SMALL_PAGE
    return Source(
        path=path,
        filesystem=kind,
        page=page,
        size=size,
        allocated=allocated,
        device=status.st_dev,
        inode=status.st_ino,
        mtime_ns=status.st_mtime_ns,
        memfd=kind in MEMORY and path.startswith("/proc/") and _is_memfd(fd),
    )


def _is_memfd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
    except OSError:
        return False


def reopen(planned: Source) -> tuple[int, Source]:
    """Open a source that was planned and return its descriptor and what it is now.

    Raises:
        SourceChangedError: another file stands in its place, or it has shrunk.
        DumpError: it can't be opened.
    """
    fd = open_source(planned.path)
    try:
        now = describe(fd, planned.path)
        if (now.device, now.inode) != (planned.device, planned.inode):
            raise SourceChangedError(
                f"{planned.path} was replaced by another file after the run was planned",
                path=planned.path,
                operation="open",
                hint="run again: the new file will be dumped",
            )
        if now.size < planned.size:
            raise truncated(planned.path, now.size, planned.size)
    except BaseException:
        os.close(fd)
        raise
    return fd, now


def truncated(path: str, found: int, expected: int) -> SourceChangedError:
    """Return the error that says a source ended before its time; both figures are bytes."""
    return SourceChangedError(
        f"{path} was truncated while it was dumped: it ends at byte {found}, {expected} were expected",
        path=path,
        operation="read",
        hint="dump it again when its owner no longer resizes it",
    )


def find_spans(fd: int, source: Source, offset: int, end: int, *, shortest_hole: int = 1) -> Iterator[Span]:
    """Yield the data and the holes of ``[offset, end)`` bytes, in order and without gaps.

    Holes of less than ``shortest_hole`` bytes are counted as data. A hugetlbfs file reports itself as data throughout
    (it has no SEEK_HOLE), and so comes back as one span.
    """
    pending: Span | None = None
    for span in _extents(fd, source, offset, end):
        hole = span.hole and span.length >= shortest_hole
        if pending is not None and pending.hole == hole:
            pending = Span(offset=pending.offset, length=span.end - pending.offset, hole=hole)
            continue
        if pending is not None:
            yield pending
        pending = Span(offset=span.offset, length=span.length, hole=hole)
    if pending is not None:
        yield pending


def _extents(fd: int, source: Source, offset: int, end: int) -> Iterator[Span]:
    if not source.has_holes or source.filesystem == "hugetlbfs":
        if offset < end:
            yield Span(offset=offset, length=end - offset)
        return
    while offset < end:
        data = _seek(fd, offset, os.SEEK_DATA, end)
        if data > offset:
            yield Span(offset=offset, length=data - offset, hole=True)
        if data < end:
            hole = _seek(fd, data, os.SEEK_HOLE, end)
            yield Span(offset=data, length=hole - data)
            data = hole
        offset = data


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    try:
        found = os.lseek(fd, offset, whence)
    except OSError as error:
        # ENXIO: nothing but a hole from here on. Any other errno: the filesystem has no such seek, all of it is data.
        only_hole = whence == os.SEEK_DATA and error.errno == errno.ENXIO
        return end if only_hole or whence == os.SEEK_HOLE else offset
    # A hole is looked for from a byte of data: going forward at least one byte, this can't spin on a live file.
    return min(max(found, offset + (whence == os.SEEK_HOLE)), end)
