"""Names that a filesystem treats as the same: it may fold case, normalize Unicode or drop dots, by its own rules."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress

from asyncdump.kernel.linux import close_quietly
from asyncdump.sinks.opened import OpenFolder


def clashes(folder: OpenFolder, names: Iterable[str]) -> list[tuple[str, str]]:
    """Return each name that refers to the same file in ``folder`` as an earlier name, with that earlier name.

    Only similar names are tried, by creating empty files in a temporary directory. If that can't be created, no clash
    is found, which is safe: a run never replaces one of its own dumps (`Folder.publish`).
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        alike[_folded(name)].append(name)
    groups = [group for group in alike.values() if len(group) > 1]
    found: list[tuple[str, str]] = []
    if groups:
        with suppress(OSError), folder.nook() as nook:
            for group in groups:
                found += _same(nook, group)
    return found


def _folded(name: str) -> str:
    """Return a form that is equal for all names that any filesystem might treat as the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).rstrip(". ")


def _same(nook: int, names: list[str]) -> list[tuple[str, str]]:
    found = []
    made: dict[int, str] = {}
    for name in names:
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=nook)
            made[os.fstat(fd).st_ino] = name
            close_quietly(fd)
        except FileExistsError:
            inode = os.stat(name, dir_fd=nook, follow_symlinks=False).st_ino
            found.append((name, made.get(inode, names[0])))
        except OSError:  # A name that can't be created doesn't clash: its dump will report the error.
            continue
    return found
