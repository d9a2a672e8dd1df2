"""Where what the user names as an output leads: a folder, ``-``, or ``scheme://...``.

This is the one table of kinds of places. A new one is a module that has a `Store`, and a line in `register`.
"""

from __future__ import annotations

import os
import re
from contextlib import closing, suppress
from typing import Final, Protocol

from asyncdump.errors import DumpError, absolute
from asyncdump.sinks.folder import Folder
from asyncdump.sinks.place import Entry, Store
from asyncdump.vocabulary.values import STANDARD_OUTPUT

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

FILE: Final = "file"
"""The scheme of a path, whether it is written or not."""


class Opener(Protocol):
    """Opens the store that an address names; ``make`` creates it where it is missing."""

    def __call__(self, address: str, *, make: bool) -> Store: ...


_OPENERS: Final[dict[str, Opener]] = {}


def register(scheme: str, opener: Opener) -> None:
    """Have addresses that begin with ``scheme://`` opened by ``opener``, which is given all of the address."""
    _OPENERS[scheme] = opener


def scheme_of(output: str) -> str:
    """Return the scheme of an output, or ``file`` where it has none."""
    found = _SCHEME.match(output)
    return found[1].lower() if found else FILE


def resolve(output: str, folder: str = "") -> str:
    """Return the output that a user has named in the form that plans have it: an absolute path, ``-``, an address.

    Args:
        output: a path, ``-``, ``file:///path``, ``scheme://...``.
        folder: what a path is relative to; by default the working directory.

    Raises:
        ValueError: nothing here opens addresses of its scheme.
        DumpError: the working directory has been removed.
    """
    if output == STANDARD_OUTPUT:
        return output
    scheme = scheme_of(output)
    if scheme == FILE:
        found = _SCHEME.match(output)
        path = output[found.end() :] if found else output
        return absolute(os.path.join(folder, path))
    if scheme not in _OPENERS:
        known = ", ".join(f"{each}://" for each in sorted({FILE, *_OPENERS}))
        raise ValueError(f"{scheme}:// is not an output that is known here: use a path, -, or one of {known}")
    return output.rstrip("/")


def local_folder(output: str) -> str | None:
    """Return the path of an output that is a folder of this host, or None; it may not exist yet."""
    return output if output != STANDARD_OUTPUT and scheme_of(output) == FILE else None


def open_store(output: str, *, make: bool = True) -> Store:
    """Open the store that a resolved output names; the caller closes it.

    Raises:
        DumpError: it can't be created or opened.
    """
    if (path := local_folder(output)) is not None:
        return Folder(path, make=make)
    return _OPENERS[scheme_of(output)](output, make=make)


def entry_of(path: str) -> Entry | None:
    """Return what stands under the full path of a dump, as `Store.entry` does."""
    if local_folder(path) is not None:
        try:
            return Entry.of(os.lstat(path))
        except (OSError, ValueError):
            return None
    place, name = os.path.split(path)
    with suppress(DumpError), closing(open_store(place, make=False)) as store:
        return store.entry(name)
    return None


def open_named(given: str, name: str) -> tuple[Store, str]:
    """Open the store that a user has named, or whose file ``name`` that is; return that name then, else an empty one.

    Raises:
        ValueError, DumpError: as `resolve` and `open_store`.
    """
    output = resolve(os.path.join(os.curdir, given) if given == STANDARD_OUTPUT else given)
    path = local_folder(output)
    place, last = os.path.split(output)
    if last == name if path is None else not os.path.isdir(path):
        return open_store(place, make=False), last
    return open_store(output, make=False), ""
