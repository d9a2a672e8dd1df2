"""Where a dump is written: a temporary name, alignment, durability in groups, the rename that is the promise.

Under its final name a dump is complete and durable, or absent. Everything here serves that.

An error of write-back is told once: sync_file_range(2) that waits, fsync(2), fdatasync(2) and syncfs(2) report it *and*
advance the cursor of their descriptor, so that the next call finds nothing wrong (errseq in the kernel). A close may be
all that tells (NFS, FUSE). The page is clean by then, and what the disk holds in its place is anything. Hence:

- A `FileSink` owns the errors of its file. Whichever call is told of one, it goes to ``lost``, and stays there.
- A sink that has lost something is never published: `FileSink.sync` and `FileSink.ask` return what was lost.
- What a syncfs tells may be of any file: from then on each file of the folder is synced by itself.
- The page cache is only dropped, and a digest of what was read back only believed, once nothing was lost until then.
- No ``OSError`` of such a call is suppressed; ``tests/test_lost_errors.py`` reads the code for that.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import ClassVar, Final

from asyncdump.errors import DumpError, explain, from_oserror
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import (
    RWF_DONTCACHE,
    SYNC_FILE_RANGE_WAIT_AFTER,
    SYNC_FILE_RANGE_WAIT_BEFORE,
    SYNC_FILE_RANGE_WRITE,
    TRUE_ERRORS,
    read_at,
    some,
    sync_file_range,
)
from asyncdump.kernel.pace import Pace, pace_of
from asyncdump.vocabulary.digest import Hasher

ALIGNMENT: Final = 4096
"""O_DIRECT wants offsets, lengths and addresses in multiples of the logical block; 4096 serves every disk."""


NOT_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""What a filesystem answers to an O_DIRECT write that it doesn't take."""

ZEROS: Final = memoryview(bytearray(1 << 20))
"""Not to be written to, but whoever compares takes writable memory only."""

_NO_RANGES: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ESPIPE})
"""What says that nothing was waited for. Write-back may fail with any other errno, as the device has it."""

_MAY_FIT: Final = frozenset({errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.EOPNOTSUPP})
"""Why a size can't be set in advance."""

_FAR: Final = 1 << 62
"""A byte that no file has: to wait for its page waits for nothing, and tells what write-back has lost."""


class FileSink:
    """An open file that is written to; several threads may write different ranges of it at once.

    Attributes:
        direct: a descriptor that bypasses the page cache (O_DIRECT), or None where the filesystem has none.
        inode: its number, once `status` was called.
        lost: the first error of write-back that any call reported: what was written isn't what is there.
    """

    lost: DumpError | None = None
    inode: int = 0
    _cached: bool = False

    sequential: ClassVar[bool] = False
    most_lanes: ClassVar[int | None] = None
    grain: ClassVar[int] = 4096

    def __init__(self, fd: int, path: str, *, direct: bool = True) -> None:
        """Take over a descriptor; unless ``direct`` is False, see whether the file takes O_DIRECT too."""
        self._fd = fd
        self.path = path
        self.stored = 0
        self._dontcache = True
        self._plain = False
        self._ranges = True
        self._behind = 0
        self._refused: int | None = None
        self._lock = threading.Lock()
        self.direct: int | None = None
        if direct:
            with suppress(OSError):
                self.direct = self.open_again(os.O_RDWR | os.O_DIRECT)

    @property
    def fd(self) -> int | None:
        return self._fd if self._fd >= 0 else None

    @cached_property
    def pace(self) -> Pace:
        """How much its device takes in one step."""
        return pace_of(self._fd)

    def status(self) -> tuple[int, int]:
        """Return the size in bytes and the inode (stat(2)); 0 for what isn't a file."""
        with explain("stat", self.path):
            status = os.fstat(self._fd)
        self.inode = status.st_ino
        return (status.st_size, status.st_ino) if stat.S_ISREG(status.st_mode) else (0, 0)

    def open_again(self, flags: int = os.O_WRONLY) -> int:
        """Return a new descriptor of the same file, with a file offset of its own; the caller closes it."""
        return os.open(f"/proc/self/fd/{self._fd}", flags | os.O_CLOEXEC)

    def resize(self, size: int) -> None:
        """Set the size in bytes: what isn't written is a hole, and writes in any order don't extend the file."""
        with explain("ftruncate", self.path):
            os.ftruncate(self._fd, size)

    def expect(self, size: int) -> None:
        """Do as `resize`, for a size that isn't the last word: where it can't be set, what is written may fit still."""
        try:
            self.resize(size)
        except DumpError as error:
            if error.errno not in _MAY_FIT:
                raise
            self.resize(0)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset`` bytes, with O_DIRECT as far as the kernel and the alignment allow.

        The memory may be a mapping of the source: only the kernel looks at it.

        Raises:
            OSError: the kernel refused; how much was written is not told.
        """
        done = 0
        try:
            done = self.write_direct(data, offset)
        except OSError as error:
            if error.errno not in NOT_DIRECT:
                raise
            # Not closed: another thread may be in a call on it. close() finds both.
            self._refused, self.direct = self.direct or self._refused, None
        if done < len(data):
            with self.pace.timing(len(data) - done):
                self.write_cached(data[done:], offset + done, flags=RWF_DONTCACHE)
        self.note_written(done)

    def write_direct(self, data: memoryview, offset: int) -> int:
        """Write the aligned part of ``data`` with O_DIRECT, as far as the kernel takes it, and return how many bytes.

        They aren't counted yet.

        Raises:
            OSError: one of `NOT_DIRECT` where the filesystem doesn't take this after all.
        """
        if (direct := self.direct) is None or offset % ALIGNMENT:
            return 0
        aligned = len(data) - len(data) % ALIGNMENT
        done = 0
        began = time.perf_counter()
        while done < aligned:
            wrote = done + os.pwrite(direct, data[done:aligned], offset + done)
            # A short write, as a filling disk makes them: go on from the last whole block. Where that is the same one
            # again, a device ends in it, or a disk is full to the sector: the page cache takes what fits, and tells.
            wrote -= wrote % ALIGNMENT
            if wrote == done:
                break
            done = wrote
        self.pace.took(done, time.perf_counter() - began)
        return done

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
        """Write all of ``data`` through the page cache; ``flags`` (pwritev2(2)) are dropped where they're unknown."""
        done = 0
        self._cached = True
        while done < len(data):
            if self._plain:
                done += some(os.pwrite(self._fd, data[done:], offset + done))
                continue
            try:
                wanted = flags if self._dontcache else 0
                done += some(os.pwritev(self._fd, [data[done:]], offset + done, wanted))
            except OSError as error:
                if error.errno in TRUE_ERRORS:
                    raise
                self._dontcache, self._plain = False, not wanted  # pwrite(2) has the last word.
        self._count(done)

    def write_zeros(self, offset: int, length: int) -> None:
        """Write ``length`` zeros through the page cache."""
        for done in range(0, length, len(ZEROS)):
            self.write_cached(ZEROS[: length - done], offset + done)
        self.flush_behind(offset, length)

    def _count(self, stored: int) -> None:
        with self._lock:
            self.stored += stored

    def note_written(self, length: int) -> None:
        """Count ``length`` bytes that `write_direct` wrote, once what belongs to them is written too."""
        self._count(length)

    def note_copied(self, length: int) -> None:
        """Count ``length`` bytes that the kernel moved into `fd` by itself."""
        self._cached = True
        self._count(length)

    def flush_behind(self, offset: int, length: int) -> None:
        """Start write-back of a range that went through the page cache, and drop the one before it from there.

        Raises:
            DumpError: what was written before is lost.
        """
        with self._lock:
            behind, self._behind = self._behind, offset
        if not self._ranges:
            return
        try:
            sync_file_range(self._fd, offset, length, SYNC_FILE_RANGE_WRITE)
        except OSError as error:
            if error.errno in TRUE_ERRORS:
                raise self.lose(error) from error
            self._ranges = False  # Advice, where it isn't taken: no write-back has been waited for, or told of.
            return
        if behind < offset:
            wait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
            try:
                with self.pace.timing(offset - behind):
                    sync_file_range(self._fd, behind, offset - behind, wait)
            except OSError as error:
                raise self.lose(error) from error
            self._forget(behind, offset - behind)

    def lose(self, error: OSError, operation: str = "write-back") -> DumpError:
        """Keep an error that the kernel won't tell again, and return the first one."""
        with self._lock:
            self.lost = self.lost or from_oserror(error, operation, self.path)
            return self.lost

    def ask(self) -> DumpError | None:
        """Return what write-back has lost so far, without waiting for it."""
        if self.lost is None and self._cached and self._ranges:
            try:
                sync_file_range(self._fd, _FAR, 1, SYNC_FILE_RANGE_WAIT_BEFORE)
            except OSError as error:
                if error.errno not in _NO_RANGES:
                    self.lose(error)
        return self.lost

    def read_back(self, size: int, digest: Hasher, lane: Lane, check: Callable[[], None]) -> None:
        """Feed what was written, ``size`` bytes, to ``digest``, past the page cache where that is possible.

        ``check`` is called before each block, and may raise to end it.

        Raises:
            DumpError: it can't be read, is shorter than what was written, or isn't what was written.
        """
        view = lane.buffer.view
        pace = self.pace
        offset = 0
        while offset < size:
            check()
            fd = self.direct if self.direct is not None and offset % ALIGNMENT == 0 else self._fd
            wanted = pace.step(len(view))
            with explain("read back", self.path), pace.timing(wanted):
                got = min(read_at(fd, view[:wanted], offset), size - offset)
            if got == 0:
                message = f"{self.path} ends at byte {offset}, {size} were written"
                raise DumpError(message, path=self.path, operation="read back")
            digest.update(view[:got])
            offset += got
        # Asked last: to read past the page cache has waited for write-back.
        if (lost := self.ask()) is not None:
            raise lost

    def close_direct(self) -> None:
        """Close the O_DIRECT descriptors: what waits to be synced needs but one."""
        descriptors = (self.direct, self._refused)
        self.direct = self._refused = None
        for fd in descriptors:
            if fd is not None:
                self._close(fd)

    def _close(self, fd: int) -> None:
        try:
            os.close(fd)
        except OSError as error:
            self.lose(error, "close")

    def sync(self) -> DumpError | None:
        """Make the bytes and the size durable (fdatasync(2)); return the error, if any, or what was lost before."""
        if self.lost is None:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                return self.lose(error, "fdatasync")
            self.drop_cache()
        return self.lost

    def drop_cache(self) -> None:
        """Let the page cache forget what is durable by now."""
        if self._cached and self.lost is None:
            self._forget(0, 0)

    def _forget(self, offset: int, length: int) -> None:
        with suppress(OSError):
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)

    def abort(self) -> None:
        """Give up what was written, as far as it's ours."""
        self.close()

    def close(self) -> None:
        """Close the descriptors; what that tells goes to ``lost``."""
        self.close_direct()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._close(fd)
