"""The digests of blocks, each by itself: they place damage, and tell what has changed since a former dump."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from asyncdump.vocabulary.values import Span

BLOCK: Final = 2 << 20
"""Bytes of one block: a huge page of the common size, and the buffer in which a digest is taken."""

MOST: Final = 1 << 17
"""Digests recorded of one file, which are a MiB: one of more than 256 GiB has one for each 4 MiB, and so on."""

WIDTH: Final = 8
"""Bytes of a digest."""

ZERO: Final = bytes.fromhex("94e26d8e04364852")
"""The digest of a block of zeros."""

_COARSEST: Final = 1 << 62


class Blocks(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The digest of each block of a file, by itself.

    Equal blocks have equal digests, whatever stands before them. XXH3 finds what has changed by chance or by its
    owner; it is no proof against somebody who makes blocks to match.

    Attributes:
        length: the bytes of all blocks together.
        grain: the bytes of one block; the last may be shorter. It is 2 MiB, times a power of two for a huge file.
        digests: 8 bytes for each block, one after another: the XXH3-64 of its bytes, big-endian. Of a block of twice
            the grain it is the XXH3-64 of the digests of its halves (16 bytes; 8 where there is only the first half).

    Raises:
        ValueError: these can't be the digests of so many bytes.
    """

    length: int
    grain: int = BLOCK
    digests: bytes = msgspec.field(name="xxh3_64")

    def __post_init__(self) -> None:
        if not BLOCK <= self.grain <= _COARSEST or self.grain & (self.grain - 1):
            raise ValueError(f"{self.grain} bytes are not the grain of blocks")
        if self.length < 0 or len(self.digests) != -(-self.length // self.grain) * WIDTH:
            raise ValueError(f"{len(self.digests)} bytes of digests don't fit {self.length} bytes of content")

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return len(self.digests) // WIDTH

    def coarser(self, grain: int) -> Blocks:
        """Return the same with blocks of ``grain`` bytes, where that is more."""
        digests, own = self.digests, self.grain
        while own < grain:
            digests, own = _halved(digests), own * 2
        return Blocks(length=self.length, grain=own, digests=digests)

    def within(self, most: int = MOST) -> Blocks:
        """Return the same in at most ``most`` blocks."""
        grain = self.grain
        while self.length > grain * most:
            grain *= 2
        return self if grain == self.grain else self.coarser(grain)

    def changed(self, since: Blocks) -> tuple[Span, ...]:
        """Return the ranges of this content whose blocks aren't the same in ``since``; neighbours are one range.

        What lies past the end of ``since`` has changed. What only ``since`` has isn't told: compare the lengths.
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
    """Return the digests of blocks twice as large."""
    from xxhash import xxh3_64_digest

    return b"".join(xxh3_64_digest(digests[start : start + 2 * WIDTH]) for start in range(0, len(digests), 2 * WIDTH))
