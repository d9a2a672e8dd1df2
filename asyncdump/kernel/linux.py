"""The system calls that Python's ``os`` lacks, each with its man page.

Each call releases the GIL. If it fails, it raises ``OSError`` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from contextlib import suppress
from typing import Any, Final

from asyncdump.kernel.filesystems import NAMES

_libc = ctypes.CDLL(None, use_errno=True)

RWF_DONTCACHE: Final = 0x80
"""preadv2(2), pwritev2(2): buffered I/O that leaves no page cache behind (Linux 6.14)."""

TRUE_ERRORS: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFAULT,
        errno.EFBIG,
        errno.EHWPOISON if hasattr(errno, "EHWPOISON") else 133,
        errno.EINTR,
        errno.EIO,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPIPE,
        errno.EROFS,
        errno.ESTALE,
    }
)
"""Errnos that concern the data or the device, and are errors wherever they occur.

A call or flag is *optional* if a plainer one does the same. If an optional call fails with any other errno (EINVAL,
ENOSYS, EOPNOTSUPP from a kernel or a filesystem; EPERM, EACCES from a sandbox), asyncdump continues without it, and the
plainer call reports the error, if there is one. Optional are the flags of preadv2(2) and pwritev2(2), renameat2(2),
O_TMPFILE, O_NOATIME and O_DIRECT, flock(2), and the calls that move bytes in the kernel (copy_file_range(2),
sendfile(2), splice(2), tee(2), vmsplice(2)). Advisory calls may fail with any errno at all: sync_file_range(2),
posix_fadvise(2), madvise(2), F_SETPIPE_SZ, sched_setscheduler(2), sched_getaffinity(2), statfs(2).
"""

SPLICE_F_NONBLOCK: Final = 2
"""splice(2), vmsplice(2): fail with EAGAIN instead of waiting for a pipe."""

SYNC_FILE_RANGE_WAIT_BEFORE: Final = 1
SYNC_FILE_RANGE_WRITE: Final = 2
SYNC_FILE_RANGE_WAIT_AFTER: Final = 4


def _function(name: str, *argtypes: Any, restype: Any = ctypes.c_int) -> Any:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    function.restype = restype
    return function


_pread = _function("pread64", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, restype=ctypes.c_ssize_t)
_fstatfs = _function("fstatfs", ctypes.c_int, ctypes.c_void_p)
_syncfs = _function("syncfs", ctypes.c_int)
_sync_file_range = _function("sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_vmsplice = _function(
    "vmsplice", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint, restype=ctypes.c_ssize_t
)
_renameat2 = _function("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_mmap = _function(
    "mmap",
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
    restype=ctypes.c_void_p,
)
_munmap = _function("munmap", ctypes.c_void_p, ctypes.c_size_t)
_memcmp = _function("memcmp", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _checked(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer


def close_quietly(fd: int) -> None:
    """Close a descriptor and ignore errors: nothing was written through it, or all writes are known to be good.

    close(2) releases the number even if it fails, and another thread may get that number immediately. Never call this
    twice: callers forget the number first.
    """
    with suppress(OSError):
        os.close(fd)


def some(count: int) -> int:
    """Return the count that a call returned, if it is positive: a zero would make a loop spin forever.

    Raises:
        OSError: EIO, if the call neither made progress nor failed.
    """
    if count <= 0:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return count


def filesystem(fd: int) -> tuple[str, int]:
    """Return the name and the block size in bytes of the filesystem that ``fd`` is on (fstatfs(2)).

    On hugetlbfs, the block size is the size of a huge page. A filesystem that isn't in `FILESYSTEMS` is named by its
    magic number, and ``unknown`` if fstatfs(2) fails.
    """
    words = (ctypes.c_long * 32)()
    if _fstatfs(fd, words) < 0:
        return "unknown", os.fstat(fd).st_blksize
    magic = words[0] & 0xFFFFFFFF
    return NAMES.get(magic, hex(magic)), words[1]


def syncfs(fd: int) -> None:
    """Write back the entire filesystem that ``fd`` is on and flush its device (syncfs(2)).

    Since Linux 5.8, it fails if write-back of any file of the filesystem has failed since ``fd`` was opened.
    """
    _checked(_syncfs(fd))


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """Start or await write-back of a range of bytes, without any guarantee of durability (sync_file_range(2))."""
    _checked(_sync_file_range(fd, offset, length, flags))


def rename_new(folder: int, old: str, new: str) -> None:
    """Rename a file within an open directory, unless the new name exists (renameat2(2), RENAME_NOREPLACE).

    Raises:
        FileExistsError: the new name exists.
        OSError: EINVAL if the filesystem doesn't support RENAME_NOREPLACE.
    """
    _checked(_renameat2(folder, os.fsencode(old), folder, os.fsencode(new), 1))


def map_for_kernel(fd: int, length: int, offset: int) -> int:
    """Map a file read-only and shared, and return the address (mmap(2)).

    The address is for system calls only. Dereferencing it would be a SIGBUS if the file is truncated.
    """
    address = _mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address == ctypes.c_void_p(-1).value:
        _checked(-1)
    return int(address)


def unmap(address: int, length: int) -> None:
    """Undo `map_for_kernel` (munmap(2)); pages that are still in a pipe stay valid."""
    _checked(_munmap(address, length))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def vmsplice(pipe: int, address: int, length: int, flags: int = 0) -> int:
    """Pass pages of this process to a pipe without copying them; return how many bytes it took (vmsplice(2)).

    Only the kernel looks up the memory: if a page is gone, the call fails with EFAULT, and no signal is sent.
    """
    vector = _Iovec(address, length)
    return _checked(_vmsplice(pipe, ctypes.byref(vector), 1, flags))


def read_past_cache(fd: int, view: memoryview, offset: int) -> int:
    """Read into ``view`` from byte ``offset`` and return how many bytes were read.

    If the kernel supports RWF_DONTCACHE (preadv2(2)), pages that only this call brought into the page cache are dropped
    from it again.
    """
    if not _refused:
        try:
            return os.preadv(fd, [view], offset, RWF_DONTCACHE)
        except OSError as error:
            if error.errno in TRUE_ERRORS:
                raise
    return read_at(fd, view, offset)


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Read into ``view`` from byte ``offset`` and return how many bytes were read.

    Python can read into a buffer only with preadv2(2), which a sandbox may deny. Then pread(2) decides.
    """
    if not _refused:
        try:
            return os.preadv(fd, [view], offset)
        except OSError as error:
            if error.errno in TRUE_ERRORS:
                raise
    got = _checked(_pread(fd, address_of(view), len(view), offset))
    if got and not _refused:
        _refused.append("preadv2")
    return got


_refused: Final[list[str]] = []
"""Not empty once preadv2(2) was denied to this process, so that it isn't tried before each read."""


def copy_by_kernel(data: memoryview, target: memoryview) -> None:
    """Copy our own ``data`` through a pipe into ``target``, a mapping whose pages may be missing.

    Raises:
        OSError: EFAULT if the kernel can't provide a page. Touching that page in Python would be a SIGBUS.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        with suppress(OSError):  # EPERM: the user's pipe pages are exhausted. A small pipe is only slower.
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
        address = address_of(data)
        done = 0
        while done < len(data):
            ready = done + some(vmsplice(writing, address + done, len(data) - done))
            while done < ready:
                done += some(os.readv(reading, [target[done:ready]]))
    finally:
        close_quietly(reading)
        close_quietly(writing)


def address_of(data: memoryview) -> int:
    """Return the address of our own writable memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) if data else 0


def same(data: memoryview, other: memoryview) -> bool:
    """Return whether two pieces of *our own* memory of equal length have the same content (memcmp(3))."""
    return not data or _memcmp(address_of(data), address_of(other), len(data)) == 0


def is_zero(address: int, length: int) -> bool:
    """Return whether ``length`` bytes of *our own* memory are all zero (at least 8, a multiple of 8).

    The block is compared with itself, shifted by one word: that needs no second block of zeros in the CPU cache.
    """
    first = ctypes.c_uint64.from_address(address).value
    return first == 0 and _memcmp(address, address + 8, length - 8) == 0
