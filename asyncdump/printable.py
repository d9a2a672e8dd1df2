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
