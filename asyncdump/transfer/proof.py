"""A dump read back and compared with its record: to verify it, to keep it, or on its way to where it is restored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from asyncdump.codecs.registry import stored_by
from asyncdump.engines import Engine, Route
from asyncdump.errors import DamagedError, DumpError, SourceChangedError
from asyncdump.kernel.lane import Lane
from asyncdump.records.report import FileReport
from asyncdump.records.standing import holds_source, listed, look_at, short
from asyncdump.sinks.folder import Draft, MappedDraft
from asyncdump.sinks.null import NullPlace
from asyncdump.sinks.place import Place
from asyncdump.transfer.transfer import Transfer
from asyncdump.transfer.unpack import DirectRead, Unpack
from asyncdump.vocabulary.digest import BLOCK, first_damage, new_digest
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import Source, Span


class Proof(Transfer):
    """A `Transfer` of the content of a dump, that fails with `DamagedError` unless it is what ``expected`` says."""

    def __init__(self, source: Source, name: str, *, expected: FileReport, **options: Any) -> None:
        super().__init__(source, name, **{**options, "checksum": _kind(expected)})
        self._expected: Final = expected
        self._unpack: Unpack | None = None
        self._direct: DirectRead | None = None

    def _prepare(self, folder: Place) -> list[Engine]:
        with suppress(OSError):  # What the disk holds counts, not what the page cache may have of it still.
            os.posix_fadvise(self._route.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        codec = stored_by(self._expected.stages)
        if codec is None:
            engines = super()._prepare(folder)
            # Only a mapping of ours fills huge pages, and nothing but what is read here can be compared on its way.
            kept = isinstance(self._route.sink, Draft) and not isinstance(self._route.sink, MappedDraft)
            self._direct = DirectRead(self._route.fd)
            return [self._direct if engine.method == "read" else engine for engine in engines if kept] or [self._direct]
        self._route.sink.resize(self.length)
        frames = listed(self._route.fd, self._route.source.path, codec)
        if frames.content != self.length:
            raise self._corrupt("its frames have changed since it was looked at", None)
        digest = self._expected.digest
        stored = new_digest(digest.partition(":")[0]) if digest else None  # type: ignore[arg-type] # checked by record
        self._unpack = Unpack(codec, frames, stored)
        return [self._unpack]

    def _cut_spans(self, route: Route) -> Iterator[Span]:
        if self._unpack is None:
            yield from super()._cut_spans(route)
        else:
            yield from self._cut(Span(offset=0, length=self.length))

    def _load(self, engine: Engine, span: Span, lane: Lane) -> memoryview | None:
        try:
            return super()._load(engine, span, lane)
        except SourceChangedError as error:
            raise short(self._expected, os.fstat(self._route.fd).st_size) from error

    def _check_size(self, span: Span) -> None:
        size = os.fstat(self._route.fd).st_size
        if size < self._expected.size:
            raise short(self._expected, size)

    def _check_kept(self) -> None:
        self._check_size(Span(offset=0, length=self.length))  # Its digest tells the rest.

    def _finish(self, lane: Lane) -> None:
        if self._unpack is None:
            super()._finish(lane)
        else:
            self._unpack.finish(self._route, lane)
            self._note_stored(self._unpack.stored)
            self.content_digest = None if self._hasher is None else self._hasher.hexdigest()
        self._compare()

    def _compare(self) -> None:
        expected = self._expected
        if expected.digest is not None and self.digest != expected.digest.partition(":")[2]:
            block = first_damage(self.marks, expected.marks, expected.size)
            raise self._corrupt(f"its digest is another one, from the block at byte {block} on", block)
        content = expected.content_digest
        if content is not None and holds_source(expected) and self.content_digest != content.partition(":")[2]:
            raise self._corrupt("its content has another digest", None)

    def _close_source(self) -> None:
        if self._direct is not None:
            self._direct.close()
        super()._close_source()

    def _corrupt(self, why: str, offset: int | None) -> DamagedError:
        path = self._expected.path
        return DamagedError(f"{path} is corrupt: {why}", verdict="corrupt", path=path, offset=offset)

    def _failure(self, error: OSError, engine: Engine, span: Span, lane: Lane, *, storing: bool = False) -> DumpError:
        failure = super()._failure(error, engine, span, lane, storing=storing)
        if isinstance(failure, DamagedError) or failure.path != self.source.path:
            return failure
        block = span.offset - span.offset % BLOCK
        return DamagedError(
            f"{self.source.path} is corrupt: {failure}",
            verdict="corrupt",
            path=failure.path,
            errno=failure.errno,
            offset=block,
        )


def prove(file: FileReport, lane: Lane, stop: Stop, watch: Callable[[Transfer], None]) -> None:
    """Read a dump and compare it with what a receipt or journal says of it; ``watch`` is given what counts the bytes.

    Without a digest its size and inode must be those that were recorded, and durable: more can't be told.

    Raises:
        DamagedError: it isn't the same, or isn't there.
        DumpError: it can't be read.
    """
    source, length = look_at(file)
    if file.digest is None:
        if source.inode != file.inode or not file.durable:
            raise DamagedError(
                f"nothing tells whether {file.path} is whole: it has no digest", verdict="unknown", path=file.path
            )
        return
    nowhere = NullPlace(os.path.dirname(file.path))
    options: dict[str, Any] = {"method": "auto", "sparse": False, "stop": stop, "offset": 0}
    proof = Proof(source, file.name, expected=file, length=length, **options)
    watch(proof)
    try:
        proof.begin(nowhere, lane)
        proof.work(lane)
        proof.seal(lane)
    finally:
        proof.abort()


def _kind(file: FileReport) -> Any:
    digest = file.content_digest or file.digest
    return "none" if digest is None else digest.partition(":")[0]
