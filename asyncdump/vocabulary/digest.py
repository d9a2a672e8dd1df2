"""xxh128, blake3 and sha256 behind one name."""

from __future__ import annotations

from typing import Final, Protocol

from asyncdump.vocabulary.values import Checksum

BLOCK: Final = 2 << 20
"""Bytes of a dump between two marks: the grain in which damage is placed."""

MOST_MARKS: Final = 1 << 17
"""Marks of one file, which are a MiB in its record. A file of more than 256 GiB has one each 4 MiB, and so on."""

_MARK: Final = 4


class Digest(Protocol):
    """What hashes: each ``update`` of more than a few KiB releases the GIL."""

    def update(self, data: memoryview, /) -> object: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


class Marked:
    """A digest that notes on its way what it is after each `BLOCK`: comparing two such rows places the first damage.

    To look at a digest under way costs less than a microsecond, where a digest for each block would hash twice.

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


def new_digest(checksum: Checksum) -> Marked | None:
    """Return a fresh digest, or None for ``none``. The library behind it is imported on first use."""
    digest = _new(checksum)
    return None if digest is None else Marked(digest)


def _new(checksum: Checksum) -> Digest | None:
    match checksum:
        case "none":
            return None
        case "xxh128":
            import xxhash

            return xxhash.xxh3_128()
        case "sha256":
            import hashlib

            return hashlib.sha256()
        case "blake3":
            import blake3

            return blake3.blake3()
