"""One frame of a .zst, decompressed and compared with its checksum."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from asyncdump.codecs.detect import FRAME_HEADER, HEADERS, ZSTD_MAGIC
from asyncdump.codecs.seekable import Frame
from asyncdump.errors import DamagedError, DumpError, explain
from asyncdump.kernel.linux import read_past_cache
from asyncdump.vocabulary.size import format_size

if TYPE_CHECKING:
    pass


_LARGEST_FRAME: Final = 1 << 30


_LARGEST_WINDOW: Final = 1 << 30
"""Bytes of content that a decompressor keeps to repeat from: what a frame asks for is what it takes (RFC 8878)."""


_STEP: Final = 1 << 20


_HAS_CHECKSUM: Final = 1 << 2
"""In the fifth byte of a frame (RFC 8878)."""


_BEST_RATIO: Final = 1 << 15
"""How many bytes of content a byte of a frame stands for at the most: 128 KiB for the 4 of a block."""


_WORST_RATIO: Final = 4
"""How many bytes a byte of content takes at the most: a block of its own, of 3 bytes and itself."""


def stored_frame(fd: int, frame: Frame, index: int, path: str, buffer: memoryview | None = None) -> memoryview:
    """Return a frame as it is stored, in ``buffer`` where it fits; ``index`` is what errors call it.

    A table may claim anything: nothing is read, nor memory given to the content, of what no frame can be.

    Raises:
        DumpError: it can't be read, or the file ends in it.
    """
    if frame.length > min(_LARGEST_FRAME, frame.stored * _BEST_RATIO):
        raise damaged(frame, index, path, f"it claims {format_size(frame.length)} of content")
    if frame.stored > min(_LARGEST_FRAME + _STEP * 16, frame.length * _WORST_RATIO + HEADERS):
        raise damaged(frame, index, path, f"it claims to take {format_size(frame.stored)}")
    fits = buffer is not None and frame.stored <= len(buffer)
    view = buffer[: frame.stored] if buffer is not None and fits else memoryview(bytearray(frame.stored))
    done = 0
    with explain("read", path):
        while done < frame.stored:
            got = read_past_cache(fd, view[done:], frame.stored_offset + done)
            if got == 0:
                raise damaged(frame, index, path, "the file ends in it")
            done += got
    return view


def decompress(frame: Frame, index: int, stored: memoryview, path: str, target: memoryview) -> None:
    """Fill ``target`` with the content of a frame, of which it has the length.

    Raises:
        DamagedError: it isn't what the frame, its checksum and the seek table say.
        DumpError: it can be read, but not here.
    """
    import zstandard

    # What a frame says of itself is not believed: a hostile one could ask for any memory.
    check_frame(bytes(stored[:FRAME_HEADER]), f"frame {index} (at byte {frame.stored_offset})", path)
    try:
        if zstandard.frame_content_size(stored) not in {-1, frame.length}:
            raise damaged(frame, index, path, "its size is not that of the seek table")
        with _decompressor().stream_reader(stored, read_across_frames=False) as reader:
            done = 0
            while done < frame.length and (got := reader.readinto(target[done:])):
                done += got
            if done < frame.length or reader.read(1):
                raise damaged(frame, index, path, f"it doesn't hold {frame.length} bytes")
    except zstandard.ZstdError as error:
        raise damaged(frame, index, path, error) from error
    if frame.checksum is not None and frame.checksum != _own_checksum(stored, target):
        raise damaged(frame, index, path, "its checksum is another one")


def check_frame(header: bytes, what: str, path: str) -> None:
    """Raise `DumpError` for a frame that nothing is wrong with, but that takes more to read than there is here."""
    import zstandard

    if header[:4] != ZSTD_MAGIC:  # Of one that is skipped zstd tells what the first byte is, as its dictionary.
        return
    try:
        asked = zstandard.get_frame_parameters(header)
    except zstandard.ZstdError:
        return  # The decompressor says what is wrong with it.
    if asked.window_size > _LARGEST_WINDOW:
        needed, most = format_size(asked.window_size), format_size(_LARGEST_WINDOW)
        message = f"{what} of {path} was compressed with a window of {needed}, {most} are the most"
        hint = "it takes as much memory to read: zstd -dc --long=31 does so, a pipe takes its output"
        raise DumpError(message, path=path, operation="decompress", hint=hint)
    if asked.dict_id:
        message = f"{what} of {path} was compressed with the dictionary {asked.dict_id}"
        raise DumpError(message, path=path, operation="decompress", hint="zstd -dc -D DICTIONARY reads it")


_kept = threading.local()


def _decompressor() -> Any:
    """Return this thread's decompressor: its context is allocated once."""
    import zstandard

    if not hasattr(_kept, "decompressor"):
        _kept.decompressor = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    return _kept.decompressor


def _own_checksum(stored: memoryview, content: memoryview) -> int:
    """Return the low 32 bits of the XXH64 of a frame's content, as the seekable format has them."""
    if stored[4] & _HAS_CHECKSUM:  # Compared with the content just now.
        return int.from_bytes(stored[-4:], "little")
    import xxhash

    return int(xxhash.xxh64_intdigest(content)) & 0xFFFFFFFF


def damaged(frame: Frame, index: int, path: str, why: object) -> DamagedError:
    """Return the error that tells of a bad frame."""
    return DamagedError(
        f"frame {index} (at byte {frame.stored_offset}) of {path} is damaged: {why}",
        verdict="corrupt",
        path=path,
        operation="decompress",
        offset=frame.stored_offset,
        frame=index,
    )


def new_decompressor() -> Any:
    """Return a decompressor for one frame, fed piece by piece."""
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
