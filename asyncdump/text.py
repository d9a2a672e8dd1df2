"""What may be printed: names and messages in which nothing steers a terminal, splits a line, or hides."""

from __future__ import annotations

import os
from typing import Final

_INVISIBLE: Final = frozenset(
    map(
        chr,
        (
            0x034F,  # The combining grapheme joiner.
            *(0x115F, 0x1160, 0x3164, 0xFFA0),  # Fillers of Hangul.
            *(0x17B4, 0x17B5),  # Vowels of Khmer that have no shape.
            *range(0x180B, 0x1810),  # Variation selectors, of Mongolian and of all scripts.
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)
"""What Unicode calls default ignorable, and Python printable: two names with and without it look the same."""


def text(name: str) -> str:
    """Return a text that can be shown, in a terminal, a log or JSON, as one line that is what it seems to be.

    Escaped are bytes that aren't UTF-8 (``\\xff``), and all that isn't printable (`str.isprintable`): controls
    (``\\n``, ``\\x1b``), separators of lines, spaces that aren't ASCII, what turns the direction of writing
    (``\\u202e``), what has no width (``\\u200b``). Backslashes stay: where the very name counts, it is kept beside.
    """
    shown = utf8(name)
    if shown.isprintable() and (shown.isascii() or _INVISIBLE.isdisjoint(shown)):
        return shown
    return "".join(map(_escaped, shown))


def _escaped(character: str) -> str:
    if character in _INVISIBLE:
        return f"\\u{ord(character):04x}" if ord(character) <= 0xFFFF else f"\\U{ord(character):08x}"  # noqa: PLR2004
    return character if character.isprintable() else repr(character)[1:-1]


def utf8(name: str) -> str:
    """Return a name with what isn't UTF-8 in it escaped: ``\\xff``."""
    if name.isascii():
        return name
    encoded = os.fsencode(name) if is_encodable(name) else name.encode(errors="backslashreplace")
    return encoded.decode(errors="backslashreplace")


def is_encodable(name: str) -> bool:
    """Tell whether a name can be given to the kernel: a text may hold halves of a surrogate pair."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


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
