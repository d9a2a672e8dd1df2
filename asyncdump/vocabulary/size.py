"""Sizes in bytes as people write them: ``4096``, ``512KiB``, ``1GiB``, and every form that dd accepts."""

from __future__ import annotations

import re
from typing import Final

from asyncdump.text import shown

_UNITS = {"": 1, "c": 1, "w": 2, "b": 512, "B": 1}
for _power, _letter in enumerate("KMGTP", start=1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}iB": 1024**_power, f"{_letter}B": 1000**_power}
_UNITS |= {"k": 1024, "kB": 1000, "kiB": 1024}

_FACTOR: Final = re.compile(r"([0-9]{1,20})\s*([A-Za-z]*)")
_BASED: Final = re.compile("0x[0-9A-Fa-f]{1,20}|0o[0-7]{1,30}")
_ZERO_TIMES: Final = re.compile("(^|x)0x")
KIB: Final = 1024
MAXIMUM: Final = 2**63 - 1
"""The largest offset a Linux file can have (off_t), in bytes."""


def parse_size(text: int | str) -> int:
    """Return a size in bytes.

    The text is an integer with one of dd's suffixes: ``c`` 1, ``w`` 2, ``b`` 512, ``K`` or ``KiB`` 1024, ``KB`` 1000,
    and so on for M, G, T and P. Factors are multiplied: ``2x512``. A number without a suffix may be hexadecimal or
    octal as in YAML 1.2, ``0x1000`` and ``0o17``. Leading zeros are ignored.

    Raises:
        ValueError: the text isn't a size, is negative, or exceeds the largest file size.
    """
    if isinstance(text, bool) or not isinstance(text, int | str):
        raise _no_size(text)
    if isinstance(text, int):
        product = text
    elif _BASED.fullmatch(text.strip()):
        product = int(text.strip(), 0)
    else:
        product = _product(text)
    if product < 0:
        raise _no_size(text)
    if product > MAXIMUM:
        raise ValueError(f"{shown(text)} is more than a file can contain ({MAXIMUM} bytes)")
    return product


def _product(text: str) -> int:
    product = 1
    if _ZERO_TIMES.search(text.strip()):
        raise _no_size(text)
    for factor in text.strip().split("x"):
        match = _FACTOR.fullmatch(factor)
        if match is None or match[2] not in _UNITS:
            raise _no_size(text)
        product *= int(match[1]) * _UNITS[match[2]]
    return product


def _no_size(text: object) -> ValueError:
    return ValueError(f"{shown(text)} is not a size: write bytes, or 512KiB, 16MiB, 1GiB")


def refuse_zero_times(text: str) -> None:
    """Raise `ValueError` for a text that is hexadecimal here but means "0 times" to dd: ``0x10``."""
    if _ZERO_TIMES.search(text):
        raise ValueError(f"{shown(text)} is ambiguous (GNU dd reads it as 0 times a number): write it in decimal")


def format_size(count: float) -> str:
    """Return a number of bytes in binary units for display: ``8.0 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < KIB:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= KIB
    return f"{count:.1f} TiB"
