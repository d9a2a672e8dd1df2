"""One file that is dumped as frames of a codec, which are compressed in parallel and written in order."""

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
    """A `Transfer` into a standard file of its codec: independent frames, and a table of them at the end."""

    def __init__(self, planned: PlannedDump, resources: Resources) -> None:
        super().__init__(planned, resources)
        assert planned.compression is not None
        self._compression: Final = planned.compression
        self._compressors: Final = resources.compressors
        self._buffers: Final = resources.buffers
        self._packer: Packer | None = None

    @property
    def most_lanes(self) -> int | None:
        """As many as may compress; a sink that takes bytes in order has them waiting for one another in the packer."""
        return self._compression.threads or None

    def _prepare(self, place: Place) -> list[Engine]:
        sink = self._route.sink
        hasher, checksums = new_digest(self.planned.checksum), self._compression.checksum
        self._packer = Packer(sink, hasher, self._buffers, self._stop.check, checksums=checksums)
        # A write within the size doesn't extend the file, which would make O_DIRECT wait. `finish` truncates it.
        sink.expect(self.length)
        return [FEEDS["read" if self.planned.method == "auto" else self.planned.method]]

    def _spans(self) -> Iterator[Span]:
        """Yield a span for each frame, all of one size but the last; a hole is a frame without any data."""
        start, end, frame = self.planned.offset, self._end, self._compression.frame
        done = start
        for extent in self._route.origin.spans(start, end, shortest_hole=frame):
            if extent.hole:
                # Frames begin at multiples of ``frame`` from ``start``, holes anywhere. Only frames that are completely
                # within the hole are holes: from the first boundary at or after its start, ``(start - x) % frame``
                # bytes after x, to the last one at or before its end, ``(x - start) % frame`` bytes before x. Neither
                # is negative, because the result of % has the sign of the divisor. The last frame may be short, so a
                # hole that extends to the end needs no boundary there.
                begin = extent.offset + (start - extent.offset) % frame
                stop = extent.end if extent.end == end else extent.end - (extent.end - start) % frame
                if begin < stop:
                    yield from self._frames(done, begin, hole=False)
                    yield from self._frames(begin, stop, hole=True)
                    done = stop
        yield from self._frames(done, end, hole=False)

    def _frames(self, offset: int, end: int, *, hole: bool) -> Iterator[Span]:
        for start in range(offset, end, self._compression.frame):
            yield Span(offset=start, length=min(self._compression.frame, end - start), hole=hole)

    def _step(self, lane: Lane) -> bool:
        assert self._packer is not None
        # First a press, then the number of a frame. In the opposite order, lanes could deadlock: `Packer.append` waits
        # for all lower numbers, and the lane with the lowest one could wait for the budget while lanes with higher
        # numbers hold all of it. In this order, every number belongs to a lane that has its press. The lowest one only
        # waits for a core, which no lane keeps while it waits, and each append lets the next one continue.
        with self._compressors.room(self._compression, lane) as press:
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
            if self._reader.taken == 0:  # Some readers reject a file of only a table: write one empty frame.
                with self._compressors.press(self._compression) as press:
                    self._packer.append(0, self._compressors.zeros(press, 0), 0)
            self._packer.finish()
        self._note_content(self._reader.hasher)
        self._note_stored(self._packer.hasher)

    def give_back(self, error: BaseException | None = None) -> None:
        """Release the block that is being filled."""
        if self._packer is not None:
            self._packer.discard()
