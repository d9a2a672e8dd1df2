"""The few system calls that Python's ``os`` lacks, each with its man page.

Each call releases the GIL. A failing call raises ``OSError`` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
"""What a call says of the data or the device. Where it is *optional*, which means that there is a plainer one that does
as well, any other errno (EINVAL, ENOSYS, EOPNOTSUPP of a kernel or a filesystem; EPERM, EACCES of a sandbox) says: do
without. The plainer call then has the error, if there is one. Optional are the flags of preadv2(2) and pwritev2(2),
renameat2(2), O_TMPFILE, O_NOATIME and O_DIRECT, flock(2), the calls that move bytes by themselves (copy_file_range(2),
sendfile(2), splice(2), tee(2), vmsplice(2)), and, with any errno at all, all advice: sync_file_range(2),
posix_fadvise(2), madvise(2), F_SETPIPE_SZ, sched_setscheduler(2), sched_getaffinity(2), statfs(2).
"""

SPLICE_F_NONBLOCK: Final = 2
"""splice(2), vmsplice(2): fail with EAGAIN rather than wait for a pipe."""

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
    """Close a descriptor whose close has nothing to tell: nothing was written through it, or all of that is proved.

    It is closed whatever the call answers: never call this twice, the number may be somebody else's by then. Who calls
    this forgets the number first.
    """
    with suppress(OSError):
        os.close(fd)


def some(count: int) -> int:
    """Return a count that a call gave, if it is more than none: none would make a loop spin for ever.

    Raises:
        OSError: EIO, for a call that said neither that it did something nor why it didn't.
    """
    if count <= 0:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return count


def filesystem(fd: int) -> tuple[str, int]:
    """Return the name of the filesystem that ``fd`` is on and its block size in bytes (fstatfs(2)).

    On hugetlbfs the block size is the size of a huge page. A filesystem unknown here is named by its magic number, or
    ``unknown`` where nothing tells.
    """
    words = (ctypes.c_long * 32)()
    if _fstatfs(fd, words) < 0:
        return "unknown", os.fstat(fd).st_blksize
    magic = words[0] & 0xFFFFFFFF
    return NAMES.get(magic, hex(magic)), words[1]


def syncfs(fd: int) -> None:
    """Write back all of the filesystem that ``fd`` is on and flush its device (syncfs(2)).

    Since Linux 5.8 it fails when write-back of any of its files failed since ``fd`` was opened.
    """
    _checked(_syncfs(fd))


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """Start or await write-back of a range of bytes, without any promise of durability (sync_file_range(2))."""
    _checked(_sync_file_range(fd, offset, length, flags))


def rename_new(folder: int, old: str, new: str) -> None:
    """Rename a file within an open folder, unless the new name is taken (renameat2(2), RENAME_NOREPLACE).

    Raises:
        FileExistsError: the new name is taken.
        OSError: EINVAL where the filesystem can't promise that.
    """
    _checked(_renameat2(folder, os.fsencode(old), folder, os.fsencode(new), 1))


def map_for_kernel(fd: int, length: int, offset: int) -> int:
    """Map a file read-only and shared, and return the address (mmap(2)): for calls that take one, not to be read."""
    address = _mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address == ctypes.c_void_p(-1).value:
        _checked(-1)
    return int(address)


def unmap(address: int, length: int) -> None:
    """Undo `map_for_kernel` (munmap(2)); pages that a pipe still holds stay valid."""
    _checked(_munmap(address, length))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def vmsplice(pipe: int, address: int, length: int, flags: int = 0) -> int:
    """Hand pages of this process to a pipe without copying them; return the bytes taken (vmsplice(2)).

    The memory is only looked up by the kernel: a page that is gone makes the call fail with EFAULT, never a signal.
    """
    vector = _Iovec(address, length)
    return _checked(_vmsplice(pipe, ctypes.byref(vector), 1, flags))


def read_past_cache(fd: int, view: memoryview, offset: int) -> int:
    """Read into ``view`` from byte ``offset`` and return how many bytes: what only this brought into the page cache is
    taken away from there again, where the kernel can do that (preadv2(2), RWF_DONTCACHE).
    """
    if not _refused:
        try:
            return os.preadv(fd, [view], offset, RWF_DONTCACHE)
        except OSError as error:
            if error.errno in TRUE_ERRORS:
                raise
    return read_at(fd, view, offset)


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Read into ``view`` from byte ``offset`` and return how many bytes.

    Python has but preadv2(2) for that, which a sandbox may not know: pread(2) has the last word.
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
"""That this process isn't allowed to call preadv2(2), so that it isn't asked for again and again."""


def cores() -> int:
    """Return how many cores this process may use (sched_getaffinity(2)), or all where nothing tells."""
    try:
        return len(os.sched_getaffinity(0))
    except OSError:
        return os.cpu_count() or 1


@contextmanager
def giving_way() -> Iterator[None]:
    """Have the scheduler let others go first while this thread computes: the event loop, and the host's own work.

    sched(7): SCHED_BATCH never preempts a thread that wakes up. Going back needs no privilege.
    """
    before = None
    with suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, _NO_PRIORITY)
            before = os.SCHED_OTHER
    try:
        yield
    finally:
        if before is not None:
            with suppress(OSError):
                os.sched_setscheduler(0, before, _NO_PRIORITY)


_NO_PRIORITY: Final = os.sched_param(0)


def open_files(limit: int) -> int:
    """Return how many descriptors this process has open; ``limit`` is one that none is beyond."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # No /proc: each is asked for, of the few thousand that are likely.
        return sum(_is_open(fd) for fd in range(min(limit, 4096)))


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def copy_by_kernel(data: memoryview, target: memoryview) -> None:
    """Copy our own ``data`` into ``target``, a mapping whose pages may not be there: through a pipe.

    Raises:
        OSError: EFAULT where a page can't be had; touching it would be a SIGBUS.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        with suppress(OSError):  # The user's share of pipe pages is used up: slower, nothing else.
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
    """Return where our own writable memory lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) if data else 0


def same(data: memoryview, other: memoryview) -> bool:
    """Tell whether two pieces of *our own* memory of one length hold the same (memcmp(3))."""
    return not data or _memcmp(address_of(data), address_of(other), len(data)) == 0


def is_zero(address: int, length: int) -> bool:
    """Tell whether ``length`` bytes of *our own* memory are all zero (at least 8, a multiple of 8).

    Comparing a block with itself, shifted by a word, needs no second block of zeros in the cache.
    """
    first = ctypes.c_uint64.from_address(address).value
    return first == 0 and _memcmp(address, address + 8, length - 8) == 0
