"""A dump before it is published: a temporary file in the output directory."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from typing import ClassVar, Final

from asyncdump.errors import DumpError, explain, from_oserror
from asyncdump.kernel.linux import TRUE_ERRORS, close_quietly, copy_by_kernel, rename_new
from asyncdump.sinks.file import FileSink
from asyncdump.sinks.opened import OpenFolder

HUGE_GRAIN: Final = 2 << 20
"""The granularity of holes on hugetlbfs, in bytes: its smallest page."""


class Draft(FileSink):
    """A dump that has a temporary name until its directory publishes it.

    Attributes:
        replaces: whether the file under its final name is an older dump of the same source.
    """

    replaces: bool = False

    def __init__(self, folder: OpenFolder, name: str, temporary: str) -> None:
        self.folder: Final = folder
        self.name: Final = name
        self._temporary: str | None = temporary
        path = folder.path_of(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with explain("open", path):
            fd = os.open(temporary, flags, 0o600, dir_fd=folder.fd)
        super().__init__(fd, path)

    def open_again(self, flags: int = os.O_WRONLY) -> int:
        """Do the same as `FileSink.open_again`; without /proc, open the file by its name."""
        with suppress(FileNotFoundError):
            return super().open_again(flags)
        assert self._temporary is not None
        fd = os.open(self._temporary, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder.fd)
        if os.path.sameopenfile(fd, self._fd):  # Another file may have been moved to the temporary name.
            return fd
        close_quietly(fd)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def duplicate(self) -> int:
        """Return a duplicate of the descriptor (dup(2)) that outlives this sink; the caller closes it."""
        return os.dup(self._fd)

    def rename(self, *, overwrite: bool) -> DumpError | None:
        """Rename the file to its final name; return the error, if any. Without ``overwrite``, the name must be free.

        A dump that this run has published is never replaced, unless it was published under exactly this name.
        """
        assert self._temporary is not None
        folder = self.folder
        # Before the rename, after which the temporary name doesn't exist.
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
        """Rename it unless the name exists; return whether it was renamed."""
        try:
            rename_new(self.folder.fd, temporary, self.name)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in TRUE_ERRORS:
                raise
        if self.folder.exists(self.name):  # Without RENAME_NOREPLACE, checking first is the best that can be done.
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
            message = f"{self.path} would replace {holder}: the two names are the same on this filesystem"
            hint = "choose a different name for one of them"
        return DumpError(message, path=self.path, operation="rename", errno=errno.EEXIST, hint=hint)

    def discard(self) -> None:
        """Remove the file, unless it is published."""
        temporary, self._temporary = self._temporary, None
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self.folder.fd)

    def abort(self) -> None:
        """Remove the temporary file, unless it is published, and close the descriptors."""
        self.discard()
        self.close()


class MappedDraft(Draft):
    """A draft on hugetlbfs, which doesn't support write(2): it is filled through a mapping, except for pages of zeros.

    The kernel copies into the mapping (vmsplice(2), readv(2)), so that a page that the pool can't provide is an error
    (EFAULT) instead of a SIGBUS. Mapping a range reserves its pages, and fails with ENOMEM if there are too few.
    """

    grain: ClassVar[int] = HUGE_GRAIN

    def __init__(self, folder: OpenFolder, name: str, temporary: str) -> None:
        super().__init__(folder, name, temporary)
        self._page = folder.block

    @property
    def fd(self) -> None:
        """None, because hugetlbfs can only be written to through a mapping."""

    def resize(self, size: int) -> None:
        """Set the size, rounded up to complete huge pages."""
        super().resize(-(-size // self._page) * self._page)

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
        """Copy ``data`` into the pages from byte ``offset`` on."""
        start = offset - offset % self._page
        length = -(-(offset + len(data)) // self._page) * self._page - start
        try:
            mapping = mmap.mmap(self._fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE, offset=start)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise self._no_pages() from error
            raise
        view = memoryview(mapping)[offset - start :]
        try:
            copy_by_kernel(data, view)
        finally:
            view.release()
            # After an error, its traceback still refers to slices of the view: the mapping is freed with the traceback.
            with suppress(BufferError):
                mapping.close()
        self._count(len(data))

    def _no_pages(self) -> DumpError:
        return DumpError(
            f"{self.path} needs more huge pages than are free (ENOMEM)",
            path=self.path,
            operation="mmap",
            errno=errno.ENOMEM,
            hint="reserve more: /proc/sys/vm/nr_hugepages, or their pool in /sys/kernel/mm/hugepages",
        )
