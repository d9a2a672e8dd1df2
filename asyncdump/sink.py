"""Where a dump is written: a temporary name, alignment, durability in groups, the rename that is the promise.

Under its final name a dump is whole and durable, or absent. Everything here serves that.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, Protocol

from asyncdump.digest import Digest
from asyncdump.errors import DumpError, explain, from_oserror
from asyncdump.lane import Lane
from asyncdump.linux import (
    RWF_DONTCACHE,
    SYNC_FILE_RANGE_WAIT_AFTER,
    SYNC_FILE_RANGE_WAIT_BEFORE,
    SYNC_FILE_RANGE_WRITE,
    copy_by_kernel,
    filesystem,
    rename_new,
    some,
    sync_file_range,
    syncfs,
)
from asyncdump.pace import pace_of

ALIGNMENT: Final = 4096
"""O_DIRECT wants offsets, lengths and addresses in multiples of the logical block; 4096 serves every disk."""

TEMPORARY_PREFIX: Final = ".asyncdump-"

NOT_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""What a filesystem answers to an O_DIRECT write that it doesn't take."""

ZEROS: Final = memoryview(bytearray(1 << 20))
"""Not to be written to, but whoever compares takes writable memory only."""

_NOT_DONTCACHE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_NO_RENAME_NEW: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_SYNCFS_FLUSHES: Final = frozenset({"ext4", "xfs", "btrfs"})
"""Filesystems whose sync_fs commits a journal or a tree with a flush of the device's cache. Others promise less."""

_NO_LOCKS: Final = frozenset({errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_PARTIAL: Final = ".partial"
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
            self.fd: Final = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.filesystem, _ = filesystem(self.fd)
        self.device: Final = os.fstat(self.fd).st_dev
        self._run: Final = os.urandom(4).hex()
        self._count = 0

    def lock(self, *, shared: bool = False) -> None:
        """Keep other runs out until the folder is closed, or this process ends in whichever way (flock(2)).

        With ``shared`` others may read what is there, and nobody writes. A filesystem that can't lock a folder (NFS)
        gives no such protection.

        Raises:
            DumpError: another run has the folder.
        """
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DumpError(
                f"another run is at work in {self.path}",
                path=self.path,
                operation="flock",
                errno=error.errno,
                hint="wait for it to end, or choose another folder",
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise from_oserror(error, "flock", self.path) from error

    def sweep(self) -> None:
        """Remove the temporary files of runs that were killed; for whoever has the lock."""
        with explain("readdir", self.path):
            stale = [name for name in os.listdir(self.fd) if name.startswith(TEMPORARY_PREFIX)]
        for name in stale:
            if name.endswith(_PARTIAL):
                with suppress(OSError):
                    os.unlink(name, dir_fd=self.fd)

    def create(self, name: str) -> Draft:
        """Create the temporary file that will become ``name``, mode 0600.

        Raises:
            DumpError: it can't be created.
        """
        self._count += 1
        draft = MappedDraft if self.filesystem == "hugetlbfs" else Draft
        return draft(self, name, f"{TEMPORARY_PREFIX}{self._run}-{self._count}{_PARTIAL}")

    def scratch(self) -> Sink:
        """Return a sink without a name, that is gone when it's closed (O_TMPFILE), to try things on.

        Raises:
            DumpError: the filesystem has no such files, or the folder can't be written to.
        """
        with explain("open", self.path):
            return Sink(os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self.fd), self.path)

    def publish(
        self, sinks: Sequence[Draft], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Make finished sinks durable as a group, give them their names, and make the names durable.

        What ``journal`` says of them is made durable with them, before they have their names.

        Returns:
            For each sink its error, or None. A sink with an error has been removed.
        """
        errors: list[DumpError | None] = self._sync(sinks, journal) if durable else [None] * len(sinks)
        for index, sink in enumerate(sinks):
            if errors[index] is None:
                errors[index] = sink.rename(overwrite=overwrite or sink.replaces)
        if durable:
            try:
                os.fsync(self.fd)
            except OSError as error:
                failed = from_oserror(error, "fsync", self.path)
                errors = [earlier or failed for earlier in errors]
        for sink, failure in zip(sinks, errors, strict=True):
            if failure is not None:
                sink.discard()
            sink.close()
        return errors

    def _sync(self, sinks: Sequence[Draft], journal: Synced | None) -> list[DumpError | None]:
        # One syncfs commits the metadata of the whole group at once, where the data went past the page cache. With
        # much dirty memory of others about, it would wait for theirs too: then each file is synced by itself.
        grouped = len(sinks) >= _GROUP_FOR_SYNCFS and self.filesystem in _SYNCFS_FLUSHES
        if grouped and _dirty_bytes() < _DIRTY_FOR_SYNCFS:
            # An error may be any file's of the group: fdatasync, one by one, says whose.
            with suppress(OSError):
                syncfs(self.fd)
                for sink in sinks:
                    sink.drop_cache()
                return [None] * len(sinks)
        errors = [sink.sync() for sink in sinks]
        if journal is not None and (failure := journal.sync()) is not None:
            errors = [error or failure for error in errors]
        return errors

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Write small files of our own (the receipt, the digest lists), each whole and durable or not at all.

        Raises:
            DumpError: one can't be written. What stood under its name stands there still, unless all that failed was to
                make the name durable: then nothing does.
        """
        drafts: list[Draft] = []
        try:
            for name, content in files.items():
                drafts.append(self.create(name))
                with explain("write", drafts[-1].path):
                    drafts[-1].write_cached(memoryview(content), 0)
        except BaseException:
            for draft in drafts:
                draft.abort()
            raise
        failures = [failure for failure in self.publish(drafts, durable=True, overwrite=True) if failure is not None]
        if failures:
            raise failures[0]

    def exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        os.close(self.fd)


def _make_folders(path: str) -> None:
    missing = []
    while path and not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, 0o700)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise
            # Another run made it meanwhile.
        _sync_folder(os.path.dirname(folder))


def sync_file(path: str) -> None:
    """Make a file durable that was written without waiting for that.

    Raises:
        DumpError: it can't be opened, or written back.
    """
    with explain("fsync", path):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _sync_folder(path: str) -> None:
    """Make the names in a folder durable: a dump is lost with the folder that holds it."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
    """

    sequential: ClassVar[bool] = False
    """Whether bytes can only be written one behind the other."""

    grain: ClassVar[int] = 4096
    """Bytes that are zero in so large a piece, and aligned to it, may be left out."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self.stored = 0
        self._dontcache = True
        self._cached = False
        self._behind = 0
        self._refused: int | None = None
        self._lock = threading.Lock()
        try:
            self.direct: int | None = self.open_again(os.O_RDWR | os.O_DIRECT)
        except OSError:
            self.direct = None

    def status(self) -> tuple[int, int]:
        """Return the size in bytes and the inode (stat(2)); 0 for what isn't a file."""
        with explain("stat", self.path):
            status = os.fstat(self.fd)
        return (status.st_size, status.st_ino) if stat.S_ISREG(status.st_mode) else (0, 0)

    def open_again(self, flags: int = os.O_WRONLY) -> int:
        """Return a new descriptor of the same file, with a file offset of its own; the caller closes it."""
        return os.open(f"/proc/self/fd/{self.fd}", flags | os.O_CLOEXEC)

    def resize(self, size: int) -> None:
        """Set the size in bytes: what isn't written is a hole, and writes in any order don't extend the file."""
        with explain("ftruncate", self.path):
            os.ftruncate(self.fd, size)

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
            with pace_of(self.fd).timing(len(data) - done):
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
        pace_of(direct).took(done, time.perf_counter() - began)
        return done

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
        """Write all of ``data`` through the page cache; ``flags`` (pwritev2(2)) are dropped where they're unknown."""
        done = 0
        self._cached = True
        while done < len(data):
            try:
                wanted = flags if self._dontcache else 0
                done += some(os.pwritev(self.fd, [data[done:]], offset + done, wanted))
            except OSError as error:
                if not wanted or error.errno not in _NOT_DONTCACHE:
                    raise
                self._dontcache = False
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
        """Start write-back of a range that went through the page cache, and drop the one before it from there."""
        with self._lock:
            behind, self._behind = self._behind, offset
        with suppress(OSError):  # Advice: fdatasync is what must succeed.
            sync_file_range(self.fd, offset, length, SYNC_FILE_RANGE_WRITE)
            if behind < offset:
                wait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
                with pace_of(self.fd).timing(offset - behind):
                    sync_file_range(self.fd, behind, offset - behind, wait)
                os.posix_fadvise(self.fd, behind, offset - behind, os.POSIX_FADV_DONTNEED)

    def read_back(self, size: int, digest: Digest, lane: Lane, check: Callable[[], None]) -> None:
        """Feed what was written, ``size`` bytes, to ``digest``, past the page cache where that is possible.

        ``check`` is called before each block, and may raise to end it.

        Raises:
            DumpError: it can't be read, or is shorter than what was written.
        """
        view = lane.buffer.view
        pace = pace_of(self.fd)
        offset = 0
        while offset < size:
            check()
            fd = self.direct if self.direct is not None and offset % ALIGNMENT == 0 else self.fd
            wanted = pace.step(len(view))
            with explain("read back", self.path), pace.timing(wanted):
                got = min(os.preadv(fd, [view[:wanted]], offset), size - offset)
            if got == 0:
                message = f"{self.path} ends at byte {offset}, {size} were written"
                raise DumpError(message, path=self.path, operation="read back")
            digest.update(view[:got])
            offset += got

    def close_direct(self) -> None:
        """Close the O_DIRECT descriptors: what waits to be synced needs but one."""
        descriptors = (self.direct, self._refused)
        self.direct = self._refused = None
        for fd in descriptors:
            if fd is not None:
                with suppress(OSError):
                    os.close(fd)

    def sync(self) -> DumpError | None:
        """Make the bytes and the size durable (fdatasync(2)); return the error, if any."""
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            return from_oserror(error, "fdatasync", self.path)
        self.drop_cache()
        return None

    def drop_cache(self) -> None:
        """Let the page cache forget what is durable by now."""
        if self._cached:
            with suppress(OSError):
                os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def abort(self) -> None:
        """Give up what was written, as far as it's ours."""
        self.close()

    def close(self) -> None:
        """Close the descriptors; the data was synced before, so that an error here says nothing new."""
        self.close_direct()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


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

    def rename(self, *, overwrite: bool) -> DumpError | None:
        """Give the file its final name; return the error, if any (without ``overwrite``, that the name is taken)."""
        assert self._temporary is not None
        try:
            self._rename(self._temporary, overwrite=overwrite)
        except FileExistsError:
            return DumpError(
                f"{self.path} appeared while it was written",
                path=self.path,
                operation="rename",
                errno=errno.EEXIST,
                hint="choose an empty folder, or allow --overwrite",
            )
        except OSError as error:
            return from_oserror(error, "rename", self.path)
        self._temporary = None
        return None

    def _rename(self, temporary: str, *, overwrite: bool) -> None:
        folder = self.folder.fd
        if not overwrite:
            try:
                rename_new(folder, temporary, self.name)
                return
            except OSError as error:
                if error.errno not in _NO_RENAME_NEW:
                    raise
            if self.folder.exists(self.name):  # The filesystem leaves no better way than to look first.
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(temporary, self.name, src_dir_fd=folder, dst_dir_fd=folder)

    def discard(self) -> None:
        """Remove the file, under whichever name it has now."""
        with suppress(OSError):
            os.unlink(self._temporary or self.name, dir_fd=self.folder.fd)

    def abort(self) -> None:
        """Remove the temporary file and close the descriptors; does nothing to a sink that is closed."""
        if self.fd >= 0:
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
        _, self._page = filesystem(folder.fd)

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
