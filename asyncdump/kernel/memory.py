"""The memory of another process: which of its pages there are, and their bytes, without adding a page to it."""

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
"""An address, and where what is there goes."""

_MOST_PARTS: Final = 512
"""Of one process_vm_readv(2); the kernel takes UIO_MAXIOV, which is 1024."""

# PAGEMAP_SCAN of Linux 6.7; see PAGEMAP_SCAN(2const).
_SCAN: Final = 0xC0606610
_ARGUMENTS: Final = struct.Struct("12Q")
_WALK_END: Final = 4
_PRESENT: Final = 1 << 3
_SWAPPED: Final = 1 << 4
_ZERO: Final = 1 << 5
_GUARD: Final = 1 << 8
"""A page of madvise(2) MADV_GUARD_INSTALL; told since Linux 6.15."""

# An entry of /proc/PID/pagemap; see proc_pid_pagemap(5).
_ENTRY: Final = 8
_ENTRIES: Final = 1 << 16
_ENTRY_DATA: Final = 3 << 62
_ENTRY_GUARD: Final = 1 << 58

_unknown: Final[set[str]] = set()
"""What this kernel doesn't know, so that it isn't asked for again and again."""


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
    """Read pages of a process that are there, and return how many bytes: fewer where one of them can't be read.

    The call brings in, and may take from a pool, what isn't there: ask `pages_in` before (process_vm_readv(2)).

    Raises:
        OSError: EFAULT for the first byte, ESRCH without such a process, EPERM, ENOSYS.
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
    """Yield the ranges of addresses within ``[start, end)`` whose pages hold something: in memory, or in swap.

    What is left out holds nothing of the process's own: it was never written to, it is the page of zeros that all
    processes share, or a guard page; of a mapped file it holds what the file does. Looking changes nothing.

    Args:
        pagemap: ``/proc/PID/pagemap``, open for reading.
        start, end: any addresses.

    Raises:
        ProcessLookupError: the process has ended since that was opened, or called execve(2).
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
    """Do as `_scanned`, by an entry for each page: it doesn't tell the page of zeros, which is read then."""
    for low in range(start, end, _ENTRIES * PAGE):
        high = min(end, low + _ENTRIES * PAGE)
        entries = array("Q", os.pread(pagemap, (high - low) // PAGE * _ENTRY, low // PAGE * _ENTRY))
        if len(entries) * PAGE < high - low:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        held = [bool(entry & _ENTRY_DATA) and not entry & _ENTRY_GUARD for entry in entries]
        changes = [index for index, (one, other) in enumerate(pairwise((False, *held, False))) if one != other]
        for first, last in zip(changes[::2], changes[1::2], strict=True):
            yield low + first * PAGE, low + last * PAGE
