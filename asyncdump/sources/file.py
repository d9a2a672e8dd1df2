"""A file or block device as a source: opened without blocking, read by the kernel, and checked for changes.

Neither this module nor any engine reads source memory from user space: if a source were truncated while it is mapped,
SIGBUS would kill the process. Only the kernel dereferences it, and returns an error instead.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import cached_property
from typing import Final

import msgspec

from asyncdump.errors import DumpError, SourceChangedError, explain, from_oserror
from asyncdump.kernel.filesystems import traits
from asyncdump.kernel.linux import close_quietly, read_at, read_past_cache
from asyncdump.kernel.pace import Pace, pace_of
from asyncdump.sources.describe import describe
from asyncdump.sources.extents import find_spans
from asyncdump.sources.source import replaced, truncated
from asyncdump.sources.unsized import gather
from asyncdump.text import as_path
from asyncdump.vocabulary.values import UNREADABLE, Source, Span

_UNREADABLE_HINT: Final = (
    "it has an unreadable page (see dmesg); to dump the rest with zeros in its place, pass {on_read_error=zero}"
)


def path_of(given: str | os.PathLike[str]) -> str:
    """Return a path that a user specified.

    Raises:
        DumpError: no file can have this path.
    """
    try:
        return as_path(given)
    except ValueError as error:
        raise DumpError(f"the path {error}", operation="open") from error


def open_file(path: str, *, flags: int = 0, follow: bool = True, folder: int | None = None) -> int:
    """Open a file for reading and return its descriptor; the caller closes it. Every file that is read is opened here.

    A fifo or a device in its place can't block this call (O_NONBLOCK) or become the controlling terminal (O_NOCTTY,
    open(2)).

    Args:
        path: the path, relative to the open ``folder``, if there is one.
        flags: additional flags: O_DIRECT, O_NOATIME.
        follow: whether a symbolic link as the last component is followed.
        folder: a descriptor of a directory.

    Raises:
        OSError: ELOOP for a link that must not be followed, and any error of open(2).
    """
    flags |= os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(path, flags if follow else flags | os.O_NOFOLLOW, dir_fd=folder)


def open_regular(path: str) -> int:
    """Open one of our own regular files, not a link, for reading; return its descriptor, which the caller closes.

    Raises:
        DumpError: it can't be opened, or isn't a regular file.
    """
    with explain("open", path):
        fd = open_file(path, follow=False)
    return regular(fd, path)


def regular(fd: int, path: str) -> int:
    """Return a descriptor if it is of a regular file; otherwise close it.

    Raises:
        DumpError: it isn't of a regular file.
    """
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise DumpError(f"{path} is a {_type_name(mode)}, not a regular file", path=path, operation="open")
    return fd


def open_source(path: str, *, follow: bool = True) -> int:
    """Open a source for reading and return its descriptor; the caller closes it.

    The access time of the source doesn't change if the kernel allows that (O_NOATIME, owner and root only; open(2)).

    Raises:
        DumpError: it can't be opened, or is neither a regular file nor a block device.
    """
    with explain("open", path):
        # Checked before, because opening a device may have side effects, and again after opening.
        refuse_special(path, os.stat(path, follow_symlinks=follow).st_mode)
        try:
            fd = open_file(path, flags=os.O_NOATIME, follow=follow)
        except OSError:
            fd = open_file(path, follow=follow)
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
            f"{path} is a {_type_name(mode)}, which can't be dumped",
            path=path,
            operation="open",
            hint="specify a regular file or a block device",
        )


def _type_name(mode: int) -> str:
    tests = {
        "directory": stat.S_ISDIR,
        "fifo": stat.S_ISFIFO,
        "socket": stat.S_ISSOCK,
        "character device": stat.S_ISCHR,
        "symbolic link": stat.S_ISLNK,
    }
    return next((name for name, is_type in tests.items() if is_type(mode)), "special file")


def look_at(path: str, *, follow: bool = True) -> Source:
    """Return the current description of the source at a path.

    Raises:
        DumpError: it can't be opened, or isn't a file that can be dumped.
    """
    source = _open(path, follow=follow)
    source.close()
    return source.described


def open_now(path: str, *, follow: bool = True) -> FileSource:
    """Open the source at a path; a file of unknown size is read into memory.

    Raises:
        DumpError: it can't be opened, or isn't a file that can be dumped.
    """
    source = _open(path, follow=follow)
    return source if source.described.sized else _gathered(source)


def reopen(planned: Source) -> FileSource:
    """Open a planned source; a file of unknown size is read into memory.

    Raises:
        SourceChangedError: another file is in its place, or it has shrunk.
        DumpError: it can't be opened.
    """
    return as_planned(_open(planned.path, follow=not planned.found), planned)


def as_planned(source: FileSource, planned: Source) -> FileSource:
    """Return an opened source if it is the planned one; it raises the same errors as `reopen`."""
    now = source.described
    if not (now.sized and planned.sized):  # Generated when it is read, including its inode number.
        return _gathered(source)
    try:
        if (now.device, now.inode) != (planned.device, planned.inode):
            raise replaced(planned.path)
        source.check_end(planned.size)
    except BaseException:
        source.close()
        raise
    source.since = planned
    return source


def _open(path: str, *, follow: bool) -> FileSource:
    return described(open_source(path, follow=follow), path, found=not follow)


def described(fd: int, path: str, *, found: bool = False) -> FileSource:
    """Return a source for a descriptor, which it takes over.

    Raises:
        DumpError: it can't be described or read.
    """
    try:
        return FileSource(fd, msgspec.structs.replace(describe(fd, path), found=found))
    except BaseException:
        os.close(fd)
        raise


def _gathered(source: FileSource) -> FileSource:
    described = source.described
    try:
        memory = gather(source.fd, described.path)
    finally:
        source.close()
    try:
        held = describe(memory, described.path)
    except BaseException:
        os.close(memory)
        raise
    return FileSource(memory, msgspec.structs.replace(held, sized=True, found=described.found))


class FileSource:
    """An open file or block device: an `OpenSource` whose descriptor it owns.

    Attributes:
        since: the description that it must still match at the end: that of the plan, or else that of its opening.
    """

    def __init__(self, fd: int, described: Source) -> None:
        self.fd = fd
        self.described: Final = described
        self.since = described
        # Reading from a disk must not fill the page cache.
        self._read: Final = read_at if described.in_memory else read_past_cache

    @cached_property
    def pace(self) -> Pace | None:
        """The I/O size for its device; None for a file in memory."""
        return None if self.described.in_memory else pace_of(self.fd)

    def spans(self, offset: int, end: int, *, shortest_hole: int = 1) -> Iterator[Span]:
        return find_spans(self.fd, self.described, offset, end, shortest_hole=shortest_hole)

    def read(self, view: memoryview, offset: int) -> int:
        return self._read(self.fd, view, offset)

    def ended(self, at: int, expected: int) -> DumpError:
        return truncated(self.described.path, at, expected)

    def failure(self, error: OSError, operation: str, offset: int) -> DumpError:
        failure = from_oserror(error, f"{operation} at byte {offset}", self.described.path)
        failure.operation = operation
        if error.errno in UNREADABLE:
            failure.hint = _UNREADABLE_HINT
        return failure

    def check_end(self, end: int) -> None:
        if self.described.filesystem == "block device":
            return
        size = os.fstat(self.fd).st_size
        if size < end:
            raise self.ended(size, end)

    def check_still_valid(self, end: int) -> None:
        """Check that the source still has what it had when it was planned, up to byte ``end``.

        A source that was truncated and grown again has lost its memory and reads as zeros, but has the same size. The
        loss shows in fewer allocated blocks. On hugetlbfs, the mtime shows it, too, because ftruncate(2) changes it and
        stores don't. Both come from one fstat(2). Memory that was lost and allocated again before that isn't detected
        elsewhere, and on hugetlbfs not if truncate(2) was used. Punched-out pages look the same as a truncation.

        Raises:
            SourceChangedError: it is shorter, or has lost memory.
        """
        since = self.since
        if since.filesystem == "block device":
            return
        status = os.fstat(self.fd)
        if status.st_size < end:
            raise self.ended(status.st_size, end)
        shorter = max(0, since.size - status.st_size)  # What was cut off past ``end`` wasn't to be dumped.
        lost = status.st_blocks * 512 < min(since.allocated, since.size) - shorter
        if since.in_huge_pages:
            lost = lost or (status.st_size == since.size and status.st_mtime_ns != since.mtime_ns)
        elif not since.in_memory:
            # Disk filesystems allocate and free blocks that contain no data of the file. Some free none within a file
            # without holes.
            lost = lost and traits(since.filesystem).keeps_blocks and not since.has_holes
        if lost:
            raise SourceChangedError(
                f"{since.path} lost memory while it was dumped: it was truncated and grown again, or pages punched out",
                path=since.path,
                operation="read",
                hint="dump it again when its owner has stopped resizing it",
            )

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close_quietly(fd)
