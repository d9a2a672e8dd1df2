"""The zstd seekable format: a table of the frames at the end of the file, in a frame that other readers skip."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

_SKIPPABLE: Final = 0x184D2A5E
_MAGIC: Final = 0x8F92EAB1


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame: ``length`` bytes of content from ``offset``, ``stored`` of the file from ``stored_offset``."""

    offset: int
    length: int
    stored_offset: int
    stored: int
    checksum: int | None = None


def seek_table(frames: Sequence[Frame]) -> bytes:
    """Return the skippable frame that lists ``frames``; with their checksums, if all have one."""
    checksums = all(frame.checksum is not None for frame in frames)
    entries = b"".join(
        struct.pack("<III", frame.stored, frame.length, frame.checksum)
        if checksums
        else struct.pack("<II", frame.stored, frame.length)
        for frame in frames
    )
    footer = struct.pack("<IBI", len(frames), checksums << 7, _MAGIC)
    return struct.pack("<II", _SKIPPABLE, len(entries) + len(footer)) + entries + footer
