"""Where a dump is written: a temporary name, alignment, durability in groups, the rename that is the promise.

Under its final name a dump is complete and durable, or absent. Everything here serves that.

An error of write-back is told once: sync_file_range(2) that waits, fsync(2), fdatasync(2) and syncfs(2) report it *and*
advance the cursor of their descriptor, so that the next call finds nothing wrong (errseq in the kernel). A close may be
all that tells (NFS, FUSE). The page is clean by then, and what the disk holds in its place is anything. Hence:

- A `Sink` owns the errors of its file. Whichever call is told of one, it goes to ``lost``, and stays there.
- A sink that has lost something is never published: `Sink.sync` and `Sink.ask` return what was lost.
- What a syncfs tells may be of any file: from then on each file of the folder is synced by itself.
- The page cache is only dropped, and a digest of what was read back only believed, once nothing was lost until then.
- No ``OSError`` of such a call is suppressed; ``tests/test_lost_errors.py`` reads the code for that.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import count
from typing import Any, ClassVar, Final, Protocol

from asyncdump.errors import DumpError, NotDurableError, explain, from_oserror
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import (
    RWF_DONTCACHE,
    SYNC_FILE_RANGE_WAIT_AFTER,
    SYNC_FILE_RANGE_WAIT_BEFORE,
    SYNC_FILE_RANGE_WRITE,
    TRUE_ERRORS,
    close_quietly,
    copy_by_kernel,
    filesystem,
    read_at,
    rename_new,
    some,
    sync_file_range,
    syncfs,
)
from asyncdump.kernel.pace import Pace, pace_of
from asyncdump.sinks.lock import LOCK, Lock
from asyncdump.sources.file import open_file
from asyncdump.vocabulary.digest import Digest

ALIGNMENT: Final = 4096
"""O_DIRECT wants offsets, lengths and addresses in multiples of the logical block; 4096 serves every disk."""

TEMPORARY_PREFIX: Final = ".asyncdump-"

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

_SYNCFS_FLUSHES: Final = frozenset({"ext4", "xfs", "btrfs"})
"""Filesystems whose sync_fs commits a journal or a tree with a flush of the device's cache. Others promise less."""

_PARTIAL: Final = ".partial"
_NOOK: Final = ".names"
_GROUP_FOR_SYNCFS: Final = 3
_DIRTY_FOR_SYNCFS: Final = 64 << 20


class Synced(Protocol):
    """What can be made durable: ``sync`` returns the error, if any."""

    def sync(self) -> DumpError | None: ...


class Place(Protocol):
    """Where sinks are made and get their names: a `Folder`, or what stands for one.

    Attributes:
        path: what reports call it.
        filesystem: as statfs(2) names it, or what stands for that.
    """

    @property
    def path(self) -> str: ...

    @property
    def filesystem(self) -> str: ...

    def create(self, name: str) -> Sink:
        """Return the sink for a name."""

    def publish(
        self, sinks: Any, *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Make sinks durable and give them their names; return the error of each, or None."""

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Write small files of our own."""

    def close(self) -> None:
        """Give back what it holds."""


class Folder:
    """The output folder, held open: names are looked up beneath its descriptor, links in the way aren't followed."""

    def __init__(self, path: str, *, make: bool = True) -> None:
        """Open the folder; where it is missing, ``make`` creates it with mode 0700.

        Raises:
            DumpError: it can't be created or opened, or isn't a folder.
        """
        self.path: Final = path
        if make:
            with explain("mkdir", path):
                _make_folders(path)
        with explain("open", path):
            self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.filesystem, self.block = filesystem(self.fd)
                self.device: Final = os.fstat(self.fd).st_dev
            except OSError:  # A filesystem that has given up opens folders still.
                close_quietly(self.fd)
                raise
        self._lock: Lock | None = None
        self._run: Final = os.urandom(4).hex()
        self._numbers: Final = count(1)
        self._doubtful = False  # Has a syncfs failed? Whatever it told of, a later one is silent about.
        self._held: dict[int, str] = {}

    def lock(self, *, shared: bool = False) -> None:
        """Keep other runs out until the folder is closed, or this process ends in whichever way: see `Lock`.

        With ``shared`` others may read what is there, and nobody writes.

        Raises:
            DumpError: another run has the folder, or it can't be locked.
        """
        self._lock = Lock(self.fd, self.path, shared=shared)
        self.hold(LOCK)

    def sweep(self) -> None:
        """Remove the temporary files of runs that were killed; for whoever has the lock."""
        with explain("readdir", self.path):
            stale = [name for name in os.listdir(self.fd) if name.startswith(TEMPORARY_PREFIX)]
        for name in stale:
            with suppress(OSError):
                if name.endswith(_PARTIAL):
                    os.unlink(name, dir_fd=self.fd)
                elif name.endswith(_NOOK):
                    self._clear(name)

    @contextmanager
    def nook(self) -> Iterator[int]:
        """Give the descriptor of a folder in it for the time of a block, to try names in.

        Raises:
            OSError: it can't be made.
        """
        name = f"{TEMPORARY_PREFIX}{self._run}-{next(self._numbers)}{_NOOK}"
        os.mkdir(name, 0o700, dir_fd=self.fd)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                yield fd
            finally:
                close_quietly(fd)
        finally:
            self._clear(name)

    def _clear(self, name: str) -> None:
        """Remove what `nook` has made."""
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            for each in os.listdir(fd):
                os.unlink(each, dir_fd=fd)
        finally:
            close_quietly(fd)
        os.rmdir(name, dir_fd=self.fd)

    def create(self, name: str) -> Draft:
        """Create the temporary file that will become ``name``, mode 0600.

        Raises:
            DumpError: it can't be created.
        """
        draft = MappedDraft if self.filesystem == "hugetlbfs" else Draft
        return draft(self, name, f"{TEMPORARY_PREFIX}{self._run}-{next(self._numbers)}{_PARTIAL}")

    def scratch(self) -> Sink:
        """Return a sink without a name, that is gone when it's closed (O_TMPFILE), to try things on.

        Raises:
            DumpError: the folder can't be written to.
        """
        with suppress(OSError):
            return Sink(os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self.fd), self.path)
        # A filesystem that has no such files, or a folder that can't be written to: this says which.
        draft = self.create("scratch")
        draft.discard()
        return draft

    def hold(self, name: str) -> bool:
        """Have what stands under a name replaced by no other name of this run, whatever the filesystem calls equal.

        Names are compared by the filesystem, which may fold case or normalise: what a name leads to is told by its
        inode. Returns False where nothing stands there, or what does is held under another name.
        """
        inode = self.inode(name)
        return inode is not None and self._held.setdefault(inode, name) == name

    def note_published(self, name: str, inode: int) -> None:
        """Hold what has just got a name."""
        self._held[inode] = name

    def holder(self, name: str) -> str | None:
        """Return the name by which what stands under ``name`` is held, or None."""
        return self._held.get(inode) if (inode := self.inode(name)) is not None else None

    def inode(self, name: str) -> int | None:
        """Return the inode of what stands under a name, or None."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_ino
        except OSError:  # What can't be looked at can't be replaced either: the rename says why.
            return None

    def publish(
        self, sinks: Sequence[Draft], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Make finished sinks durable as a group, give them their names, and make the names durable.

        What ``journal`` says of them is made durable with them, before they have their names.

        Returns:
            For each sink its error, or None. A sink with an error has been removed, and what it was to replace stands;
            except for `NotDurableError`: that one stands under its name, and what it has replaced is gone.
        """
        errors = self._sync(sinks, journal) if durable else [sink.ask() for sink in sinks]
        for index, sink in enumerate(sinks):
            sink.close()  # Before it has its name: this may be what tells of an error.
            errors[index] = errors[index] or sink.lost or sink.rename(overwrite=overwrite or sink.replaces)
            if errors[index] is not None:
                sink.discard()
        if durable and (failure := self.sync()) is not None:
            errors = [earlier or _not_durable(sink, failure) for sink, earlier in zip(sinks, errors, strict=True)]
        return errors

    def sync(self) -> DumpError | None:
        """Make the names in the folder durable (fsync(2)); return the error, if any."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            return from_oserror(error, "fsync", self.path)
        return None

    def _sync(self, sinks: Sequence[Draft], journal: Synced | None) -> list[DumpError | None]:
        # One syncfs commits the metadata of the whole group at once, where the data went past the page cache. With
        # much dirty memory of others about, it would wait for theirs too: then each file is synced by itself.
        grouped = len(sinks) >= _GROUP_FOR_SYNCFS and self.filesystem in _SYNCFS_FLUSHES and not self._doubtful
        if grouped and _dirty_bytes() < _DIRTY_FOR_SYNCFS:
            try:
                syncfs(self.fd)
            except OSError:
                # It may be of any file's, of one that is still written too: each must prove itself from now on.
                self._doubtful = True
            else:
                for sink in sinks:
                    sink.drop_cache()
                return [sink.lost for sink in sinks]
        errors = [sink.sync() for sink in sinks]
        if journal is not None and (failure := journal.sync()) is not None:
            errors = [error or failure for error in errors]
        return errors

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Write small files of our own (the receipt, the digest lists), each whole and durable or not at all.

        Raises:
            DumpError: one can't be written, and what stood under its name stands there still.
            NotDurableError: each has its name, which may not survive a power cut.
        """
        drafts: list[Draft] = []
        try:
            for name, content in files.items():
                drafts.append(self.create(name))
                with explain("write", drafts[-1].path):
                    drafts[-1].write_cached(memoryview(content), 0)
            published = self.publish(drafts, durable=True, overwrite=True)
        except BaseException:
            for draft in drafts:
                draft.abort()
            raise
        if failures := [failure for failure in published if failure is not None]:
            raise failures[0]

    def exists(self, name: str) -> bool:
        """Tell whether something stands under a name; `DumpError` where that can't be told."""
        with explain("stat", os.path.join(self.path, name)):
            try:
                os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                return False
        return True

    def close(self) -> None:
        """Unlock and close it; once."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close_quietly(fd)


def _not_durable(sink: Draft, failure: DumpError) -> NotDurableError:
    return NotDurableError(
        f"{sink.path} is complete, but its name may not survive a power cut: {failure}",
        path=sink.path,
        operation=failure.operation,
        errno=failure.errno,
        hint=failure.hint,
    )


def _make_folders(path: str) -> None:
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        made = True
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
            made = False  # Another run made it meanwhile.
        try:
            _sync_folder(os.path.dirname(folder))
        except OSError:
            if made:  # Left there, it would be taken for durable by the next run.
                with suppress(OSError):
                    os.rmdir(folder)
            raise


def sync_file(path: str) -> None:
    """Make a file durable that was written without waiting for that, and have it read from the disk from now on.

    Only what is read back then tells what is there: an error of its write-back may have been told to others.

    Raises:
        DumpError: it can't be opened, or written back.
    """
    with explain("fsync", path):
        fd = open_file(path, follow=False)
        try:
            os.fsync(fd)
            with suppress(OSError):  # Advice.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            close_quietly(fd)


def _sync_folder(path: str) -> None:
    """Make the names in a folder durable: a dump is lost with the folder that holds it."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        close_quietly(fd)


def _dirty_bytes() -> int:
    """Return the bytes that all processes have written and the kernel hasn't (proc_meminfo(5))."""
    try:
        with open("/proc/meminfo", "rb") as lines:
            return sum(int(line.split()[1]) << 10 for line in lines if line.startswith((b"Dirty:", b"Writeback:")))
    except (OSError, ValueError, IndexError):
        return _DIRTY_FOR_SYNCFS


class Sink:
    """An open file that is written to; several threads may write different ranges of it at once.

    Attributes:
        path: what errors call it.
        fd: a descriptor through the page cache; the sink closes it.
        direct: one that goes around it (O_DIRECT), or None where the filesystem takes none.
        stored: bytes written; what the holes leave out is not in it.
        inode: its number, once `status` was asked.
        lost: the first error of write-back that any call was told of: what was written isn't what is there.
    """

    lost: DumpError | None = None
    inode: int = 0
    _cached: bool = False

    sequential: ClassVar[bool] = False
    """Whether bytes can only be written one behind the other."""

    grain: ClassVar[int] = 4096
    """Bytes that are zero in so large a piece, and aligned to it, may be left out."""

    def __init__(self, fd: int, path: str, *, direct: bool = True) -> None:
        """Take over a descriptor; unless ``direct`` is False, see whether the file takes O_DIRECT too."""
        self.fd = fd
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

    @cached_property
    def pace(self) -> Pace:
        """How much its device takes in one step."""
        return pace_of(self.fd)

    def status(self) -> tuple[int, int]:
        """Return the size in bytes and the inode (stat(2)); 0 for what isn't a file."""
        with explain("stat", self.path):
            status = os.fstat(self.fd)
        self.inode = status.st_ino
        return (status.st_size, status.st_ino) if stat.S_ISREG(status.st_mode) else (0, 0)

    def open_again(self, flags: int = os.O_WRONLY) -> int:
        """Return a new descriptor of the same file, with a file offset of its own; the caller closes it."""
        return os.open(f"/proc/self/fd/{self.fd}", flags | os.O_CLOEXEC)

    def resize(self, size: int) -> None:
        """Set the size in bytes: what isn't written is a hole, and writes in any order don't extend the file."""
        with explain("ftruncate", self.path):
            os.ftruncate(self.fd, size)

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
                done += some(os.pwrite(self.fd, data[done:], offset + done))
                continue
            try:
                wanted = flags if self._dontcache else 0
                done += some(os.pwritev(self.fd, [data[done:]], offset + done, wanted))
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
            sync_file_range(self.fd, offset, length, SYNC_FILE_RANGE_WRITE)
        except OSError as error:
            if error.errno in TRUE_ERRORS:
                raise self.lose(error) from error
            self._ranges = False  # Advice, where it isn't taken: no write-back has been waited for, or told of.
            return
        if behind < offset:
            wait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
            try:
                with self.pace.timing(offset - behind):
                    sync_file_range(self.fd, behind, offset - behind, wait)
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
                sync_file_range(self.fd, _FAR, 1, SYNC_FILE_RANGE_WAIT_BEFORE)
            except OSError as error:
                if error.errno not in _NO_RANGES:
                    self.lose(error)
        return self.lost

    def read_back(self, size: int, digest: Digest, lane: Lane, check: Callable[[], None]) -> None:
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
            fd = self.direct if self.direct is not None and offset % ALIGNMENT == 0 else self.fd
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
                os.fdatasync(self.fd)
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
            os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_DONTNEED)

    def abort(self) -> None:
        """Give up what was written, as far as it's ours."""
        self.close()

    def close(self) -> None:
        """Close the descriptors; what that tells goes to ``lost``."""
        self.close_direct()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._close(fd)


class Draft(Sink):
    """A dump on its way to its name: until `Folder.publish` it has a temporary one.

    Attributes:
        replaces: whether what stands under its name is an older state of the same dump.
    """

    replaces: bool = False

    def __init__(self, folder: Folder, name: str, temporary: str) -> None:
        self.folder: Final = folder
        self.name: Final = name
        self._temporary: str | None = temporary
        path = os.path.join(folder.path, name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with explain("open", path):
            fd = os.open(temporary, flags, 0o600, dir_fd=folder.fd)
        super().__init__(fd, path)

    def open_again(self, flags: int = os.O_WRONLY) -> int:
        """Do as `Sink.open_again` does, by the file's name where there is no /proc."""
        with suppress(FileNotFoundError):
            return super().open_again(flags)
        assert self._temporary is not None
        fd = os.open(self._temporary, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder.fd)
        if os.path.sameopenfile(fd, self.fd):
            return fd
        close_quietly(fd)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def rename(self, *, overwrite: bool) -> DumpError | None:
        """Give the file its final name; return the error, if any (without ``overwrite``, that the name is taken).

        What this run has published stays, except what it has published under this very name.
        """
        assert self._temporary is not None
        folder = self.folder
        inode = self.inode or folder.inode(self._temporary)
        try:
            if not overwrite:
                overwrite = not self._rename_new(self._temporary)
                if overwrite and folder.holder(self.name) != self.name:
                    return self._taken()
            elif folder.holder(self.name) not in {None, self.name}:
                return self._taken()
            if overwrite:
                os.rename(self._temporary, self.name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        except OSError as error:
            return from_oserror(error, "rename", self.path)
        except DumpError as error:
            return error
        self._temporary = None
        if inode is not None:
            folder.note_published(self.name, inode)
        return None

    def _rename_new(self, temporary: str) -> bool:
        """Rename it unless the name is taken; return whether it was renamed."""
        try:
            rename_new(self.folder.fd, temporary, self.name)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in TRUE_ERRORS:
                raise
        if self.folder.exists(self.name):  # The filesystem leaves no better way than to look first.
            return False
        os.rename(temporary, self.name, src_dir_fd=self.folder.fd, dst_dir_fd=self.folder.fd)
        return True

    def _taken(self) -> DumpError:
        holder = self.folder.holder(self.name)
        if holder is None:
            message, hint = f"{self.path} appeared while it was written", "choose an empty folder, or allow --overwrite"
        else:
            message = f"{self.path} would replace {holder}: to its filesystem the two names are the same"
            hint = "give one of them another name"
        return DumpError(message, path=self.path, operation="rename", errno=errno.EEXIST, hint=hint)

    def discard(self) -> None:
        """Remove the file, unless it has its name."""
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self.folder.fd)

    def abort(self) -> None:
        """Remove the temporary file and close the descriptors; does nothing to a sink that is published."""
        self.discard()
        self.close()


class MappedDraft(Draft):
    """A draft on hugetlbfs, which takes no write(2): filled through a mapping, a huge page for each that isn't zero.

    The kernel copies into the mapping (vmsplice(2), readv(2)), so that a page that the pool can't give is an error
    (EFAULT), never a SIGBUS. To map a range reserves its pages: too few of them are ENOMEM.
    """

    grain: ClassVar[int] = 2 << 20

    def __init__(self, folder: Folder, name: str, temporary: str) -> None:
        super().__init__(folder, name, temporary)
        self._page = folder.block

    def resize(self, size: int) -> None:
        """Set the size, in whole huge pages."""
        super().resize(-(-size // self._page) * self._page)

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:  # noqa: ARG002 (a mapping has none)
        """Copy ``data`` into the pages that hold ``offset`` and what follows."""
        start = offset - offset % self._page
        length = -(-(offset + len(data)) // self._page) * self._page - start
        try:
            mapping = mmap.mmap(self.fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE, offset=start)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise self._no_pages() from error
            raise
        view = memoryview(mapping)[offset - start :]
        try:
            copy_by_kernel(data, view)
        finally:
            view.release()
            # After an error its traceback still holds slices of the view: the mapping goes when the traceback does.
            with suppress(BufferError):
                mapping.close()
        self._count(len(data))

    def _no_pages(self) -> DumpError:
        return DumpError(
            f"{self.path} needs more huge pages than are free (ENOMEM)",
            path=self.path,
            operation="mmap",
            errno=errno.ENOMEM,
            hint="reserve more of them: /proc/sys/vm/nr_hugepages, or their pool below /sys/kernel/mm/hugepages",
        )
