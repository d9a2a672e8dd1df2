"""What records of version 1 place damage by: digests of all up to each block, noted on the way."""

from __future__ import annotations

from typing import Final

from asyncdump.vocabulary.blocks import BLOCK
from asyncdump.vocabulary.digest import Digest

MOST_MARKS: Final = 1 << 17
"""Marks of one file. A file of more than 256 GiB has one each 4 MiB, and so on."""

_MARK: Final = 4


class Marked:
    """A digest that notes on its way what it is after each `BLOCK`: comparing two such rows places the first damage.

    Attributes:
        marks: the first bytes of the digest after each whole block, or of a larger `grain` after each of those.
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
                # The last of an odd number has no place in the larger grain: the next comes after one more of these.
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
    """Return the byte where the first block begins, of a file of ``size`` bytes, in which two rows of marks differ."""
    ours, theirs = marks.encode(), others.encode()
    while len(theirs) > MOST_MARKS * 2 * _MARK:  # Recorded when there was no limit.
        theirs = _halved(theirs, 2 * _MARK)
    return first_difference(ours.decode(), theirs.decode()) * grain(size)


def first_difference(marks: str, others: str) -> int:
    """Return the number of the first block in which two rows of marks, in hexadecimal, differ; else how many agree."""
    width = 2 * _MARK
    blocks = min(len(marks), len(others)) // width
    for block in range(blocks):
        if marks[block * width :][:width] != others[block * width :][:width]:
            return block
    return blocks
