"""One file under way into a seekable .zst: its frames are compressed side by side, and written in their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from asyncdump.codecs.codec import Compression
from asyncdump.codecs.compressors import Compressors
from asyncdump.engines import FEEDS, Engine, Refusal, Refused, Route, is_refusal
from asyncdump.errors import describe_errno, explain
from asyncdump.kernel.lane import Buffers, Lane
from asyncdump.sinks.place import Place
from asyncdump.sources.file import find_spans
from asyncdump.transfer.packer import Packer
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary.digest import new_digest
from asyncdump.vocabulary.values import Source, Span


class Packed(Transfer):
    """A `Transfer` whose sink is a standard .zst: independent frames and, at its end, a table of them."""

    def __init__(
        self,
        source: Source,
        name: str,
        *,
        compression: Compression,
        compressors: Compressors,
        buffers: Buffers,
        **options: Any,
    ) -> None:
        super().__init__(source, name, **options)
        self._compression: Final = compression
        self._compressors: Final = compressors
        self._buffers: Final = buffers
        self._taken = 0
        self._packer: Packer | None = None

    def _prepare(self, folder: Place) -> list[Engine]:
        sink = self._route.sink
        hasher, checksums = new_digest(self._checksum), self._compression.checksum
        self._packer = Packer(sink, hasher, self._buffers, self._stop.check, checksums=checksums)
        # A write within the size doesn't have to extend the file, which would make O_DIRECT wait; the end cuts it.
        sink.expect(self.length)
        return [FEEDS["read" if self._choice == "auto" else self._choice]]

    def _cut_spans(self, route: Route) -> Iterator[Span]:
        """Yield a span for each frame, all of one size but the last; a hole is one that holds none of the data."""
        end = self._offset + self.length
        done = self._offset
        for extent in find_spans(route.fd, route.source, done, end, shortest_hole=self._compression.frame):
            if extent.hole:
                begin = extent.offset + (self._offset - extent.offset) % self._compression.frame
                stop = (
                    extent.end
                    if extent.end == end
                    else extent.end - (extent.end - self._offset) % self._compression.frame
                )
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
        with self._compressors.room(self._compression, lane) as press:
            self._stop.check()
            with self._turn:
                span = None if self._failed else next(self._spans, None)
                if span is None:
                    return False
                number, self._taken = self._taken, self._taken + 1
                data = self._load_first(span, lane) if not self._proved else self._load(self._engines[0], span, lane)
                self._hash(span, data)
            if data is None:
                frame = self._compressors.zeros(press, span.length)
            else:
                frame = self._compressors.frame(press, lane.buffer, span.length)
            with explain("write", self._route.sink.path):
                self._packer.append(number, frame, span.length)
        self._count(span)
        return True

    def _load_first(self, span: Span, lane: Lane) -> memoryview | None:
        """Load a span with an engine that may be refused still."""
        engine = self._engines[0]
        if span.hole:
            return None
        try:
            data = engine.load(self._route, span, lane)
        except Refused as refused:
            raise self._refused(engine, refused.refusal, lane) from refused
        except OSError as error:
            if not is_refusal(engine.method, error):
                return self.salvage(error, engine, span, lane)
            raise self._refused(
                engine, Refusal(reason=describe_errno(error.errno or 0), errno=error.errno), lane
            ) from error
        self._proved = True
        return data

    def _finish(self, lane: Lane) -> None:
        assert self._packer is not None
        with explain("write", self._route.sink.path):
            if self._taken == 0:  # A file of nothing is one frame of nothing: a table alone is no .zst to some readers.
                with self._compressors.press(self._compression) as press:
                    self._packer.append(0, self._compressors.zeros(press, 0), 0)
            self._packer.finish()
        if self._hasher is not None:
            self.content_digest = self._hasher.hexdigest()
            self._note_stored(self._packer.hasher)

    def give_back(self, error: BaseException | None = None) -> None:
        """Give the block back that was being filled."""
        if self._packer is not None:
            self._packer.discard()
