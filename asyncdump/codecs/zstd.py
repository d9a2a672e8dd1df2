"""The codec zstd (RFC 8878)."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from asyncdump.codecs.codec import Compression, Compressor, FrameError, Unsupported
from asyncdump.vocabulary.size import format_size

if TYPE_CHECKING:
    import zstandard

WINDOWS: Final = (10, 27)
"""The log2 of window sizes that every reader of zstd supports without an option (``zstd --long``)."""

_MAGIC: Final = b"\x28\xb5\x2f\xfd"

_LARGEST_WINDOW: Final = 1 << 30
"""The largest window in bytes. A decompressor needs as much memory as the window of the frame (RFC 8878)."""

_HAS_CHECKSUM: Final = 1 << 2
"""In the fifth byte of a frame (RFC 8878)."""


class ZstdOptions(Compression, frozen=True, kw_only=True, gc=False):
    """How a file is compressed with zstd.

    Each frame ends with the low 32 bits of the XXH64 of its content, if it has a checksum.

    Attributes:
        long: the log2 of the window for long-distance matching (``zstd --long``), or None.
    """

    level: int = 3
    long: int | None = None

    @property
    def codec(self) -> ZstdCodec:
        return ZSTD

    @property
    def cost(self) -> int:
        return _cost(self)

    def new_compressor(self) -> Compressor:
        import zstandard

        return zstandard.ZstdCompressor(compression_params=_parameters(self)).compress


@lru_cache
def _cost(options: ZstdOptions) -> int:
    # The library divides by zero when it estimates a context with a long window.
    context = _parameters(msgspec.structs.replace(options, long=None)).estimated_compression_context_size()
    far = (1 << min(options.long, options.frame.bit_length())) // 8 if options.long else 0
    return int(context) + far + options.room + options.frame + options.frame // 128


def _parameters(options: ZstdOptions) -> zstandard.ZstdCompressionParameters:
    import zstandard

    far = {"enable_ldm": True, "window_log": options.long} if options.long else {}
    return zstandard.ZstdCompressionParameters.from_level(
        options.level, source_size=options.frame, write_checksum=options.checksum, write_content_size=True, **far
    )


class ZstdCodec:
    """The `Codec`."""

    name: Final = "zstd"
    suffix: Final = ".zst"
    levels: Final = (-100, 22)
    header: Final = 18
    best_ratio: Final = 1 << 15  # A block of 4 bytes may contain 128 KiB.
    worst_ratio: Final = 4  # A separate block for each byte: 3 bytes and the byte.
    repeats: Final = 4096
    bite: Final = 4 << 10  # Four bytes may become 128 KiB.

    def compression(self, level: int | None = None) -> ZstdOptions:
        return ZstdOptions() if level is None else ZstdOptions(level=level)

    def missing(self) -> str:
        return ""

    def begins(self, start: bytes) -> bool:
        return start == _MAGIC

    def length_of(self, header: bytes) -> int | None:
        import zstandard

        try:
            length = zstandard.frame_content_size(header)
        except zstandard.ZstdError:
            return None
        return None if length < 0 else length

    def unsupported(self, header: bytes) -> Unsupported | None:
        import zstandard

        if not self.begins(header[:4]):  # For a skippable frame, the library returns a byte of it as the dictionary ID.
            return None
        try:
            asked = zstandard.get_frame_parameters(header)
        except zstandard.ZstdError:
            return None  # The decompressor will report what is wrong with it.
        if asked.window_size > _LARGEST_WINDOW:
            needed, most = format_size(asked.window_size), format_size(_LARGEST_WINDOW)
            return Unsupported(
                f"was compressed with a window of {needed}, the maximum is {most}",
                "reading it needs that much memory: zstd -dc --long=31 can do it",
            )
        if asked.dict_id:
            return Unsupported(
                f"was compressed with the dictionary {asked.dict_id}", "read it with zstd -dc -D DICTIONARY"
            )
        return None

    def decompress(self, stored: memoryview, target: memoryview) -> None:
        import zstandard

        try:
            with _decompressor().stream_reader(stored, read_across_frames=False) as reader:
                done = 0
                while done < len(target) and (got := reader.readinto(target[done:])):
                    done += got
                if done < len(target) or reader.read(1):
                    raise FrameError(f"it doesn't contain {len(target)} bytes")
        except zstandard.ZstdError as error:
            raise FrameError(str(error)) from error

    def decompressor(self) -> _Decompressor:
        return _Decompressor()

    def checksum_of(self, stored: memoryview, content: memoryview) -> int:
        if stored[4] & _HAS_CHECKSUM:  # It was verified when the frame was decompressed.
            return int.from_bytes(stored[-4:], "little")
        import xxhash

        return int(xxhash.xxh64_intdigest(content)) & 0xFFFFFFFF


class _Decompressor:
    def __init__(self) -> None:
        import zstandard

        self._error: Final = zstandard.ZstdError
        self._frame = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()

    @property
    def eof(self) -> bool:
        return self._frame.eof

    @property
    def unused(self) -> int:
        return len(self._frame.unused_data)

    def decompress(self, piece: memoryview) -> bytes:
        try:
            return self._frame.decompress(piece)
        except self._error as error:
            raise FrameError(str(error)) from error


_kept = threading.local()


def _decompressor() -> Any:
    """Return the decompressor of this thread, whose context is allocated only once."""
    import zstandard

    if not hasattr(_kept, "decompressor"):
        _kept.decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    return _kept.decompressor


ZSTD: Final = ZstdCodec()
