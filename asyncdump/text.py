"""Make names and messages printable: no control characters, no line breaks, nothing invisible."""

from __future__ import annotations

import os
from typing import Final

_INVISIBLE: Final = frozenset(
    map(
        chr,
        (
            0x034F,  # Combining grapheme joiner.
            *(0x115F, 0x1160, 0x3164, 0xFFA0),  # Hangul fillers.
            *(0x17B4, 0x17B5),  # Khmer vowels without a glyph.
            *range(0x180B, 0x1810),  # Variation selectors: the Mongolian ones, then those of all scripts.
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)
"""Default-ignorable in Unicode, but printable to Python: a name looks the same with and without them."""


def text(name: str) -> str:
    """Return a name as one line that is safe to show in a terminal, a log or JSON, and looks like what it is.

    Bytes that aren't UTF-8 are escaped (``\\xff``), and so is everything that isn't printable (`str.isprintable`):
    control characters (``\\n``, ``\\x1b``), line separators, non-ASCII spaces, bidirectional controls (``\\u202e``) and
    zero-width characters (``\\u200b``). Backslashes are not escaped, so the result is ambiguous: code that needs the
    exact name keeps the name as well.
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
    """Return a name with each byte that isn't UTF-8 escaped: ``\\xff``."""
    if name.isascii():
        return name
    encoded = os.fsencode(name) if is_encodable(name) else name.encode(errors="backslashreplace")
    return encoded.decode(errors="backslashreplace")


def is_encodable(name: str) -> bool:
    """Return whether a name can be passed to the kernel: a string with unpaired surrogates may not encode."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


_LONGEST: Final = 80


def as_path(given: str | os.PathLike[str]) -> str:
    """Return a path that a user specified in a manifest, on the command line or in a program.

    A leading ``~`` or ``~USER`` is expanded to the home directory. A file named ``~`` is ``./~``.

    Raises:
        ValueError: the path is empty, or contains a character that no path can contain.
    """
    path = os.fsdecode(given)
    if not path:
        raise ValueError("is an empty path")
    if "\0" in path:
        raise ValueError("contains a NUL character, which isn't allowed in a path")
    if not is_encodable(path):
        raise ValueError(f"{shown(path)} contains a character that isn't allowed in a path")
    return os.path.expanduser(path)


def shown(value: object) -> str:
    """Return a value for use in a message: one line, shortened if it is long."""
    if isinstance(value, str | bytes | list | tuple):
        value = value[: 2 * _LONGEST]
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4300 digits (by default).
        return "a number of thousands of digits"
    return text if len(text) <= 2 * _LONGEST else f"{text[:_LONGEST]}..."
