"""An open directory and its names, which are looked up relative to its descriptor without following links."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Final

from asyncdump.errors import DumpError, explain, from_oserror
from asyncdump.kernel.linux import close_quietly, filesystem
from asyncdump.sinks.place import Entry
from asyncdump.sources.file import open_file
from asyncdump.vocabulary.names import TEMPORARY_PREFIX

PARTIAL: Final = ".partial"
_NOOK: Final = ".names"


class OpenFolder:
    """An open directory.

    Attributes:
        fd: its descriptor.
        filesystem, block: the name of its filesystem, and its block size in bytes; on hugetlbfs, the huge page size.
        device: its device number (stat(2)).
    """

    def __init__(self, path: str, *, make: bool = True) -> None:
        """Open the directory; with ``make``, create it with mode 0700 if it is missing.

        Raises:
            DumpError: it can't be created or opened, or isn't a directory.
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
            except OSError:  # A filesystem that was shut down after errors may still open directories.
                close_quietly(self.fd)
                raise
        self._run: Final = os.urandom(4).hex()
        self._numbers: Final = count(1)
        self._held: dict[int, str] = {}

    def temporary(self, suffix: str = PARTIAL) -> str:
        """Return a temporary name that is unique to this call."""
        return f"{TEMPORARY_PREFIX}{self._run}-{next(self._numbers)}{suffix}"

    def sweep(self) -> None:
        """Remove the temporary files of killed runs. The caller must have the lock."""
        with explain("readdir", self.path):
            stale = [name for name in os.listdir(self.fd) if name.startswith(TEMPORARY_PREFIX)]
        for name in stale:
            with suppress(OSError):
                if name.endswith(PARTIAL):
                    os.unlink(name, dir_fd=self.fd)
                elif name.endswith(_NOOK):
                    self._clear(name)

    @contextmanager
    def nook(self) -> Iterator[int]:
        """Yield the descriptor of a temporary directory within it, to try names in.

        Raises:
            OSError: it can't be created.
        """
        name = self.temporary(_NOOK)
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
        """Remove the directory of `nook` and its content."""
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            for each in os.listdir(fd):
                os.unlink(each, dir_fd=fd)
        finally:
            close_quietly(fd)
        os.rmdir(name, dir_fd=self.fd)

    def hold(self, name: str) -> bool:
        """Protect the file under a name: no other name of this run may replace it, even if they are the same here.

        The filesystem may fold case or normalize Unicode; the inode shows which file a name refers to. Return False if
        there is no file, or it is protected under another name. Two hard links are different names, though.
        """
        inode = self.inode(name)
        if inode is None:
            return False
        holder = self._held.setdefault(inode, name)
        return holder == name or self._are_links(holder, name)

    def note_published(self, name: str, inode: int) -> None:
        """Protect a file that was just published."""
        self._held[inode] = name

    def holder(self, name: str) -> str | None:
        """Return the name under which the file called ``name`` is protected, or None."""
        holder = self._held.get(inode) if (inode := self.inode(name)) is not None else None
        if holder is not None and holder != name and self._are_links(holder, name):
            return None
        return holder

    def _are_links(self, *names: str) -> bool:
        """Return whether names of one file are hard links: then the directory lists each of them as it is spelled."""
        return set(names) <= set(os.listdir(self.fd))

    def inode(self, name: str) -> int | None:
        """Return the inode number of a name, or None."""
        entry = self.entry(name)
        return None if entry is None else entry.inode

    def names(self) -> list[str]:
        with explain("readdir", self.path):
            return os.listdir(self.fd)

    def entry(self, name: str) -> Entry | None:
        try:
            return Entry.of(os.stat(name, dir_fd=self.fd, follow_symlinks=False))
        except (OSError, ValueError):  # If stat(2) fails, the rename will fail, too, and report why.
            return None

    def exists(self, name: str) -> bool:
        with explain("stat", self.path_of(name)):
            try:
                os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            except FileNotFoundError:
                return False
        return True

    def path_of(self, name: str) -> str:
        """Return the path of a name, for errors."""
        return os.path.join(self.path, name)

    def open(self, name: str) -> int:
        with explain("open", self.path_of(name)):
            return open_file(name, follow=False, folder=self.fd)

    def read_small(self, name: str, largest: int) -> bytes | None:
        path = self.path_of(name)
        try:
            fd = self.open(name)
        except DumpError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise DumpError(f"{path} is not a regular file", path=path, operation="read")
            if status.st_size > largest:
                raise DumpError(f"{path} has more than {largest} bytes", path=path, operation="read")
            with explain("read", path), open(fd, "rb", closefd=False) as file:
                return file.read(status.st_size)
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self.fd)

    def sync(self) -> DumpError | None:
        """Make the names in the directory durable (fsync(2)); return the error, if any."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            return from_oserror(error, "fsync", self.path)
        return None

    def close(self) -> None:
        """Close it; once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close_quietly(fd)


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
            if made:  # Otherwise the next run would assume that it is durable.
                with suppress(OSError):
                    os.rmdir(folder)
            raise


def _sync_folder(path: str) -> None:
    """Make the names in a directory durable: if a directory is lost, so are the dumps in it."""
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        close_quietly(fd)
