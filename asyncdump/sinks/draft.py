"""A dump on its way to its name: a temporary file in its folder until it is published."""

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
"""Zeros on hugetlbfs are left out in pieces of so many bytes: the smallest of its pages."""


class Draft(FileSink):
    """A dump on its way to its name: until its folder publishes it, it has a temporary one.

    Attributes:
        replaces: whether what stands under its name is an older state of the same dump.
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
        """Do as `FileSink.open_again` does, by the file's name where there is no /proc."""
        with suppress(FileNotFoundError):
            return super().open_again(flags)
        assert self._temporary is not None
        fd = os.open(self._temporary, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder.fd)
        if os.path.sameopenfile(fd, self._fd):
            return fd
        close_quietly(fd)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def duplicate(self) -> int:
        """Return a second descriptor of the same open file (dup(2)), that outlives this sink; the caller closes it."""
        return os.dup(self._fd)

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

    grain: ClassVar[int] = HUGE_GRAIN

    def __init__(self, folder: OpenFolder, name: str, temporary: str) -> None:
        super().__init__(folder, name, temporary)
        self._page = folder.block

    @property
    def fd(self) -> None:
        """None: only a mapping takes bytes."""

    def resize(self, size: int) -> None:
        """Set the size, in whole huge pages."""
        super().resize(-(-size // self._page) * self._page)

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
        """Copy ``data`` into the pages that hold ``offset`` and what follows."""
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
