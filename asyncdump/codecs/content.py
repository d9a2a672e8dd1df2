"""The content of a dump, whether it is stored raw or compressed."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from asyncdump.codecs.seekable import Frame, SeekTable, read_seek_table
from asyncdump.errors import DamagedError, DumpError, explain
from asyncdump.kernel.linux import close_quietly, read_past_cache
from asyncdump.vocabulary.size import format_size

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"
"""What follows the first byte of a frame that readers skip, which is from 0x50 to 0x5f."""

_LARGEST_FRAME: Final = 1 << 30
_LARGEST_WINDOW: Final = 1 << 30
"""Bytes of content that a decompressor keeps to repeat from: what a frame asks for is what it takes (RFC 8878)."""

_STEP: Final = 1 << 20
_BITE: Final = 4 << 10
"""Bytes decompressed in one call: four of them may become 128 KiB, and what a call returns has no other limit."""

_HAS_CHECKSUM: Final = 1 << 2
"""In the fifth byte of a frame (RFC 8878)."""

_FRAME_HEADER: Final = 18
"""The bytes of the longest header of a frame (RFC 8878)."""

_HEADERS: Final = 64 << 10
"""Bytes in which the headers of several small frames are looked for."""

_BEST_RATIO: Final = 1 << 15
"""How many bytes of content a byte of a frame stands for at the most: 128 KiB for the 4 of a block."""

_WORST_RATIO: Final = 4
"""How many bytes a byte of content takes at the most: a block of its own, of 3 bytes and itself."""


def check_zstd(fd: int, path: str) -> None:
    """Raise `DumpError` unless a file may be a .zst: begins as one does, or ends with a seek table.

    Raises:
        DumpError: it does neither, so that its first bytes are damaged or it was cut; or it can't be read.
    """
    with explain("read", path):
        start = os.pread(fd, 4, 0)
    if start == _ZSTD_MAGIC or (start[1:] == _SKIPPABLE_MAGIC and start[0] >> 4 == 5):  # noqa: PLR2004 (RFC 8878)
        return
    with suppress(DumpError):
        if read_seek_table(fd, path):
            return
    raise DumpError(
        f"{path} doesn't begin as a .zst does: it is damaged or was cut",
        path=path,
        operation="read",
        hint="if it isn't compressed, read it as it is: --raw, compressed=False",
    )


def listed_frames(fd: int, path: str) -> SeekTable | None:
    """Return the frames of a seek table, their sizes compared with what frames say themselves.

    One wrong size would move all content behind it. In a dump all frames but the last have one size, so that looking
    at the first and the last is enough; where they haven't, each is looked at.
    """
    frames = read_seek_table(fd, path)
    if not frames:
        return frames
    headers = _Headers(fd, path)
    for index in (0, len(frames) - 1) if frames.even else range(len(frames)):
        frame = frames[index]
        length = _own_length(headers.read(frame.stored_offset))
        if length not in {None, frame.length}:
            raise DumpError(
                f"the seek table of {path} is broken: it says that frame {index} (at byte {frame.stored_offset}) "
                f"holds {frame.length} bytes, the frame says {length}",
                path=path,
                operation="read",
                hint="zstd -d reads frames without their table: try it",
            )
    return frames


class _Headers:
    """Reads the headers of frames, one behind the other, with few calls."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._start = 0
        self._held = b""

    def read(self, offset: int) -> bytes:
        """Return the header of the frame at ``offset``, and what follows it."""
        begin = offset - self._start
        if not 0 <= begin <= len(self._held) - _FRAME_HEADER:
            with explain("read", self._path):
                # No more than is looked at where frames are large.
                wanted = _HEADERS if 0 <= begin < _HEADERS else _FRAME_HEADER
                self._start, begin = offset, 0
                self._held = os.pread(self._fd, wanted, offset)
        return self._held[begin : begin + _FRAME_HEADER]


def _own_length(header: bytes) -> int | None:
    """Return the content that a frame claims to hold, or None where it says nothing or is damaged itself."""
    import zstandard

    try:
        length = zstandard.frame_content_size(header)
    except zstandard.ZstdError:
        return None
    return None if length < 0 else length


class Content(io.RawIOBase):
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
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)
        super().close()

    def _damaged(self, what: str, why: object) -> DumpError:
        return DumpError(f"{what} of {self._path} is damaged: {why}", path=self._path, operation="decompress")


class Frames(Content):
    """Content with a seek table: a frame is decompressed when something of it is read."""

    def __init__(self, fd: int, path: str, frames: SeekTable) -> None:
        super().__init__(fd, path)
        self._frames = frames
        self._held: tuple[int, memoryview] = (-1, memoryview(b""))

    def _size(self) -> int:
        return self._frames.content

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= self._size() or not view:
            return 0
        index = self._frames.holding(self._position)
        frame = self._frames[index]
        content = self._content(index, frame)[self._position - frame.offset :][: len(view)]
        view[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _content(self, index: int, frame: Frame) -> memoryview:
        held, content = self._held
        if held != index:
            self._held = (-1, memoryview(b""))  # Before the next takes as much.
            content = self._decompress(index, frame)
            self._held = (index, content)
        return content

    def _decompress(self, index: int, frame: Frame) -> memoryview:
        stored = stored_frame(self._fd, frame, index, self._path)
        content = memoryview(bytearray(frame.length))
        decompress(frame, index, stored, self._path, content)
        return content


def stored_frame(fd: int, frame: Frame, index: int, path: str, buffer: memoryview | None = None) -> memoryview:
    """Return a frame as it is stored, in ``buffer`` where it fits; ``index`` is what errors call it.

    A table may claim anything: nothing is read, nor memory given to the content, of what no frame can be.

    Raises:
        DumpError: it can't be read, or the file ends in it.
    """
    if frame.length > min(_LARGEST_FRAME, frame.stored * _BEST_RATIO):
        raise damaged(frame, index, path, f"it claims {format_size(frame.length)} of content")
    if frame.stored > min(_LARGEST_FRAME + _STEP * 16, frame.length * _WORST_RATIO + _HEADERS):
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
    _check_frame(bytes(stored[:_FRAME_HEADER]), f"frame {index} (at byte {frame.stored_offset})", path)
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


def _check_frame(header: bytes, what: str, path: str) -> None:
    """Raise `DumpError` for a frame that nothing is wrong with, but that takes more to read than there is here."""
    import zstandard

    if header[:4] != _ZSTD_MAGIC:  # Of one that is skipped zstd tells what the first byte is, as its dictionary.
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


def _new_decompressor() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()


class Stream(Content):
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

        offset = begun = 0
        decompressor: Any = None
        while True:
            with explain("read", self._path):
                stored = os.pread(self._fd, _STEP, offset)
            if not stored:
                break
            offset += len(stored)
            left = memoryview(stored)
            while left:
                if decompressor is None:
                    begun = offset - len(left)
                    with explain("read", self._path):
                        header = os.pread(self._fd, _FRAME_HEADER, begun)
                    _check_frame(header, f"the frame at byte {begun}", self._path)
                    decompressor = _new_decompressor()
                try:
                    bite, left = left[:_BITE], left[_BITE:]
                    piece = decompressor.decompress(bite)
                except zstandard.ZstdError as error:
                    end = offset - len(left)
                    yield from self._last_good(begun, end - len(bite), bite)
                    raise self._damaged(f"what stands before byte {end}", error) from error
                if decompressor.eof:
                    unused = len(decompressor.unused_data)
                    left, decompressor = memoryview(stored)[len(stored) - len(left) - unused :], None
                if piece:
                    yield piece
        if decompressor is not None:
            raise self._damaged("the last frame", "the file ends in it")

    def _last_good(self, begun: int, end: int, bite: memoryview) -> Iterator[bytes]:
        """Yield what a bad bite holds before the damage: the frame is decompressed anew, the bite byte by byte."""
        import zstandard

        decompressor = _new_decompressor()
        for offset in range(begun, end, _BITE):
            with explain("read", self._path):
                decompressor.decompress(os.pread(self._fd, min(_BITE, end - offset), offset))
        with suppress(zstandard.ZstdError):
            for place in range(len(bite)):
                if piece := decompressor.decompress(bite[place : place + 1]):
                    yield piece

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
