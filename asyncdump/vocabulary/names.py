"""The names of asyncdump's own files in an output directory, and the names that a dump can't have."""

from __future__ import annotations

import os
from typing import Final

from asyncdump.text import is_encodable

TEMPORARY_PREFIX: Final = ".asyncdump-"


LISTS: Final = {"xxh128": "XXH128SUMS", "blake3": "B3SUMS", "sha256": "SHA256SUMS"}
"""The digest list for each checksum, in the format that ``xxhsum -c`` and similar tools verify."""


RECEIPT: Final = "receipt.json"


RESERVED: Final = frozenset({RECEIPT, *LISTS.values()})


_LONGEST_NAME: Final = 255


def name_complaint(name: str) -> str:
    """Return why a dump can't have this name, or an empty string."""
    if len(name) > _LONGEST_NAME:
        return f"{name[:20]!r}... is longer than {_LONGEST_NAME} bytes"
    if "/" in name:
        return f"{name!r} leaves the output folder: a name has no slash"
    if name == "-":
        return "'-' is what digest tools call standard input: choose another name"
    if name in {"", ".", ".."}:
        return f"{name!r} is no file name"
    if any(ord(character) < ord(" ") or character == "\x7f" for character in name):
        return f"{name!r} holds a control character, which the digest lists can't"
    if not is_encodable(name):
        return f"{name!r} holds a character that no file name can"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        return f"{name[:20]!r}... is longer than {_LONGEST_NAME} bytes"
    if name in RESERVED or name.startswith(TEMPORARY_PREFIX):
        return f"{name} is a name that asyncdump uses itself"
    return ""


JOURNAL: Final = f"{TEMPORARY_PREFIX}journal"


LOCK: Final = ".asyncdump-lock"
