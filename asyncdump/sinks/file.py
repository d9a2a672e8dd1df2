"""A file that a dump is written to: alignment, O_DIRECT, write-back, and the errors of write-back.

The kernel reports an error of write-back only once: a sync_file_range(2) that waits, fsync(2), fdatasync(2) and
syncfs(2) report it *and* advance the cursor of their descriptor, so that the next call succeeds (errseq in the kernel).
On NFS and FUSE, it may be only close(2) that reports it. By then the page is clean, and the content of the disk at that
place is undefined. Therefore:

- A `FileSink` owns the errors of its file. Whichever call gets an error, it is stored in ``lost`` and stays there.
- A sink with a loss is never published: `FileSink.sync` and `FileSink.ask` return it.
- An error of syncfs(2) may concern any file: from then on, each file of the directory is synced separately.
- The page cache is only dropped, and the digest of a read-back only trusted, if nothing was lost until then.
- No ``OSError`` of such a call is suppressed; ``tests/test_lost_errors.py`` checks the code for that.
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
"""O_DIRECT requires offsets, lengths and addresses in multiples of the logical block size; 4096 suits every disk."""


NOT_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""The errnos of an O_DIRECT write that the filesystem doesn't support."""

ZEROS: Final = memoryview(bytearray(1 << 20))
"""Never written to, but a bytearray, because the comparison needs writable memory."""

_NO_RANGES: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ESPIPE})
"""The errnos that mean that the call didn't wait. Any other errno is an error of write-back."""

_MAY_FIT: Final = frozenset({errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EPERM, errno.EOPNOTSUPP})
"""The errnos that mean that a size can't be set in advance."""

_FAR: Final = 1 << 62
"""An offset past the end of any file: waiting for its page returns immediately, with any error of write-back."""


class FileSink:
    """An open file that is written to. Several threads may write different ranges at the same time.

    Attributes:
        direct: a descriptor that bypasses the page cache (O_DIRECT), or None if the filesystem doesn't support it.
        inode: its inode number, after `status` was called.
        lost: the first error of write-back that any call reported: the file doesn't contain what was written.
    """

    lost: DumpError | None = None
    inode: int = 0
    _cached: bool = False

    sequential: ClassVar[bool] = False
    most_lanes: ClassVar[int | None] = None
    grain: ClassVar[int] = 4096

    def __init__(self, fd: int, path: str, *, direct: bool = True) -> None:
        """Take over a descriptor; unless ``direct`` is False, try to open the file with O_DIRECT, too."""
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
        """The I/O size for its device."""
        return pace_of(self._fd)

    def status(self) -> tuple[int, int]:
        """Return the size in bytes and the inode number (stat(2)); zeros if it isn't a regular file."""
        with explain("stat", self.path):
            status = os.fstat(self._fd)
        self.inode = status.st_ino
        return (status.st_size, status.st_ino) if stat.S_ISREG(status.st_mode) else (0, 0)

    def open_again(self, flags: int = os.O_WRONLY) -> int:
        """Return a new descriptor of the same file, with its own file offset; the caller closes it."""
        return os.open(f"/proc/self/fd/{self._fd}", flags | os.O_CLOEXEC)

    def resize(self, size: int) -> None:
        """Set the size in bytes: ranges that aren't written are holes, and no write has to extend the file."""
        with explain("ftruncate", self.path):
            os.ftruncate(self._fd, size)

    def expect(self, size: int) -> None:
        """Set an estimated size; if that fails for lack of space, continue, because the actual data may fit."""
        try:
            self.resize(size)
        except DumpError as error:
            if error.errno not in _MAY_FIT:
                raise
            self.resize(0)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at byte ``offset``, with O_DIRECT as far as the kernel and the alignment allow.

        The data may be a mapping of the source, because only the kernel dereferences it.

        Raises:
            OSError: the write failed; it isn't known how much was written.
        """
        done = 0
        try:
            done = self.write_direct(data, offset)
        except OSError as error:
            if error.errno not in NOT_DIRECT:
                raise
            # Not closed here, because another thread may be in a call on it. close() closes both.
            self._refused, self.direct = self.direct or self._refused, None
        if done < len(data):
            with self.pace.timing(len(data) - done):
                self.write_cached(data[done:], offset + done, flags=RWF_DONTCACHE)
        self.note_written(done)

    def write_direct(self, data: memoryview, offset: int) -> int:
        """Write the aligned part of ``data`` with O_DIRECT, and return how many bytes were written.

        They aren't counted in ``stored`` yet.

        Raises:
            OSError: with an errno of `NOT_DIRECT` if the filesystem doesn't support O_DIRECT after all.
        """
        if (direct := self.direct) is None or offset % ALIGNMENT:
            return 0
        aligned = len(data) - len(data) % ALIGNMENT
        done = 0
        began = time.perf_counter()
        while done < aligned:
            wrote = done + os.pwrite(direct, data[done:aligned], offset + done)
            # After a short write, as on a disk that fills up, continue from the last complete block. If that is the
            # same block again, the device ends within it, or the disk is full: the write through the page cache that
            # follows stores what fits, and reports the error.
            wrote -= wrote % ALIGNMENT
            if wrote == done:
                break
            done = wrote
        self.pace.took(done, time.perf_counter() - began)
        return done

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
        """Write all of ``data`` through the page cache; unsupported ``flags`` (pwritev2(2)) are dropped."""
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
                self._dontcache, self._plain = False, not wanted  # First without flags, then with pwrite(2).
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
        """Count ``length`` bytes that `write_direct` wrote, after the rest of their span is written, too."""
        self._count(length)

    def note_copied(self, length: int) -> None:
        """Count ``length`` bytes that the kernel moved into `fd`."""
        self._cached = True
        self._count(length)

    def flush_behind(self, offset: int, length: int) -> None:
        """Start write-back of a range, wait for that of the previous range, and drop the latter from the page cache.

        Waiting for the previous range keeps the amount of dirty memory small, so that no sync takes long.

        Raises:
            DumpError: earlier writes were lost.
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
            self._ranges = False  # Not supported: the call has neither waited for write-back nor reported on it.
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
        """Keep an error that the kernel won't report again, and return the first one."""
        with self._lock:
            self.lost = self.lost or from_oserror(error, operation, self.path)
            return self.lost

    def ask(self) -> DumpError | None:
        """Return the first loss of write-back so far, without waiting for write-back."""
        if self.lost is None and self._cached and self._ranges:
            try:
                sync_file_range(self._fd, _FAR, 1, SYNC_FILE_RANGE_WAIT_BEFORE)
            except OSError as error:
                if error.errno not in _NO_RANGES:
                    self.lose(error)
        return self.lost

    def read_back(self, size: int, digest: Hasher, lane: Lane, check: Callable[[], None]) -> None:
        """Hash the ``size`` bytes that were written, bypassing the page cache if possible.

        ``check`` is called before each block, and may raise.

        Raises:
            DumpError: the file can't be read, is too short, or writes were lost.
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
                message = f"{self.path} has {offset} bytes instead of {size}"
                raise DumpError(message, path=self.path, operation="read back")
            digest.update(view[:got])
            offset += got
        # Checked last: reading with O_DIRECT has waited for write-back of the range.
        if (lost := self.ask()) is not None:
            raise lost

    def close_direct(self) -> None:
        """Close the O_DIRECT descriptors: a file that waits to be synced needs only one."""
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
        """Make the bytes and the size durable (fdatasync(2)); return the error, or an earlier loss."""
        if self.lost is None:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                return self.lose(error, "fdatasync")
            self.drop_cache()
        return self.lost

    def drop_cache(self) -> None:
        """Drop the pages of the file, which are durable now, from the page cache."""
        if self._cached and self.lost is None:
            self._forget(0, 0)

    def _forget(self, offset: int, length: int) -> None:
        with suppress(OSError):
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)

    def abort(self) -> None:
        """Discard what was written, if the file belongs to this sink."""
        self.close()

    def close(self) -> None:
        """Close all descriptors; an error of that is stored in ``lost``."""
        self.close_direct()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._close(fd)
