"""The output folder: temporary names, durability in groups, the rename that is the promise."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import ClassVar, Final

from asyncdump.errors import DumpError, NotDurableError, explain, from_oserror
from asyncdump.kernel.linux import (
    TRUE_ERRORS,
    close_quietly,
    copy_by_kernel,
    filesystem,
    rename_new,
    syncfs,
)
from asyncdump.sinks.file import Sink
from asyncdump.sinks.lock import Lock
from asyncdump.sinks.place import Synced
from asyncdump.sources.file import open_file
from asyncdump.vocabulary.names import LOCK, TEMPORARY_PREFIX

_SYNCFS_FLUSHES: Final = frozenset({"ext4", "xfs", "btrfs"})
"""Filesystems whose sync_fs commits a journal or a tree with a flush of the device's cache. Others promise less."""


_PARTIAL: Final = ".partial"


_NOOK: Final = ".names"


_GROUP_FOR_SYNCFS: Final = 3


_DIRTY_FOR_SYNCFS: Final = 64 << 20


class Folder:
    """The output folder, held open: names are looked up beneath its descriptor, links in the way aren't followed."""

    def __init__(self, path: str, *, make: bool = True) -> None:
        """Open the folder; where it is missing, ``make`` creates it with mode 0700.

        Raises:
            DumpError: it can't be created or opened, or isn't a folder.
        """
        self.path: Final = path
        self.sequential: Final = False
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
        inode. Returns False where nothing stands there, or what does is held under another name; two hard links are
        two names all the same.
        """
        inode = self.inode(name)
        if inode is None:
            return False
        holder = self._held.setdefault(inode, name)
        return holder == name or self._are_links(holder, name)

    def note_published(self, name: str, inode: int) -> None:
        """Hold what has just got a name."""
        self._held[inode] = name

    def holder(self, name: str) -> str | None:
        """Return the name by which what stands under ``name`` is held, or None."""
        holder = self._held.get(inode) if (inode := self.inode(name)) is not None else None
        if holder is not None and holder != name and self._are_links(holder, name):
            return None
        return holder

    def _are_links(self, *names: str) -> bool:
        """Tell whether names that lead to one file are hard links of it: each is listed then, as it is written."""
        return set(names) <= set(os.listdir(self.fd))

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
            message, hint = (
                f"{self.path} appeared while it was written",
                "choose an empty directory, or pass {overwrite}",
            )
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

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
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
