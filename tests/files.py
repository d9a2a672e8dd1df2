"""Files for tests: content, sources of every kind, a transfer without a scheduler, and the kernel's view of a file."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

import blake3
import psutil
import pytest
import xxhash

import asyncdump
from asyncdump.errors import DumpError
from asyncdump.kernel.lane import Lane
from asyncdump.plan.plan import PlannedDump
from asyncdump.sinks.draft import Draft
from asyncdump.sinks.folder import Folder
from asyncdump.sources.describe import describe
from asyncdump.sources.file import open_source
from asyncdump.transfer.resources import resources
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary.names import JOURNAL
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import Source

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
PAGE = 4096
HUGE_PAGE = 2 * MiB
METHODS = ("reflink", "direct", "sendfile", "splice", "mmap", "read")
HUGE_KINDS = frozenset({"hugetlbfs", "huge_memfd"})

_RANDOM = random.Random(7).randbytes(MiB + 13)  # An odd length: a block written at the wrong place is never the same.

Dumper = Callable[..., Transfer]


def unavailable(reason: str, *, excusable: bool = False) -> NoReturn:
    """Skip the test, or fail it if ASYNCDUMP_REQUIRE_KERNEL=1 says that this machine has everything.

    ``excusable`` is for resources that no machine can guarantee: a 1 GiB page needs that much contiguous memory, which
    a kernel may not find after some uptime.
    """
    if os.environ.get("ASYNCDUMP_REQUIRE_KERNEL") == "1" and not excusable:
        pytest.fail(f"ASYNCDUMP_REQUIRE_KERNEL=1, but {reason}")
    pytest.skip(reason)


def noise(length: int, start: int = 0) -> bytes:
    """Return bytes without runs of zeros; a different ``start`` gives different bytes."""
    start %= len(_RANDOM)
    whole = _RANDOM[start:] + _RANDOM * (length // len(_RANDOM) + 1)
    return whole[:length]


def content(length: int) -> bytes:
    """Return noise with runs of zeros: a few bytes, complete pages, half a MiB, a complete huge page."""
    data = bytearray(noise(length, length))
    for start, stop in ((100, 200), (5 * PAGE, 9 * PAGE), (MiB, MiB + 512 * KiB + 3), (4 * MiB, 6 * MiB)):
        data[start:stop] = bytes(len(data[start:stop]))
    return bytes(data)


def digest_of(data: bytes, checksum: str) -> str | None:
    """Return the digest of ``data``, computed by the one-shot function of a library."""
    match checksum:
        case "xxh128":
            return xxhash.xxh3_128_hexdigest(data)
        case "blake3":
            return str(blake3.blake3(data).hexdigest())
        case "sha256":
            return hashlib.sha256(data).hexdigest()
    return None


def write_pages(path: str | Path, data: bytes, *, holes: bool = False) -> None:
    """Write a regular file; with ``holes``, pages of zeros become holes."""
    with open(path, "wb", buffering=0) as file:
        file.truncate(len(data))
        for start in range(0, len(data), PAGE if holes else MiB):
            piece = data[start : start + (PAGE if holes else MiB)]
            if not holes or any(piece):
                os.pwrite(file.fileno(), piece, start)


def write_huge(path: str | Path, data: bytes, *, page: int = HUGE_PAGE, holes: bool = False) -> None:
    """Write a file of huge pages through a mapping; with ``holes``, pages of zeros become holes."""
    size = -(-len(data) // page) * page
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(fd, size)
        if size:
            with mmap.mmap(fd, size) as mapping:
                for start in range(0, len(data), page):
                    piece = data[start : start + page]
                    if not holes or any(piece):
                        mapping[start : start + len(piece)] = piece
    finally:
        os.close(fd)


def read(path: str | Path) -> bytes:
    """Return the content of a file."""
    with open(path, "rb") as file:
        return file.read()


def look_at(path: str | Path) -> Source:
    """Return the source as the planner sees it."""
    fd = open_source(os.fspath(path))
    try:
        return describe(fd, os.fspath(path))
    finally:
        os.close(fd)


def planned_dump(source: Source, name: str = "dump", **options: Any) -> PlannedDump:
    """Return the planned dump of a source, from start to end unless ``options`` say otherwise."""
    offset = options.pop("offset", 0)
    given: dict[str, Any] = {"length": source.size - offset, "method": "auto", "checksum": "none", "sparse": True}
    return PlannedDump(source=source, name=name, offset=offset, durable=False, **{**given, **options})


def new_transfer(source: Source, name: str = "dump", *, stop: Stop | None = None, **options: Any) -> Transfer:
    return Transfer(planned_dump(source, name, **options), resources(stop or Stop()))


def finish(transfer: Transfer, folder: Folder, lane: Lane, *, durable: bool = False) -> None:
    """Finish a transfer that has begun, and publish its dump, as the scheduler does."""
    try:
        transfer.work(lane)
        transfer.seal(lane)
    except BaseException:
        transfer.abort()
        raise
    assert isinstance(transfer.sink, Draft)
    for error in folder.publish([transfer.sink], durable=durable, overwrite=True):
        if error is not None:
            raise error


def transfer_file(
    lane: Lane, folder: Folder, path: str | Path, name: str = "dump", *, durable: bool = False, **options: Any
) -> Transfer:
    """Dump one file, as the scheduler does."""
    transfer = new_transfer(look_at(path), name, **options)
    try:
        transfer.begin(folder, lane)
    except BaseException:
        transfer.abort()
        raise
    finish(transfer, folder, lane, durable=durable)
    return transfer


def allocated(path: str | Path) -> int:
    """Return the bytes of memory or disk that a file occupies."""
    return os.stat(path).st_blocks * 512


def free_pages(mount: Path) -> int:
    """Return the free huge pages of a mount with its own limit, which no other process uses, unlike the pool."""
    return os.statvfs(mount).f_bfree


def resident(path: str | Path) -> int:
    """Return how many bytes of a file are in the page cache (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = os.path.getsize(path)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as mapping:
        start = ctypes.c_char.from_buffer(mapping)
        states = (ctypes.c_ubyte * (-(-size // PAGE)))()
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), states)
        del start  # Otherwise the mapping can't be closed.
        assert failed == 0, os.strerror(ctypes.get_errno())
    return sum(state & 1 for state in states) * PAGE


def busy(error: BaseException) -> bool:
    """Return whether an error says that another run uses the directory; for `pytest.raises`."""
    return isinstance(error, DumpError) and error.operation == "flock"


def mentions(message: object, *parts: object) -> bool:
    """Return whether a message contains the facts: paths, keys, numbers, errnos, flags. Its wording may change."""
    return all(str(part) in str(message) for part in parts)


def children() -> list[psutil.Process]:
    """Return the processes that come from this one, but for the one that multiprocessing keeps once it was used."""
    kept = getattr(resource_tracker._resource_tracker, "_pid", None)
    return [process for process in psutil.Process().children(recursive=True) if process.pid != kept]


def busy_threads() -> int:
    """Return how many threads other than this one are inside asyncdump."""
    package = os.path.join(os.path.dirname(asyncdump.__file__), "")
    others = (frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident())
    return sum(any(call.filename.startswith(package) for call in traceback.extract_stack(frame)) for frame in others)


def leftovers(folder: str | Path) -> list[str]:
    """Return the temporary files of asyncdump in a directory, without the journal of a run that has no receipt."""
    return [name for name in os.listdir(folder) if name.startswith(".asyncdump-") and name != JOURNAL]
