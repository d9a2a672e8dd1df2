"""What people give: paths, and values of any kind as messages show them."""

from __future__ import annotations

import os
from typing import Final

from asyncdump.printable import is_encodable

_LONGEST: Final = 80


def as_path(given: str | os.PathLike[str]) -> str:
    """Return a path that somebody gave, wherever: in a manifest, on the command line, in a program.

    A ``~`` or ``~USER`` that it begins with is the home folder; a file that is really called so is ``./~``.

    Raises:
        ValueError: it is empty, or no file can be called so.
    """
    path = os.fsdecode(given)
    if not path:
        raise ValueError("is an empty path")
    if "\0" in path:
        raise ValueError("holds a NUL character, which no path can")
    if not is_encodable(path):
        raise ValueError(f"{shown(path)} holds a character that no path can")
    return os.path.expanduser(path)


def shown(value: object) -> str:
    """Return a value as a message shows it, on one line and not too long: of 5,000 digits the first are enough."""
    if isinstance(value, str | bytes | list | tuple):
        value = value[: 2 * _LONGEST]
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits.
        return "a number of thousands of digits"
    return text if len(text) <= 2 * _LONGEST else f"{text[:_LONGEST]}..."
