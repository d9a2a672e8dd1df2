"""Reading a dump back: any part of it, raw or compressed, without the rest."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

import msgspec

from asyncdump.errors import DumpError, explain
from asyncdump.seekable import Frame, read_seek_table
from asyncdump.size import format_size
from asyncdump.source import describe, open_source

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"
"""What follows the first byte of a frame that readers skip, which is from 0x50 to 0x5f."""

_LARGEST_FRAME: Final = 1 << 30
_STEP: Final = 1 << 20
_BITE: Final = 4 << 10
"""Bytes decompressed in one call: four of them may become 128 KiB, and what a call returns has no other limit."""

_FRAME_HEADER: Final = 18
"""The bytes of the longest header of a frame (RFC 8878)."""


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
    name = os.fsdecode(path)
    fd = open_source(name)
    try:
        source = describe(fd, name)
        zstd = is_zstd(fd, name)
        frames = _listed_frames(fd, name) if zstd else None
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
    name = os.fsdecode(path)
    fd = open_source(name)
    try:
        if not is_zstd(fd, name):
            os.lseek(fd, 0, os.SEEK_SET)  # To ask for a size has moved it.
            return open(fd, "rb")
        frames = _listed_frames(fd, name)
        raw = _Frames(fd, name, frames) if frames is not None else _Stream(fd, name)
        return io.BufferedReader(raw, buffer_size=_STEP)
    except BaseException:
        os.close(fd)
        raise


def is_zstd(fd: int, path: str) -> bool:
    """Tell whether a file is a .zst: whether it begins as one does, or ends with a seek table.

    Raises:
        DumpError: it can't be read, or it is none but is called so: its first bytes are damaged or it was cut.
    """
    with explain("read", path):
        start = os.pread(fd, 4, 0)
    if start == _ZSTD_MAGIC or (start[1:] == _SKIPPABLE_MAGIC and start[0] >> 4 == 5):  # noqa: PLR2004 (RFC 8878)
        return True
    try:
        if read_seek_table(fd, path):
            return True
    except DumpError:
        pass
    if path.endswith(".zst"):
        raise DumpError(
            f"{path} doesn't begin as a .zst does: it is damaged or was cut",
            path=path,
            operation="read",
            hint="if it is no compressed dump, give it another name",
        )
    return False


def _listed_frames(fd: int, path: str) -> list[Frame] | None:
    """Return the frames of a seek table, their sizes compared with what frames say themselves.

    One wrong size would move all content behind it. In a dump all frames but the last have one size, so that looking
    at the first and the last is enough; where they haven't, each is looked at.
    """
    frames = read_seek_table(fd, path)
    if not frames:
        return frames
    even = all(frame.length == frames[0].length for frame in frames[:-1]) and frames[-1].length <= frames[0].length
    looked_at: Sequence[int] = (0, len(frames) - 1) if even else range(len(frames))
    for index in looked_at:
        frame = frames[index]
        with explain("read", path):
            length = _own_length(os.pread(fd, _FRAME_HEADER, frame.stored_offset))
        if length not in {None, frame.length}:
            raise DumpError(
                f"the seek table of {path} is broken: it says that frame {index} (at byte {frame.stored_offset}) "
                f"holds {frame.length} bytes, the frame says {length}",
                path=path,
                operation="read",
                hint="zstd -d reads frames without their table: try it",
            )
    return frames


def _own_length(header: bytes) -> int | None:
    """Return the content that a frame claims to hold, or None where it says nothing or is damaged itself."""
    import zstandard

    try:
        length = zstandard.frame_content_size(header)
    except zstandard.ZstdError:
        return None
    return None if length < 0 else length


class _Content(io.RawIOBase):
    """What both kinds of compressed content have in common."""

    def __init__(self, fd: int, path: str) -> None:
        super().__init__()
        self._fd = fd
        self._path = path
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        target = offset + (self._size() if base is None else base)
        if target < 0:
            raise ValueError(f"byte {target} is before the start of {self._path}")
        self._position = target
        return target

    def _size(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()

    def _damaged(self, what: str, why: object) -> DumpError:
        return DumpError(f"{what} of {self._path} is damaged: {why}", path=self._path, operation="decompress")


class _Frames(_Content):
    """Content with a seek table: a frame is decompressed when something of it is read."""

    def __init__(self, fd: int, path: str, frames: list[Frame]) -> None:
        super().__init__(fd, path)
        self._frames = [frame for frame in frames if frame.length]
        self._starts = [frame.offset for frame in self._frames]
        self._held: tuple[int, memoryview] = (-1, memoryview(b""))

    def _size(self) -> int:
        return self._frames[-1].offset + self._frames[-1].length if self._frames else 0

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= self._size() or not view:
            return 0
        index = bisect_right(self._starts, self._position) - 1
        content = self._content(index)[self._position - self._starts[index] :][: len(view)]
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _content(self, index: int) -> memoryview:
        held, content = self._held
        if held != index:
            content = self._decompress(index)
            self._held = (index, content)
        return content

    def _decompress(self, index: int) -> memoryview:
        import zstandard

        frame = self._frames[index]
        what = f"frame {index} (at byte {frame.stored_offset})"
        if frame.length > _LARGEST_FRAME:
            raise self._damaged(what, f"it claims {format_size(frame.length)} of content")
        if frame.stored > 2 * _LARGEST_FRAME:
            raise self._damaged(what, f"it claims to take {format_size(frame.stored)}")
        with explain("read", self._path):
            stored = os.pread(self._fd, frame.stored, frame.stored_offset)
        if len(stored) < frame.stored:
            raise self._damaged(what, "the file ends in it")
        try:
            # What a frame says of itself is not believed: a hostile one could ask for any memory.
            if zstandard.frame_content_size(stored) not in {-1, frame.length}:
                raise self._damaged(what, "its size is not that of the seek table")
            content = zstandard.ZstdDecompressor(max_window_size=_LARGEST_FRAME).decompress(
                stored, max_output_size=frame.length, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise self._damaged(what, error) from error
        if len(content) != frame.length:
            raise self._damaged(what, f"it holds {len(content)} bytes, not {frame.length}")
        if frame.checksum is not None and frame.checksum != _checksum(content):
            raise self._damaged(what, "its checksum is another one")
        return memoryview(content)


def _checksum(content: bytes) -> int:
    """Return the low 32 bits of the XXH64, as the seekable format has them."""
    import xxhash

    return int(xxhash.xxh64_intdigest(content)) & 0xFFFFFFFF


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in larger pieces, each of which costs its reader some calls; damage comes after them."""
    held: list[bytes] = []
    size = 0
    failure: DumpError | None = None
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= _STEP:
                yield b"".join(held)
                held, size = [], 0
    except DumpError as error:
        failure = error
    if held:
        yield b"".join(held)
    if failure is not None:
        raise failure


class _Stream(_Content):
    """Content without a seek table: decompressed from the start on."""

    def __init__(self, fd: int, path: str) -> None:
        super().__init__(fd, path)
        self._reached = 0
        self._pieces = _gathered(self._decompress())
        self._rest = memoryview(b"")
        self._whole: int | None = None
        self._failure: DumpError | None = None

    def _decompress(self) -> Iterator[bytes]:
        import zstandard

        offset = 0
        decompressor: Any = None
        while True:
            with explain("read", self._path):
                stored = os.pread(self._fd, _STEP, offset)
            if not stored:
                break
            offset += len(stored)
            left = memoryview(stored)
            while left:
                decompressor = (
                    decompressor or zstandard.ZstdDecompressor(max_window_size=_LARGEST_FRAME).decompressobj()
                )
                try:
                    bite, left = left[:_BITE], left[_BITE:]
                    piece = decompressor.decompress(bite)
                except zstandard.ZstdError as error:
                    raise self._damaged(f"what stands before byte {offset - len(left)}", error) from error
                if decompressor.eof:
                    unused = len(decompressor.unused_data)
                    left, decompressor = memoryview(stored)[len(stored) - len(left) - unused :], None
                if piece:
                    yield piece
        if decompressor is not None:
            raise self._damaged("the last frame", "the file ends in it")

    def _size(self) -> int:
        if self._whole is None:
            position = self._position
            self._position = 1 << 62
            try:
                self._advance()
                self._whole = self._reached
            finally:
                self._position = position
        return self._whole

    def _advance(self) -> None:
        """Decompress up to the position, or to the end."""
        if self._position < self._reached:
            self._reached, self._pieces, self._rest = 0, _gathered(self._decompress()), memoryview(b"")
            self._failure = None
        while self._reached < self._position or not self._rest:
            skipped = min(len(self._rest), self._position - self._reached)
            self._reached += skipped
            self._rest = self._rest[skipped:]
            if self._rest:
                return
            piece = self._next()
            if piece is None:
                return
            self._rest = memoryview(piece)

    def _next(self) -> bytes | None:
        # A generator that has raised is at its end: without this, whoever reads on would take damage for the end.
        if self._failure is not None:
            raise self._failure
        try:
            return next(self._pieces, None)
        except DumpError as error:
            self._failure = error
            raise

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if not view:
            return 0
        self._advance()
        if self._reached < self._position:
            return 0
        content = self._rest[: len(view)]
        view[: len(content)] = content
        self._rest = self._rest[len(content) :]
        self._reached += len(content)
        self._position = self._reached
        return len(content)
