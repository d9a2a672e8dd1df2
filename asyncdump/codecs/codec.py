"""What a codec is: the protocol, and the frozen values that say how a file is compressed.

A codec stores content in frames that are compressed and decompressed one by one. Reading YAML needs these values too:
nothing here, nor in the modules of the codecs, imports ctypes, an engine or the library that compresses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

BUDGET: Final = 256 << 20
"""Bytes that compression may take at once: contexts, frames, and the frames compressed."""

FRAMES: Final = (4 << 10, 128 << 20)
"""The smallest and the largest content of a frame, in bytes."""

FRAME: Final = 2 << 20
"""The content of a frame by default: what the buffer of a lane holds."""

CodecName = Literal["zstd", "lz4"]

Compressor = Callable[[memoryview], bytes]
"""Makes one frame of what it is given. It is used by one thread at a time, and releases the interpreter's lock."""


class FrameError(Exception):
    """A frame isn't what its codec writes; the text says why."""


class Unsupported(msgspec.Struct, frozen=True):
    """Why a valid frame can't be read here, and what reads it."""

    reason: str
    hint: str


class Compression(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a file is compressed. Each codec has a subclass.

    Attributes:
        level: from fast to small, within the levels of the codec.
        threads: how many threads work on one file at most; 0 for as many as there are.
        frame: the bytes of content in each frame: the granularity of parallel work, and of reading back.
        checksum: whether each frame ends with a checksum of its content.
    """

    level: int
    threads: int = 0
    frame: int = FRAME
    checksum: bool = True

    def __str__(self) -> str:
        """Return what records call it: ``NAME:LEVEL``."""
        return f"{self.codec.name}:{self.level}"

    @property
    def codec(self) -> Codec:
        raise NotImplementedError

    @property
    def cost(self) -> int:
        """The bytes that one thread needs to compress: its context, a frame, and the frame compressed."""
        raise NotImplementedError

    def new_compressor(self) -> Compressor:
        """Return a compressor with a context of its own."""
        raise NotImplementedError

    @property
    def room(self) -> int:
        """The bytes of content of a frame, as a buffer has them: a huge page at least."""
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
        name: as manifests and records have it; the codec's own program has the same name.
        suffix: what names of its dumps end with.
        levels: the lowest and the highest.
        header: the bytes of the longest header of a frame.
        best_ratio: how many bytes of content a byte of a frame stands for at most.
        worst_ratio: how many bytes of a frame a byte of content takes at most, its headers apart.
        repeats: a frame that is smaller than its content by this factor holds one byte repeated, nearly always zeros.
        bite: the bytes that a `Decompressor` is given at once: what they become has no other limit.
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
        """Return the defaults, with another level if one is given."""
        ...

    def missing(self) -> str:
        """Return what to install before this can be used, in words, or an empty string."""
        ...

    def begins(self, start: bytes) -> bool:
        """Tell whether a frame of this codec begins with these bytes, the first four."""
        ...

    def length_of(self, header: bytes) -> int | None:
        """Return the bytes of content that a frame claims; None if it claims nothing, or its header is damaged."""
        ...

    def unsupported(self, header: bytes) -> Unsupported | None:
        """Return why a frame takes more to read than there is here, or None."""
        ...

    def decompress(self, stored: memoryview, target: memoryview) -> None:
        """Fill ``target`` with the content of a frame, comparing it with the frame's own checksum.

        No more memory is taken than the target and some MiB, whatever the frame claims.

        Raises:
            FrameError: the frame is damaged, or its content has another length.
        """
        ...

    def decompressor(self) -> Decompressor:
        """Return a decompressor of one frame, or of one that is skipped."""
        ...

    def checksum_of(self, stored: memoryview, content: memoryview) -> int:
        """Return the checksum of a frame's content as a seek table has it, 32 bits."""
        ...


def is_skipped(start: bytes) -> bool:
    """Tell whether a frame that every reader skips begins with these bytes, the first four.

    Both formats have the same 16 magic numbers for it (RFC 8878, LZ4 frame format): 0x184D2A50 to 0x184D2A5F.
    """
    return start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5  # noqa: PLR2004 (of the format)
