"""The memory of another process: which pages it has, and their content, without adding a page to it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from asyncdump.kernel.linux import address_of

PAGE: Final = mmap.PAGESIZE

Part = tuple[int, memoryview]
"""An address in the process, and the buffer for its content."""

_MOST_PARTS: Final = 512
"""The maximum for one process_vm_readv(2); the kernel allows UIO_MAXIOV, which is 1024."""

# PAGEMAP_SCAN of Linux 6.7; see PAGEMAP_SCAN(2const).
_SCAN: Final = 0xC0606610
_ARGUMENTS: Final = struct.Struct("12Q")
_WALK_END: Final = 4
_PRESENT: Final = 1 << 3
_SWAPPED: Final = 1 << 4
_ZERO: Final = 1 << 5
_GUARD: Final = 1 << 8
"""A guard page (madvise(2), MADV_GUARD_INSTALL); reported since Linux 6.15."""

# An entry of /proc/PID/pagemap; see proc_pid_pagemap(5).
_ENTRY: Final = 8
_ENTRIES: Final = 1 << 16
_ENTRY_DATA: Final = 3 << 62
_ENTRY_GUARD: Final = 1 << 58

_unknown: Final[set[str]] = set()
"""The features that this kernel lacks, so that they aren't tried before each read."""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _process_vm_readv() -> Any:
    function = ctypes.CDLL(None, use_errno=True).process_vm_readv
    vector, number = ctypes.POINTER(_Iovec), ctypes.c_ulong
    function.argtypes = (ctypes.c_int, vector, number, vector, number, number)
    function.restype = ctypes.c_ssize_t
    return function


_readv: Final = _process_vm_readv()


def read_process(pid: int, parts: Sequence[Part]) -> int:
    """Read existing pages of a process and return how many bytes were read; fewer if a page is unreadable.

    Read only pages that `pages_in` yields: for a missing page, process_vm_readv(2) makes the kernel allocate one, and a
    huge page comes from the pool of the host.

    Raises:
        OSError: EFAULT if the first byte is unreadable, ESRCH if there is no such process, EPERM, ENOSYS.
    """
    parts = parts[:_MOST_PARTS]
    local, remote = ((_Iovec * len(parts))() for _ in range(2))
    for index, (address, view) in enumerate(parts):
        local[index] = _Iovec(address_of(view), len(view))
        remote[index] = _Iovec(address, len(view))
    got = int(_readv(pid, local, len(parts), remote, len(parts), 0))
    if got < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return got


def clear(view: memoryview) -> None:
    """Fill our own memory with zeros (memset(3))."""
    ctypes.memset(address_of(view), 0, len(view))


def pages_in(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of addresses within ``[start, end)`` for which the process has pages, in memory or in swap.

    The other addresses have no content of the process itself: they were never written to, share the page of zeros with
    all processes, or are guard pages. In a mapped file, they have the content of the file. Looking changes nothing.

    Args:
        pagemap: ``/proc/PID/pagemap``, open for reading.
        start, end: any addresses.

    Raises:
        ProcessLookupError: the process has exited or called execve(2) since ``pagemap`` was opened.
    """
    low, high = start - start % PAGE, end + -end % PAGE
    for first, last in _scanned(pagemap, low, high) if "scan" not in _unknown else _listed(pagemap, low, high):
        yield max(first, start), min(last, end)


def _scanned(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    found = (ctypes.c_uint64 * (3 * _MOST_PARTS))()
    while start < end:
        without = _ZERO if "guard" in _unknown else _ZERO | _GUARD
        arguments = bytearray(
            _ARGUMENTS.pack(
                *(_ARGUMENTS.size, 0, start, end, 0, ctypes.addressof(found), _MOST_PARTS, 0),
                *(without, without, _PRESENT | _SWAPPED, 0),
            )
        )
        try:
            count = fcntl.ioctl(pagemap, _SCAN, arguments)
        except OSError as error:
            if error.errno == errno.EINVAL and "guard" not in _unknown:
                _unknown.add("guard")
                continue
            if error.errno not in {errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EPERM}:
                raise
            _unknown.add("scan")
            yield from _listed(pagemap, start, end)
            return
        for index in range(count):
            yield found[3 * index], found[3 * index + 1]
        start = max(_ARGUMENTS.unpack(arguments)[_WALK_END], start + PAGE)


def _listed(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Do the same as `_scanned` with pagemap entries. They don't show the shared page of zeros, which is then read."""
    for low in range(start, end, _ENTRIES * PAGE):
        high = min(end, low + _ENTRIES * PAGE)
        entries = array("Q", os.pread(pagemap, (high - low) // PAGE * _ENTRY, low // PAGE * _ENTRY))
        if len(entries) * PAGE < high - low:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        held = [bool(entry & _ENTRY_DATA) and not entry & _ENTRY_GUARD for entry in entries]
        changes = [index for index, (one, other) in enumerate(pairwise((False, *held, False))) if one != other]
        for first, last in zip(changes[::2], changes[1::2], strict=True):
            yield low + first * PAGE, low + last * PAGE
