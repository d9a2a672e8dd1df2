"""One file under way into a seekable .zst: its frames are compressed side by side, and written in their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from asyncdump.engines import FEEDS, Engine
from asyncdump.errors import explain
from asyncdump.kernel.lane import Lane
from asyncdump.plan.plan import PlannedDump
from asyncdump.sinks.place import Place
from asyncdump.transfer.packer import Packer
from asyncdump.transfer.resources import Resources
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary.digest import new_digest
from asyncdump.vocabulary.values import Span


class Packed(Transfer):
    """A `Transfer` whose sink is a standard .zst: independent frames and, at its end, a table of them."""

    def __init__(self, planned: PlannedDump, resources: Resources) -> None:
        super().__init__(planned, resources)
        assert planned.zstd is not None
        self._zstd: Final = planned.zstd
        self._compressors: Final = resources.compressors
        self._buffers: Final = resources.buffers
        self._packer: Packer | None = None

    @property
    def most_lanes(self) -> int | None:
        """As many as may compress; a sink that takes bytes in order has them waiting for one another in the packer."""
        return self._zstd.threads or None

    def _prepare(self, place: Place) -> list[Engine]:
        sink = self._route.sink
        hasher, checksums = new_digest(self.planned.checksum), self._zstd.checksum
        self._packer = Packer(sink, hasher, self._buffers, self._stop.check, checksums=checksums)
        # A write within the size doesn't have to extend the file, which would make O_DIRECT wait; the end cuts it.
        sink.expect(self.length)
        return [FEEDS["read" if self.planned.method == "auto" else self.planned.method]]

    def _spans(self) -> Iterator[Span]:
        """Yield a span for each frame, all of one size but the last; a hole is one that holds none of the data."""
        start, end, frame = self.planned.offset, self._end, self._zstd.frame
        done = start
        for extent in self._route.origin.spans(start, end, shortest_hole=frame):
            if extent.hole:
                # The frames within the hole: from the next multiple of a frame to the last one, counted from ``start``.
                begin = extent.offset + (start - extent.offset) % frame
                stop = extent.end if extent.end == end else extent.end - (extent.end - start) % frame
                if begin < stop:
                    yield from self._frames(done, begin, hole=False)
                    yield from self._frames(begin, stop, hole=True)
                    done = stop
        yield from self._frames(done, end, hole=False)

    def _frames(self, offset: int, end: int, *, hole: bool) -> Iterator[Span]:
        for start in range(offset, end, self._zstd.frame):
            yield Span(offset=start, length=min(self._zstd.frame, end - start), hole=hole)

    def _step(self, lane: Lane) -> bool:
        assert self._packer is not None
        with self._compressors.room(self._zstd, lane) as press:
            taken = self._reader.take(lane)
            if taken is None:
                return False
            length = taken.span.length
            if taken.data is None:
                frame = self._compressors.zeros(press, length)
            else:
                self._reader.proved = True
                frame = self._compressors.frame(press, lane.buffer, length)
            with explain("write", self._route.sink.path):
                self._packer.append(taken.number, frame, length)
        self._count(taken.span)
        return True

    def _finish(self, lane: Lane) -> None:
        assert self._packer is not None
        with explain("write", self._route.sink.path):
            if self._reader.taken == 0:  # A table alone is not a .zst to some readers: nothing is one empty frame.
                with self._compressors.press(self._zstd) as press:
                    self._packer.append(0, self._compressors.zeros(press, 0), 0)
            self._packer.finish()
        self._note_content(self._reader.hasher)
        self._note_stored(self._packer.hasher)

    def give_back(self, error: BaseException | None = None) -> None:
        """Give the block back that was being filled."""
        if self._packer is not None:
            self._packer.discard()
