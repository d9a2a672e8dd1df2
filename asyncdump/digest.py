"""xxh128, blake3 and sha256 behind one name."""

from __future__ import annotations

from typing import Final, Literal, Protocol

Checksum = Literal["xxh128", "blake3", "sha256", "none"]

LISTS: Final = {"xxh128": "XXH128SUMS", "blake3": "B3SUMS", "sha256": "SHA256SUMS"}
"""The file that holds the digests of each kind, in the form that ``xxhsum -c`` and its like verify."""


class Digest(Protocol):
    """What hashes: each ``update`` of more than a few KiB releases the GIL."""

    def update(self, data: memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


def new_digest(checksum: Checksum) -> Digest | None:
    """Return a fresh digest, or None for ``none``. The library behind it is imported on first use."""
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
