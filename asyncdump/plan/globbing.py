"""The files that a glob matches: each one once, within limits, and without following symbolic links.

The patterns are those of Python's ``glob`` with ``recursive=True``: ``*``, ``?``, ``[...]``, and ``**`` for any number
of directories. A name that begins with a dot is only matched by a pattern that begins with one. The part before the
first wildcard is written by the user, and may contain symbolic links. After it, links are neither followed nor matched,
because anyone who can write there could have created them. The links in ``/proc/PID/fd`` and ``map_files`` are the
exception: only the kernel creates them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import translate
from typing import Final

import msgspec

from asyncdump.errors import DumpError, from_oserror
from asyncdump.kernel.linux import filesystem

MOST_ENTRIES: Final = 2_000_000
"""The maximum number of names that are examined for one glob."""

_MAGIC: Final = re.compile(r"[*?[]")
_OFTEN: Final = 1024


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A regular file, identified by ``device`` and ``inode`` (stat(2)) even if its path refers to another file later.

    If ``open`` is set, a process has the file open, and ``path`` is the kernel's link to it.
    """

    path: str
    device: int
    inode: int
    open: bool = False


class Finds(msgspec.Struct, frozen=True, kw_only=True):
    """The matches of a glob in natural order, and the errors of directories that could not be read."""

    files: tuple[Found, ...]
    failures: tuple[DumpError, ...]


def is_glob(path: str) -> bool:
    """Return whether a path contains wildcards."""
    return _MAGIC.search(path) is not None


def find(folder: str, pattern: str, check: Callable[[], None]) -> Finds:
    """Return the regular files that ``pattern`` matches, relative to ``folder``; each once, under its first name.

    A file whose path is literally the pattern is included, even if the wildcards don't match it. ``check`` is called
    now and then, and may raise to stop the search.

    Raises:
        DumpError: there are more than `MOST_ENTRIES` names to examine.
    """
    walk = _Walk(folder, pattern, check)
    walk.run()
    with suppress(OSError):  # No file has the pattern as its path.
        status = os.lstat(path := os.path.join(folder, pattern))
        if stat.S_ISREG(status.st_mode):
            walk.files[path] = _found(path, status)
    files = sorted(walk.files.items(), key=lambda item: (_natural(item[0]), item[0]))
    first: dict[tuple[int, int], Found] = {}
    for _, found in files:
        first.setdefault((found.device, found.inode), found)
    return Finds(files=tuple(first.values()), failures=tuple(walk.failures))


def _natural(path: str) -> list[tuple[str, int]]:
    """Return a key that sorts ``rtemap_2`` before ``rtemap_10``."""
    return [(text, int(digits or 0)) for text, digits in re.findall("([^0-9]*)([0-9]{0,18})", path)]


class _Folder(msgspec.Struct, frozen=True):
    """A directory to search: the positions that it has reached in the pattern, and its device and inode."""

    path: str
    positions: frozenset[int]
    identity: tuple[int, int] | None


class _Walk:
    """One walk. A directory is read once, for all positions of the pattern that it has reached.

    A directory is opened by its path, and another directory may have been moved there since it was seen. Its device and
    inode must therefore be the same.
    """

    def __init__(self, folder: str, pattern: str, check: Callable[[], None]) -> None:
        self.files: Final[dict[str, Found]] = {}
        self.failures: Final[list[DumpError]] = []
        parts = [part for part in pattern.split("/") if part]
        if pattern.endswith("/"):
            parts.append("")  # A trailing slash asks for directories, which are never matches here.
        plain = next(number for number, part in enumerate(parts) if is_glob(part))
        root = "/" if pattern.startswith("/") else folder
        self._parts: Final = parts[plain:]
        self._matchers: Final = [_matcher(part) for part in self._parts]
        self._check: Final = check
        self._pattern: Final = pattern
        self._seen = 0
        self._waiting = [_Folder(os.path.join(root, *parts[:plain]), self._reached({0}), None)]

    def _reached(self, positions: set[int]) -> frozenset[int]:
        """Return positions together with those after each ``**``, because ``**`` also matches zero directories."""
        reached = set(positions)
        for position in sorted(positions):
            while position < len(self._parts) and self._parts[position] == "**":
                position += 1  # noqa: PLW2901 (it walks on from there)
                reached.add(position)
        return frozenset(reached)

    def run(self) -> None:
        while self._waiting:
            self._look_into(self._waiting.pop())

    def _look_into(self, folder: _Folder) -> None:
        self._check()
        try:
            fd = self._open(folder)
            if fd is None:
                return
            try:
                for name, positions in self._names(fd, folder.positions):
                    self._step(fd, folder.path, name, positions)
            finally:
                os.close(fd)
        except OSError as error:
            self.failures.append(from_oserror(error, "open", folder.path))

    def _open(self, folder: _Folder) -> int | None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        if folder.identity is not None:
            flags |= os.O_NOFOLLOW
        if not self._lists(folder.positions):
            flags |= os.O_PATH  # It isn't listed, so search permission is enough.
        try:
            fd = os.open(folder.path, flags)
        except (FileNotFoundError, NotADirectoryError):  # It was removed or replaced: it matches nothing.
            return None
        status = os.fstat(fd)
        if folder.identity not in {None, (status.st_dev, status.st_ino)}:
            os.close(fd)
            return None
        return fd

    def _lists(self, positions: frozenset[int]) -> bool:
        return any(position < len(self._parts) and is_glob(self._parts[position]) for position in positions)

    def _names(self, fd: int, positions: frozenset[int]) -> Iterator[tuple[str, set[int]]]:
        """Yield the names in a directory that match a part of the pattern, with the positions that they reach."""
        reached: dict[str, set[int]] = {}
        for position in positions:
            if position < len(self._parts) and not is_glob(part := self._parts[position]) and part:
                reached.setdefault(part, set()).add(position + 1)
        if self._lists(positions):
            with os.scandir(fd) as entries:
                for entry in entries:
                    self._count()
                    if found := self._matching(entry.name, positions):
                        reached.setdefault(entry.name, set()).update(found)
        yield from reached.items()

    def _matching(self, name: str, positions: frozenset[int]) -> set[int]:
        found = set()
        for position in positions:
            part = self._parts[position] if position < len(self._parts) else ""
            if part == "**":
                if not name.startswith("."):
                    found.add(position)  # One more directory for ``**``, or a file if only ``**`` follows.
                    if all(rest == "**" for rest in self._parts[position:]):
                        found.add(len(self._parts))
            elif is_glob(part) and (not name.startswith(".") or part.startswith(".")):
                matches = self._matchers[position]
                if matches is not None and matches(name):
                    found.add(position + 1)
        return found

    def _step(self, fd: int, path: str, name: str, positions: set[int]) -> None:
        place = os.path.join(path, name)
        reached = self._reached(positions)
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) and any(position < len(self._parts) for position in reached):
                self._waiting.append(_Folder(place, reached, _identity_of_folder(fd, name)))
            elif len(self._parts) not in positions:
                return
            elif stat.S_ISREG(status.st_mode):
                self.files[place] = _found(place, status)
            elif _is_open_file(fd, path, status) and stat.S_ISREG((target := os.stat(name, dir_fd=fd)).st_mode):
                self.files[place] = _found(place, target, opened=True)
        except (FileNotFoundError, NotADirectoryError):  # It was removed meanwhile.
            return
        except OSError as error:
            self.failures.append(from_oserror(error, "stat", place))

    def _count(self) -> None:
        self._seen += 1
        if self._seen % _OFTEN == 0:
            self._check()
        if self._seen > MOST_ENTRIES:
            raise DumpError(
                f"{self._pattern} covers more than {MOST_ENTRIES:,} names",
                path=self._pattern,
                operation="glob",
                hint="specify the directories more precisely",
            )


def _found(path: str, status: os.stat_result, *, opened: bool = False) -> Found:
    return Found(path=path, device=status.st_dev, inode=status.st_ino, open=opened)


def _is_open_file(parent: int, path: str, status: os.stat_result) -> bool:
    """Return whether a link refers to a file that a process has open for reading (proc_pid_fd(5)).

    The mode of the link shows the access mode. Opening with O_PATH needs no permission, so such a descriptor could
    refer to any file, and doesn't count.
    """
    return (
        os.path.basename(path) in {"fd", "map_files"}
        and stat.S_ISLNK(status.st_mode)
        and bool(status.st_mode & stat.S_IRUSR)
        and filesystem(parent)[0] == "proc"
    )


def _identity_of_folder(parent: int, name: str) -> tuple[int, int]:
    """Return the device and inode of a directory that is about to be searched: this mounts an automount point."""
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    return status.st_dev, status.st_ino


def _matcher(part: str) -> Callable[[str], object] | None:
    return re.compile(translate(part)).match if is_glob(part) else None
