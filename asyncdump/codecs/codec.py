"""The protocol of a codec, and the frozen values that say how a file is compressed.

A codec stores content in frames that are compressed and decompressed separately. Reading YAML needs these values, too:
therefore neither this module nor those of the codecs import ctypes, an engine or a compression library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

BUDGET: Final = 256 << 20
"""The memory budget of compression in bytes: for contexts, frames, and compressed frames."""

FRAMES: Final = (4 << 10, 128 << 20)
"""The smallest and the largest content size of a frame, in bytes."""

FRAME: Final = 2 << 20
"""The default content size of a frame: the size of a lane's buffer."""

CodecName = Literal["zstd", "lz4"]

Compressor = Callable[[memoryview], bytes]
"""Compresses its argument into one frame. It is used by one thread at a time, and releases the GIL."""


class FrameError(Exception):
    """A frame isn't what its codec writes; the text says why."""


class Unsupported(msgspec.Struct, frozen=True):
    """Why a valid frame can't be read here, and what reads it."""

    reason: str
    hint: str


class Compression(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a file is compressed. Each codec has a subclass.

    Attributes:
        level: the compression level, within the levels of the codec.
        threads: the maximum number of threads for one file; 0 for all.
        frame: the content size of each frame, in bytes: the unit of parallel work and of partial reads.
        checksum: whether each frame ends with a checksum of its content.
    """

    level: int
    threads: int = 0
    frame: int = FRAME
    checksum: bool = True

    def __str__(self) -> str:
        """Return its name in records: ``NAME:LEVEL``."""
        return f"{self.codec.name}:{self.level}"

    @property
    def codec(self) -> Codec:
        raise NotImplementedError

    @property
    def cost(self) -> int:
        """The memory that one thread needs to compress, in bytes: its context, a frame, and the compressed frame."""
        raise NotImplementedError

    def new_compressor(self) -> Compressor:
        """Return a compressor with its own context."""
        raise NotImplementedError

    @property
    def room(self) -> int:
        """The size of a buffer for the content of a frame, in bytes: at least a huge page."""
        return max(self.frame, FRAME)


class Decompressor(Protocol):
    """Decompresses one frame, piece by piece.

    Attributes:
        eof: whether the frame has ended.
        unused: how many bytes of the last piece come after its end.
    """

    @property
    def eof(self) -> bool: ...

    @property
    def unused(self) -> int: ...

    def decompress(self, piece: memoryview) -> bytes:
        """Return the content that a piece completes.

        Raises:
            FrameError: the frame is damaged.
        """
        ...


class Codec(Protocol):
    """One way to compress; it has no state, and any thread may use it.

    Attributes:
        name: its name in manifests and records, which is also that of its own program.
        suffix: the suffix of the names of its dumps.
        levels: the lowest and the highest level.
        header: the size of the longest header of a frame, in bytes.
        best_ratio: the maximum number of bytes of content for one byte of a frame.
        worst_ratio: the maximum number of bytes of a frame for one byte of content, without headers.
        repeats: if a frame is smaller than its content by this factor, it is one repeated byte, nearly always zero.
        bite: how many bytes to pass to a `Decompressor` at a time: nothing else limits the size of their content.
    """

    @property
    def name(self) -> CodecName: ...

    @property
    def suffix(self) -> str: ...

    @property
    def levels(self) -> tuple[int, int]: ...

    @property
    def header(self) -> int: ...

    @property
    def best_ratio(self) -> int: ...

    @property
    def worst_ratio(self) -> int: ...

    @property
    def repeats(self) -> int: ...

    @property
    def bite(self) -> int: ...

    def compression(self, level: int | None = None) -> Compression:
        """Return the default settings, with a different level if one is specified."""
        ...

    def missing(self) -> str:
        """Return a hint what to install before this codec can be used, or an empty string."""
        ...

    def begins(self, start: bytes) -> bool:
        """Return whether a frame of this codec begins with these four bytes."""
        ...

    def length_of(self, header: bytes) -> int | None:
        """Return the content size in the header of a frame; None if it has none, or the header is damaged."""
        ...

    def unsupported(self, header: bytes) -> Unsupported | None:
        """Return why a valid frame can't be read here, or None."""
        ...

    def decompress(self, stored: memoryview, target: memoryview) -> None:
        """Fill ``target`` with the content of a frame, and verify it with the frame's own checksum.

        This needs only a few MiB of memory in addition to the target, regardless of what the frame claims.

        Raises:
            FrameError: the frame is damaged, or its content has a different length.
        """
        ...

    def decompressor(self) -> Decompressor:
        """Return a decompressor for one frame, or for a skippable one."""
        ...

    def checksum_of(self, stored: memoryview, content: memoryview) -> int:
        """Return the 32-bit checksum of a frame's content, as in a seek table."""
        ...


def is_skipped(start: bytes) -> bool:
    """Return whether a frame that begins with these four bytes is one that every reader skips.

    Both formats have the same 16 magic numbers for it (RFC 8878, LZ4 frame format): 0x184D2A50 to 0x184D2A5F.
    """
    return start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5  # noqa: PLR2004 (of the format)
