"""The arguments of programs, which may be secrets, kept out of what the programs say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from asyncdump.text import utf8

_SHORTEST: Final = 4
"""Characters of a secret: shorter ones can't be told from ordinary words."""
_TELLING: Final = 8
"""Characters from which on a word of a script is taken for a secret whatever it is made of."""

_FLAG: Final = re.compile(r"--[a-z][a-z-]*|-[A-Za-z0-9]")
_VALUE: Final = re.compile(r"--?[\w-]+=|[\w.-]+[=:]|-[A-Za-z]")
"""What stands before a value in one argument: ``--key=``, ``user:``, ``-p``."""
_PUNCTUATION: Final = re.compile(r"""[=:,;@/&?|<>(){}'"]+""")
_PLAIN: Final = re.compile(r"[a-z]*")


def masked(said: str, command: Sequence[str], *, cut: bool = False) -> str:
    """Return what a program says with ``[argument N]`` in the place of its arguments, of their values and parts.

    Of a script only those words are taken that aren't plain: what it says is mostly made of them. With ``cut`` the
    beginning is missing: the end of an argument is looked for there.
    """
    places: dict[str, int] = {}
    for place, argument in enumerate(command[1:], 1):
        for secret in _secrets(utf8(argument)):
            places.setdefault(secret.lower(), place)
    if not places:
        return said
    if cut:
        said = _without_fragment(said, places)
    longest_first = sorted(places, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)
    return pattern.sub(lambda found: f"[argument {places.get(found[0].lower(), 1)}]", said)


def _secrets(argument: str) -> Iterator[str]:
    words = argument.split()
    script = len(words) > 1
    if script:
        yield from _long([argument.strip()], plain=True)
    for word in words:
        if not _FLAG.fullmatch(word):
            yield from _long([word], plain=not script)
        if found := _VALUE.match(word):
            value = word[found.end() :]
            yield from _long([value, *_PUNCTUATION.split(value)], plain=True)
        yield from _long(_PUNCTUATION.split(_without_option(word)), plain=not script)


def _without_option(word: str) -> str:
    return word.partition("=")[2] if word.startswith("--") else word


def _long(parts: Sequence[str], *, plain: bool) -> Iterator[str]:
    for part in parts:
        if len(part) >= _SHORTEST and (plain or len(part) >= _TELLING or not _PLAIN.fullmatch(part)):
            yield part


def _without_fragment(said: str, places: dict[str, int]) -> str:
    begin = said.lower()
    longest = max(
        (length for secret in places for length in range(_SHORTEST, len(secret)) if begin.startswith(secret[-length:])),
        default=0,
    )
    return said[longest:]
