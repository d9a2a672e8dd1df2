"""Mask the arguments of a program, which may be secrets, in the output of that program."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from asyncdump.text import utf8

_SHORTEST: Final = 4
"""The minimum length of a secret: shorter ones can't be distinguished from ordinary words."""
_TELLING: Final = 8
"""The length from which any word of a script counts as a secret, whatever its characters are."""

_FLAG: Final = re.compile(r"--[a-z][a-z-]*|-[A-Za-z0-9]")
_VALUE: Final = re.compile(r"--?[\w-]+=|[\w.-]+[=:]|-[A-Za-z]")
"""The part of an argument before a value: ``--key=``, ``user:``, ``-p``."""
_PUNCTUATION: Final = re.compile(r"""[=:,;@/&?|<>(){}'"]+""")
_PLAIN: Final = re.compile(r"[a-z]*")


def masked(said: str, command: Sequence[str], *, cut: bool = False) -> str:
    """Return the output of a program with its arguments, their values and their parts replaced by ``[argument N]``.

    Of a script (an argument with spaces), only words that aren't plain lower-case words are replaced, because its
    messages mostly consist of plain words. With ``cut``, the start of the output is missing, and may begin with the end
    of an argument.
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
