"""Reading a dump back: any part of it, raw or compressed, without the rest."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, Final, Literal

import msgspec

from asyncdump.content import Frames, Stream, is_zstd, listed_frames
from asyncdump.source import describe, open_source, path_of

_STEP: Final = 1 << 20


class DumpInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a dump is.

    Attributes:
        path: as it was given.
        kind: ``raw``, or ``zstd``.
        content: bytes of the content, or None where nothing tells without decompressing it.
        stored: bytes of the file; allocated: bytes of the disk that it takes, less where there are holes.
        frames: how many independent frames there are, or None where that isn't known.
        frame: bytes of content of the largest frame, or None.
        checksums: whether each frame has a checksum.
        seekable: whether a part can be read without what stands before it.
    """

    path: str
    kind: Literal["raw", "zstd"]
    content: int | None
    stored: int
    allocated: int
    frames: int | None
    frame: int | None
    checksums: bool
    seekable: bool

    @property
    def ratio(self) -> float | None:
        """How many bytes of content a byte of the file stands for."""
        return self.content / self.stored if self.content is not None and self.stored else None


def describe_dump(path: str | os.PathLike[str]) -> DumpInfo:
    """Return what a dump is, without reading more of it than its ends and the headers of frames.

    Raises:
        DumpError: it can't be read, or its seek table is broken.
    """
    name = path_of(path)
    fd = open_source(name)
    try:
        source = describe(fd, name)
        zstd = is_zstd(fd, name)
        frames = listed_frames(fd, name) if zstd else None
    finally:
        os.close(fd)
    listed = frames or []
    content = sum(frame.length for frame in listed) if frames is not None else None
    return DumpInfo(
        path=name,
        kind="zstd" if zstd else "raw",
        content=content if zstd else source.size,
        stored=source.size,
        allocated=source.allocated,
        frames=len(frames) if frames is not None else None,
        frame=max((frame.length for frame in listed), default=0) if frames is not None else None,
        checksums=bool(listed) and all(frame.checksum is not None for frame in listed),
        seekable=not zstd or frames is not None,
    )


def open_dump(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a dump for reading: a seekable binary file object over its content, raw or compressed.

    Of a compressed dump only the frames are decompressed that hold what is read. A .zst without a seek table, made by
    another program, is read from its start on; going back in it starts again. The object blocks: in an async program
    use it in a thread.

    Raises:
        DumpError: it can't be opened, or its seek table is broken. Reads raise it too, with the frame and its place,
            where the content is damaged.
    """
    name = path_of(path)
    fd = open_source(name)
    try:
        if not is_zstd(fd, name):
            os.lseek(fd, 0, os.SEEK_SET)  # To ask for a size has moved it.
            return open(fd, "rb")
        frames = listed_frames(fd, name)
        raw = Frames(fd, name, frames) if frames is not None else Stream(fd, name)
        return io.BufferedReader(raw, buffer_size=_STEP)
    except BaseException:
        os.close(fd)
        raise
