"""What the kernel says of an open file: its kind, its page size, its size and what of it is allocated."""

from __future__ import annotations

import os
import stat
from typing import Final

from asyncdump.errors import DumpError, explain
from asyncdump.kernel.linux import filesystem
from asyncdump.vocabulary.values import MEMORY, SMALL_PAGE, Source, Stat

_GENERATED: Final = frozenset(
    {
        *("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "configfs", "securityfs", "selinuxfs"),
        *("efivarfs", "pstore", "bpf", "resctrl", "binfmt_misc", "mqueue", "apparmorfs", "fusectl"),
    }
)
"""Filesystems that make up content when it is read: what stat(2) says of its size is 0, or a page, or the most."""

_TRUE_SIZES: Final = MEMORY | {
    *("ext4", "xfs", "btrfs", "bcachefs", "ocfs2", "zfs", "f2fs", "nfs", "smb", "cifs", "overlayfs", "vfat", "exfat")
}
"""Filesystems whose reads end where stat(2) says. Others are asked, by a read of the last byte."""

_ADDRESSES: Final = frozenset({"mem", "pagemap", "kcore"})
"""Files of /proc in which a position is an address: there is no first byte to begin at."""


def describe(fd: int, path: str) -> Source:
    """Return what the kernel says of an open source.

    Raises:
        DumpError: the kernel doesn't say, or no byte can be read of it: a drive without a medium, memory of a process.
    """
    with explain("stat", path):
        status = os.fstat(fd)
        if stat.S_ISBLK(status.st_mode):
            size = os.lseek(fd, 0, os.SEEK_END)
            kind, page, allocated, sized = "block device", SMALL_PAGE, size, True
            if size == 0:
                raise DumpError(f"{path} is a block device of 0 bytes: nothing is in it", path=path, operation="lseek")
        else:
            kind, block = filesystem(fd)
            size, allocated = status.st_size, status.st_blocks * 512
            page = block if kind == "hugetlbfs" else SMALL_PAGE
            if kind == "proc" and os.path.basename(os.path.realpath(path)) in _ADDRESSES:
                raise DumpError(
                    f"{path} holds memory by its addresses: it has no first byte and no end",
                    path=path,
                    operation="open",
                    hint="name the file that the memory is mapped from, as in /proc/PID/map_files",
                )
            sized = kind not in _GENERATED and _is_true(fd, size, kind)
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
        sized=sized,
        stat=Stat(mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns),
    )


def _is_true(fd: int, size: int, kind: str) -> bool:
    """Tell whether reads of a file end where its size says, without a call where that's known.

    Raises:
        OSError: it has a size of 0 and can't be read: that isn't an empty file.
    """
    if size and kind in _TRUE_SIZES:
        return True
    last = max(0, size - 1)
    try:
        found = last + len(os.pread(fd, 2, last))
    except OSError:
        if size:  # The last page can't be read, for one.
            return True
        raise
    # One that was written to, or truncated, between the two looks has another size by now.
    return found == size or os.fstat(fd).st_size != size


def _is_memfd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
    except OSError:
        return False
