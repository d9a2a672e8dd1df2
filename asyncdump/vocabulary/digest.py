"""One interface for xxh128, blake3 and sha256, and the block digests that are computed along with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, cast

from asyncdump.vocabulary.blocks import BLOCK, WIDTH, ZERO, Blocks
from asyncdump.vocabulary.values import Checksum

_ZEROS: Final = memoryview(bytes(1 << 20))


class Digest(Protocol):
    """A running digest. Each ``update`` of more than 100 KiB releases the GIL."""

    def update(self, data: memoryview, /) -> object: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


class Hasher:
    """Computes the digest of a file, and a separate digest of each `BLOCK` of it.

    The bytes must come in the order of the file, so only one thread at a time may call `update`, `take` and `zeros`.
    `take` does the part of `update` that depends on the order, and leaves complete blocks to `put`. Several threads may
    call `put` at the same time: `take` has already reserved a place in the row for each block, and no other call writes
    there.
    """

    def __init__(self, digest: Digest, *, halves: bool = False) -> None:
        """With ``halves``, the last 8 bytes of the digest are the XXH3-64 of the same bytes, as with XXH3-128."""
        from xxhash import xxh3_64_digest

        self.length = 0
        self._digest: Final = digest
        self._digest_of: Final[Callable[[memoryview], bytes]] = xxh3_64_digest
        self._halves: Final = halves
        self._row: Final = bytearray()
        self._open: Digest  # The block that isn't full yet, if `length` ends within one.

    def update(self, data: memoryview, /) -> None:
        self.put(*self.take(data))

    def take(self, data: memoryview) -> tuple[int, memoryview]:
        """Hash the next bytes of the file; return the complete blocks in them, for `put`, and their place."""
        if self._halves and not self.length and len(data) >= BLOCK:
            # After the first block, the digest of the file is also that of the block: one pass computes both.
            self._digest.update(data[:BLOCK])
            self._row.extend(self._digest.digest()[-WIDTH:])
            self.length, data = BLOCK, data[BLOCK:]
        self._digest.update(data)
        return self._give_places(data)

    def _give_places(self, data: memoryview) -> tuple[int, memoryview]:
        filled = self.length % BLOCK
        self.length += len(data)
        if filled:
            rest = data[: BLOCK - filled]
            data = data[BLOCK - filled :]
            self._open.update(rest)
            if filled + len(rest) == BLOCK:
                self._row.extend(self._open.digest())
        place, whole = len(self._row), len(data) - len(data) % BLOCK
        self._row.extend(bytes(whole // BLOCK * WIDTH))
        if whole < len(data):
            self._open = _xxh3_64(data[whole:])
        return place, data[:whole]

    def put(self, place: int, data: memoryview) -> None:
        """Compute the digests of complete blocks and store them, starting at ``place``."""
        for start in range(0, len(data), BLOCK):
            self._row[place : place + WIDTH] = self._digest_of(data[start : start + BLOCK])
            place += WIDTH

    def zeros(self, length: int) -> None:
        """Hash ``length`` zeros; the digest of a block of zeros is a constant."""
        for done in range(0, length, len(_ZEROS)):
            self._digest.update(_ZEROS[: length - done])
        first = min(length, -self.length % BLOCK)
        self._fill_up(first)
        self._row.extend(ZERO * ((length - first) // BLOCK))
        self.length += (length - first) // BLOCK * BLOCK
        self._fill_up((length - first) % BLOCK)

    def _fill_up(self, length: int) -> None:
        """Add zeros that are less than a block, and don't cross the end of one."""
        for done in range(0, length, len(_ZEROS)):
            self._give_places(_ZEROS[: length - done])

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def blocks(self) -> Blocks:
        """Return the digests of all blocks so far. Call this only after `put` for everything that `take` returned."""
        last = self._open.digest() if self.length % BLOCK else b""
        return Blocks(length=self.length, grain=BLOCK, digests=bytes(self._row) + last).within()


def new_digest(checksum: Checksum) -> Hasher | None:
    """Return a new hasher, or None for ``none``."""
    digest = bare_digest(checksum)
    return None if digest is None else Hasher(digest, halves=checksum == "xxh128")


def bare_digest(checksum: Checksum) -> Digest | None:
    """Return a new digest without block digests, or None for ``none``. The library is imported on first use."""
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


def _xxh3_64(data: memoryview) -> Digest:
    import xxhash

    return xxhash.xxh3_64(data)


def checksum_of(digest: str | None) -> Checksum:
    """Return the kind of a digest as records have it, ``xxh128:...``; ``none`` where there is no digest."""
    return "none" if digest is None else cast(Checksum, digest.partition(":")[0])  # Checked when a record is read.
