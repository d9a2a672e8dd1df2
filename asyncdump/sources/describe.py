"""What the kernel says about an open file: its kind, its page size, its size, and how much of it is allocated."""

from __future__ import annotations

import os
import stat
from typing import Final

from asyncdump.errors import DumpError, explain
from asyncdump.kernel.filesystems import traits
from asyncdump.kernel.linux import filesystem
from asyncdump.vocabulary.values import SMALL_PAGE, Source, Stat

_ADDRESSES: Final = frozenset({"mem", "pagemap", "kcore"})
"""Files of /proc in which an offset is an address, so that there is no first byte."""


def describe(fd: int, path: str) -> Source:
    """Return the description of an open source.

    Raises:
        DumpError: a call failed, or the source has no content as a file: a drive without a medium, a file of /proc with
            the memory of a process.
    """
    with explain("stat", path):
        status = os.fstat(fd)
        if stat.S_ISBLK(status.st_mode):
            size = os.lseek(fd, 0, os.SEEK_END)
            kind, page, allocated, sized = "block device", SMALL_PAGE, size, True
            if size == 0:
                raise DumpError(
                    f"{path} is a block device of 0 bytes: the drive is empty", path=path, operation="lseek"
                )
        else:
            kind, block = filesystem(fd)
            size, allocated = status.st_size, status.st_blocks * 512
            page = block if traits(kind).huge_pages else SMALL_PAGE
            if kind == "proc" and os.path.basename(os.path.realpath(path)) in _ADDRESSES:
                raise DumpError(
                    f"{path} is addressed by memory addresses: it has no start and no end",
                    path=path,
                    operation="open",
                    hint="specify the file that the memory is mapped from, as in /proc/PID/map_files",
                )
            sized = not traits(kind).generated and _is_true(fd, size, kind)
    return Source(
        path=path,
        filesystem=kind,
        page=page,
        size=size,
        allocated=allocated,
        device=status.st_dev,
        inode=status.st_ino,
        mtime_ns=status.st_mtime_ns,
        memfd=traits(kind).in_memory and path.startswith("/proc/") and _is_memfd(fd),
        sized=sized,
        stat=Stat(mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns),
    )


def _is_true(fd: int, size: int, kind: str) -> bool:
    """Return whether reads of a file end at its size; on well-known filesystems, without a call.

    Raises:
        OSError: its size is 0 and it can't be read, so it isn't an empty file.
    """
    if size and traits(kind).true_size:
        return True
    last = max(0, size - 1)
    try:
        found = last + len(os.pread(fd, 2, last))
    except OSError:
        if size:  # For example, because the last page is unreadable.
            return True
        raise
    # If they differ because the file was extended or truncated in between, its size is different now.
    return found == size or os.fstat(fd).st_size != size


def _is_memfd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
    except OSError:
        return False
