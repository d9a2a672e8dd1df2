"""The marks of version 1 records, which locate damage: the digest of everything up to each block."""

from __future__ import annotations

from typing import Final

from asyncdump.vocabulary.blocks import BLOCK
from asyncdump.vocabulary.digest import Digest

MOST_MARKS: Final = 1 << 17
"""The maximum number of marks of one file. A file of more than 256 GiB has one per 4 MiB, and so on."""

_MARK: Final = 4


class Marked:
    """A digest that records its value after each `BLOCK`: comparing two such rows locates the first damage.

    Attributes:
        marks: the first bytes of the digest after each complete block, or after each `grain` bytes of a huge file.
    """

    def __init__(self, digest: Digest) -> None:
        self.marks: Final = bytearray()
        self._digest: Final = digest
        self._grain = self._left = BLOCK

    def update(self, data: memoryview, /) -> None:
        while len(data) >= self._left:
            self._digest.update(data[: self._left])
            data = data[self._left :]
            self.marks.extend(self._digest.digest()[:_MARK])
            self._left = self._grain
            if len(self.marks) > MOST_MARKS * _MARK:
                # MOST_MARKS + 1 is odd: the last mark is dropped, and the next one follows after one more old grain.
                self.marks[:] = _halved(self.marks, _MARK)
                self._grain *= 2
        if data:
            self._digest.update(data)
            self._left -= len(data)

    def digest(self) -> bytes:
        return self._digest.digest()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def grain(size: int) -> int:
    """Return the bytes between two marks of a file of ``size`` bytes."""
    found = BLOCK
    while size // found > MOST_MARKS:
        found *= 2
    return found


def _halved(marks: bytes | bytearray, width: int) -> bytes:
    """Return every second mark."""
    return b"".join(marks[start : start + width] for start in range(width, len(marks), 2 * width))


def first_damage(marks: str, others: str, size: int) -> int:
    """Return the offset of the first block in which two rows of marks of a file of ``size`` bytes differ."""
    ours, theirs = marks.encode(), others.encode()
    while len(theirs) > MOST_MARKS * 2 * _MARK:  # Recorded before there was a limit.
        theirs = _halved(theirs, 2 * _MARK)
    return first_difference(ours.decode(), theirs.decode()) * grain(size)


def first_difference(marks: str, others: str) -> int:
    """Return the number of the first block in which two rows of hexadecimal marks differ, or how many they share."""
    width = 2 * _MARK
    blocks = min(len(marks), len(others)) // width
    for block in range(blocks):
        if marks[block * width :][:width] != others[block * width :][:width]:
            return block
    return blocks
