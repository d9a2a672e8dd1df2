"""A sink and a place that store nothing, but compare what is written to them with existing dumps."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from asyncdump.codecs.codec import Codec
from asyncdump.codecs.content import FramedContent
from asyncdump.codecs.detect import listed_frames
from asyncdump.errors import DamagedError, explain
from asyncdump.kernel.lane import BUFFER, Buffers
from asyncdump.kernel.linux import close_quietly, read_at, same
from asyncdump.sinks.null import NullPlace, NullSink
from asyncdump.sinks.place import PlacedSink
from asyncdump.sources.file import regular


class ComparingSink(NullSink):
    """Compares what is written with the content of a dump at the same offset.

    `write` raises `DamagedError` with the first byte that differs.
    """

    def __init__(self, fd: int, path: str, buffers: Buffers, *, codec: Codec | None) -> None:
        """Take over a descriptor of the dump.

        Raises:
            DumpError: it isn't a regular file, or isn't compressed as expected. The descriptor is closed then.
        """
        super().__init__(path)
        self._buffers = buffers
        self._held = regular(fd, path)
        self._frames: FramedContent | None = None
        if codec is not None:
            try:
                if (listed := listed_frames(self._held, path, codec)) is None:
                    raise DamagedError(f"{path} is corrupt: it has no seek table", verdict="corrupt", path=path)
                self._frames = FramedContent(os.dup(self._held), path, codec, listed)  # It closes its own descriptor.
            except BaseException:
                self.close()
                raise

    def write(self, data: memoryview, offset: int) -> None:
        for start in range(0, len(data), BUFFER):
            self._compare(data[start : start + BUFFER], offset + start)
        self._count(len(data))

    def _compare(self, data: memoryview, offset: int) -> None:
        buffer = self._buffers.take()
        try:
            view = buffer.view[: len(data)]
            held = self._read(view, offset)
            if held == len(data) and (same(data, view) or data == view):
                return
            first = next((n for n in range(held) if data[n] != view[n]), held)
        finally:
            self._buffers.give_back(buffer)
        raise DamagedError(
            f"{self.path} differs from its source at byte {offset + first} of its content",
            verdict="differs",
            path=self.path,
            offset=offset + first,
        )

    def _read(self, view: memoryview, offset: int) -> int:
        done = 0
        while done < len(view):
            rest, place = view[done:], offset + done
            with explain("read", self.path):
                got = read_at(self._held, rest, place) if self._frames is None else self._seek(rest, place)
            if got == 0:
                break
            done += got
        return done

    def _seek(self, view: memoryview, offset: int) -> int:
        assert self._frames is not None
        with self._lock:
            self._frames.seek(offset)
            return self._frames.readinto(view)

    def close(self) -> None:
        if self._frames is not None:
            self._frames.close()
        fd, self._held = self._held, -1
        if fd >= 0:
            close_quietly(fd)


class ComparingPlace(NullPlace):
    """A place with existing dumps, which are compared with their sources."""

    def __init__(self, path: str, opened: Callable[[str], int], codecs: Mapping[str, Codec]) -> None:
        """``opened`` returns a descriptor to read a dump, by its name; ``codecs`` has those of compressed ones."""
        super().__init__(path)
        self._open = opened
        self._codecs = codecs
        self._buffers = Buffers()

    def create(self, name: str) -> PlacedSink:
        path = os.path.join(self.path, name)
        return ComparingSink(self._open(name), path, self._buffers, codec=self._codecs.get(name))
