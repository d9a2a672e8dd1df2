"""One frame of a compressed file: reading it, decompressing it, and verifying its checksum."""

from __future__ import annotations

from typing import Final

from asyncdump.codecs.codec import Codec, FrameError
from asyncdump.codecs.seekable import Frame
from asyncdump.errors import DamagedError, DumpError, explain
from asyncdump.kernel.linux import read_past_cache
from asyncdump.vocabulary.size import format_size

_LARGEST: Final = 1 << 30
"""The largest content size of a frame that is read, in bytes."""

_HEADERS: Final = 64 << 10
"""How many bytes any frame may have in addition to its content."""


def stored_frame(
    codec: Codec, fd: int, frame: Frame, index: int, path: str, buffer: memoryview | None = None
) -> memoryview:
    """Return a frame as it is stored, in ``buffer`` if it fits; ``index`` is its number in errors.

    A seek table may claim anything. Nothing is read and no memory is allocated for a frame that can't exist.

    Raises:
        DamagedError: there is no such frame, or the file is truncated in it.
        DumpError: it can't be read.
    """
    if frame.length > min(_LARGEST, frame.stored * codec.best_ratio):
        raise damaged(frame, index, path, f"it claims {format_size(frame.length)} of content")
    if frame.stored > min(_LARGEST + (_LARGEST >> 6), frame.length * codec.worst_ratio + _HEADERS):
        raise damaged(frame, index, path, f"it claims a size of {format_size(frame.stored)}")
    fits = buffer is not None and frame.stored <= len(buffer)
    view = buffer[: frame.stored] if buffer is not None and fits else memoryview(bytearray(frame.stored))
    done = 0
    with explain("read", path):
        while done < frame.stored:
            got = read_past_cache(fd, view[done:], frame.stored_offset + done)
            if got == 0:
                raise damaged(frame, index, path, "the file is truncated in it")
            done += got
    return view


def decompress(codec: Codec, frame: Frame, index: int, stored: memoryview, path: str, target: memoryview) -> None:
    """Fill ``target``, whose length is that of the content, with the content of a frame.

    Raises:
        DamagedError: the content doesn't match the frame, its checksum or the seek table.
        DumpError: the frame is valid, but can't be read here.
    """
    # Checked before decompressing, because a malicious frame may request any amount of memory.
    header = bytes(stored[: codec.header])
    check_supported(codec, header, f"frame {index} (at byte {frame.stored_offset})", path)
    if codec.length_of(header) not in {None, frame.length}:
        raise damaged(frame, index, path, "its size differs from the seek table")
    try:
        codec.decompress(stored, target)
    except FrameError as error:
        raise damaged(frame, index, path, error) from error
    if frame.checksum is not None and frame.checksum != codec.checksum_of(stored, target):
        raise damaged(frame, index, path, "its checksum differs from the seek table")


def check_supported(codec: Codec, header: bytes, what: str, path: str) -> None:
    """Raise `DumpError` for a valid frame that can't be read here."""
    if (unsupported := codec.unsupported(header)) is not None:
        message = f"{what} of {path} {unsupported.reason}"
        raise DumpError(message, path=path, operation="decompress", hint=unsupported.hint)


def check_installed(codec: Codec, path: str) -> None:
    """Raise `DumpError` if the library that decompresses is not installed."""
    if missing := codec.missing():
        message = f"{path} is compressed with {codec.name}, which can't be read here"
        raise DumpError(message, path=path, operation="decompress", hint=missing)


def damaged(frame: Frame, index: int, path: str, why: object) -> DamagedError:
    """Return the error for a damaged frame."""
    return DamagedError(
        f"frame {index} (at byte {frame.stored_offset}) of {path} is damaged: {why}",
        verdict="corrupt",
        path=path,
        operation="decompress",
        offset=frame.stored_offset,
        frame=index,
    )
