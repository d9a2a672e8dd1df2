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
        return f"{name!r} leaves the output directory: a name must not contain a slash"
    if name == "-":
        return "digest tools read '-' as standard input: choose a different name"
    if name in {"", ".", ".."}:
        return f"{name!r} is not a valid file name"
    if any(ord(character) < ord(" ") or character == "\x7f" for character in name):
        return f"{name!r} contains a control character, which isn't allowed in digest lists"
    if not is_encodable(name):
        return f"{name!r} contains a character that isn't allowed in a file name"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        return f"{name[:20]!r}... is longer than {_LONGEST_NAME} bytes"
    if name in RESERVED or name.startswith(TEMPORARY_PREFIX):
        return f"{name} is reserved by asyncdump"
    return ""


JOURNAL: Final = f"{TEMPORARY_PREFIX}journal"


LOCK: Final = ".asyncdump-lock"
