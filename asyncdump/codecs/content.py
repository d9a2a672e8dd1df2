"""The content of a compressed dump as a file object: with its seek table, or as a stream if it has none."""

from __future__ import annotations

import io
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from asyncdump.codecs.codec import Codec, Decompressor, FrameError
from asyncdump.codecs.frames import check_supported, decompress, stored_frame
from asyncdump.codecs.seekable import Frame, SeekTable
from asyncdump.errors import DamagedError, DumpError, explain
from asyncdump.kernel.linux import close_quietly

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


_STEP: Final = 1 << 20
"""How many bytes are read at a time, and passed to a reader that wants as many."""


class Content(io.RawIOBase):
    """The base class of both kinds of compressed content. It owns the descriptor and closes it."""

    def __init__(self, fd: int, path: str, codec: Codec) -> None:
        super().__init__()
        self._fd = fd
        self._path = path
        self._codec = codec
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

    @abstractmethod
    def _size(self) -> int: ...

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)
        super().close()


class FramedContent(Content):
    """Content with a seek table: a frame is decompressed when a part of it is read."""

    def __init__(self, fd: int, path: str, codec: Codec, frames: SeekTable) -> None:
        super().__init__(fd, path, codec)
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
            self._held = (-1, memoryview(b""))  # Released before the next frame needs as much memory.
            content = self._decompress(index, frame)
            self._held = (index, content)
        return content

    def _decompress(self, index: int, frame: Frame) -> memoryview:
        stored = stored_frame(self._codec, self._fd, frame, index, self._path)
        content = memoryview(bytearray(frame.length))
        decompress(self._codec, frame, index, stored, self._path, content)
        return content


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Gather bytes into larger pieces, for fewer calls of a reader; an error is raised after all good bytes."""
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


class StreamedContent(Content):
    """Content without a seek table: it is decompressed from its start."""

    def __init__(self, fd: int, path: str, codec: Codec) -> None:
        super().__init__(fd, path, codec)
        self._reached = 0
        self._pieces = _gathered(self._decompress())
        self._rest = memoryview(b"")
        self._whole: int | None = None
        self._failure: DumpError | None = None

    def _decompress(self) -> Iterator[bytes]:
        offset = begun = 0
        decompressor: Decompressor | None = None
        while stored := self._stored(_STEP, offset):
            offset += len(stored)
            left = memoryview(stored)
            while left:
                if decompressor is None:
                    begun = offset - len(left)
                    header = self._stored(self._codec.header, begun)
                    check_supported(self._codec, header, f"the frame at byte {begun}", self._path)
                    decompressor = self._codec.decompressor()
                bite, left = left[: self._codec.bite], left[self._codec.bite :]
                try:
                    piece = decompressor.decompress(bite)
                except FrameError as error:
                    end = offset - len(left)
                    yield from self._last_good(begun, end - len(bite), bite)
                    raise self._damaged(begun, f"before byte {end}: {error}") from error
                if decompressor.eof:
                    left = memoryview(stored)[len(stored) - len(left) - decompressor.unused :]
                    decompressor = None
                if piece:
                    yield piece
        if decompressor is not None:
            raise self._damaged(begun, "the file is truncated in it")

    def _stored(self, length: int, offset: int) -> bytes:
        with explain("read", self._path):
            return os.pread(self._fd, length, offset)

    def _last_good(self, begun: int, end: int, bite: memoryview) -> Iterator[bytes]:
        """Yield the content of a damaged bite up to the damage, by decompressing it again, byte by byte."""
        decompressor = self._codec.decompressor()
        step = self._codec.bite
        with suppress(FrameError):
            for offset in range(begun, end, step):
                decompressor.decompress(memoryview(self._stored(min(step, end - offset), offset)))
            for place in range(len(bite)):
                if piece := decompressor.decompress(bite[place : place + 1]):
                    yield piece

    def _damaged(self, begun: int, why: str) -> DamagedError:
        return DamagedError(
            f"the frame at byte {begun} of {self._path} is damaged: {why}",
            verdict="corrupt",
            path=self._path,
            operation="decompress",
            offset=begun,
        )

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
        """Decompress up to the position, or to the end of the file."""
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
        # A generator that has raised is exhausted: without this, the next read would report the end of the file.
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
