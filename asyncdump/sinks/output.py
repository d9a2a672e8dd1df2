"""From an output as the user specifies it to a place: a directory, ``-``, or ``scheme://...``.

This is the only table of kinds of places. A new kind is a module with a `Store` and a call of `register`.
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
"""The scheme of a path, explicit or not."""


class Opener(Protocol):
    """Opens the store of an address; with ``make``, creates it if it is missing."""

    def __call__(self, address: str, *, make: bool) -> Store: ...


_OPENERS: Final[dict[str, Opener]] = {}


def register(scheme: str, opener: Opener) -> None:
    """Open addresses that begin with ``scheme://`` with ``opener``, which gets the complete address."""
    _OPENERS[scheme] = opener


def scheme_of(output: str) -> str:
    """Return the scheme of an output, or ``file`` if it has none."""
    found = _SCHEME.match(output)
    return found[1].lower() if found else FILE


def resolve(output: str, folder: str = "") -> str:
    """Return an output in the form of a plan: an absolute path, ``-``, or an address.

    Args:
        output: a path, ``-``, ``file:///path`` or ``scheme://...``.
        folder: the directory that a path is relative to; by default the working directory.

    Raises:
        ValueError: its scheme is unknown.
        DumpError: the working directory was removed.
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
        raise ValueError(f"{scheme}:// is not a known kind of output: use a path, -, or one of {known}")
    return output.rstrip("/")


def local_folder(output: str) -> str | None:
    """Return the path of an output that is a directory of this host, or None; it may not exist yet."""
    return output if output != STANDARD_OUTPUT and scheme_of(output) == FILE else None


def open_store(output: str, *, make: bool = True) -> Store:
    """Open the store of a resolved output; the caller closes it.

    Raises:
        DumpError: it can't be created or opened.
    """
    if (path := local_folder(output)) is not None:
        return Folder(path, make=make)
    return _OPENERS[scheme_of(output)](output, make=make)


def entry_of(path: str) -> Entry | None:
    """Return the entry of a dump by its full path, as `Store.entry` does."""
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
    """Open the store that a user specifies directly or by its file ``name``; return it, and that name or an empty one.

    Raises:
        ValueError, DumpError: see `resolve` and `open_store`.
    """
    output = resolve(os.path.join(os.curdir, given) if given == STANDARD_OUTPUT else given)
    path = local_folder(output)
    place, last = os.path.split(output)
    if last == name if path is None else not os.path.isdir(path):
        return open_store(place, make=False), last
    return open_store(output, make=False), ""
