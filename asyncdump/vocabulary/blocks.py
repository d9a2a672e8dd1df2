"""Separate digests of the blocks of a file: they locate damage, and show what has changed since an earlier dump."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from asyncdump.vocabulary.values import Span

BLOCK: Final = 2 << 20
"""The size of a block in bytes: that of the usual huge page, and of the buffer in which bytes are hashed."""

MOST: Final = 1 << 17
"""The maximum number of digests of one file, 1 MiB in all: a file of more than 256 GiB has one per 4 MiB, and so on."""

WIDTH: Final = 8
"""The size of a digest in bytes."""

ZERO: Final = bytes.fromhex("94e26d8e04364852")
"""The digest of a block of zeros."""

_COARSEST: Final = 1 << 62


class Blocks(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A separate digest of each block of a file.

    Equal blocks have equal digests, regardless of what precedes them. XXH3 detects changes by accident or by the owner
    of the data. It doesn't protect against an attacker who constructs a matching block.

    Attributes:
        length: the total length of all blocks, in bytes.
        grain: the length of one block, in bytes; the last one may be shorter. It is 2 MiB, times a power of two for a
            huge file.
        digests: 8 bytes for each block, concatenated: the XXH3-64 of the block, big-endian. For a block of twice the
            size, it is the XXH3-64 of the two digests of its halves (16 bytes; 8 if only the first half exists).

    Raises:
        ValueError: the number of digests doesn't match the length.
    """

    length: int
    grain: int = BLOCK
    digests: bytes = msgspec.field(name="xxh3_64")

    def __post_init__(self) -> None:
        if not BLOCK <= self.grain <= _COARSEST or self.grain & (self.grain - 1):
            raise ValueError(f"{self.grain} bytes is not a valid block size")
        if self.length < 0 or len(self.digests) != -(-self.length // self.grain) * WIDTH:
            raise ValueError(f"{len(self.digests)} bytes of digests don't fit {self.length} bytes of content")

    @property
    def count(self) -> int:
        """The number of blocks."""
        return len(self.digests) // WIDTH

    def coarser(self, grain: int) -> Blocks:
        """Return the same content with blocks of at least ``grain`` bytes."""
        digests, own = self.digests, self.grain
        while own < grain:
            digests, own = _halved(digests), own * 2
        return Blocks(length=self.length, grain=own, digests=digests)

    def within(self, most: int = MOST) -> Blocks:
        """Return the same content with at most ``most`` blocks."""
        grain = self.grain
        while self.length > grain * most:
            grain *= 2
        return self if grain == self.grain else self.coarser(grain)

    def changed(self, since: Blocks) -> tuple[Span, ...]:
        """Return the ranges of this content whose blocks differ from ``since``; adjacent blocks are merged.

        Blocks past the end of ``since`` count as changed. Content that only ``since`` has isn't reported: compare the
        lengths for that.
        """
        return tuple(self._ranges(since))

    def _ranges(self, since: Blocks) -> Iterator[Span]:
        ours, theirs = self.coarser(since.grain), since.coarser(self.grain)
        grain, begin = ours.grain, -1
        for number in range(ours.count):
            place = slice(number * WIDTH, (number + 1) * WIDTH)
            if ours.digests[place] == theirs.digests[place]:
                if begin >= 0:
                    yield Span(offset=begin, length=number * grain - begin)
                begin = -1
            elif begin < 0:
                begin = number * grain
        if begin >= 0:
            yield Span(offset=begin, length=self.length - begin)


def _halved(digests: bytes) -> bytes:
    """Return the digests of blocks of twice the size."""
    from xxhash import xxh3_64_digest

    return b"".join(xxh3_64_digest(digests[start : start + 2 * WIDTH]) for start in range(0, len(digests), 2 * WIDTH))
