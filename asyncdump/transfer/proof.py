"""A dump that is read back and compared with its record: to verify it, to keep it, or while it is restored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from asyncdump.codecs.registry import stored_by
from asyncdump.engines import Engine
from asyncdump.errors import DamagedError
from asyncdump.kernel.lane import Lane
from asyncdump.plan.plan import PlannedDump
from asyncdump.plan.readback import planned
from asyncdump.records.report import FileReport
from asyncdump.records.standing import holds_source, listed, look_at, short
from asyncdump.sinks.null import NullPlace
from asyncdump.sinks.place import Place, Store
from asyncdump.sources.file import FileSource, as_planned, described
from asyncdump.transfer.resources import Resources, resources
from asyncdump.transfer.transfer import Transfer
from asyncdump.transfer.unpack import DirectRead, Unpack
from asyncdump.vocabulary.blocks import BLOCK
from asyncdump.vocabulary.digest import Hasher, bare_digest, checksum_of, new_digest
from asyncdump.vocabulary.marks import Marked, first_damage
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import Span


class DumpSource(FileSource):
    """A dump that is read back: an `OpenSource` whose failures are damage, not changes of a source."""

    def __init__(self, opened: FileSource, expected: FileReport) -> None:
        super().__init__(opened.fd, opened.described)
        self._expected: Final = expected

    def ended(self, at: int, expected: int) -> DamagedError:
        return short(self._expected, os.fstat(self.fd).st_size)

    def failure(self, error: OSError, operation: str, offset: int) -> DamagedError:
        path = self.described.path
        return DamagedError(
            f"{path} is corrupt: {super().failure(error, operation, offset)}",
            verdict="corrupt",
            path=path,
            errno=error.errno,
            offset=offset - offset % BLOCK,
        )

    def check_end(self, end: int) -> None:
        size = os.fstat(self.fd).st_size
        if size < self._expected.size:
            raise short(self._expected, size)

    def check_still_valid(self, end: int) -> None:
        """Check its size; the digest shows everything else."""
        self.check_end(end)


class Stored(Transfer):
    """A `Transfer` whose source is a dump in the store of the run."""

    def __init__(self, planned: PlannedDump, resources: Resources) -> None:
        super().__init__(planned, resources)
        assert resources.store is not None
        self._dumps: Final = resources.store

    def _open(self) -> FileSource:
        return as_planned(described(self._dumps.open(self.name), self.source.path), self.source)


class Proof(Stored):
    """A `Transfer` of the content of a dump, which fails with `DamagedError` unless the dump matches its record."""

    def __init__(self, planned: PlannedDump, resources: Resources) -> None:
        assert planned.expected is not None
        checksum = checksum_of(planned.expected.content_digest or planned.expected.digest)
        super().__init__(msgspec.structs.replace(planned, checksum=checksum), resources)
        self._expected: Final = planned.expected
        self._marked: Marked | None = None  # Used instead of blocks if the record is of version 1.
        self._unpack: Unpack | None = None
        self._direct: DirectRead | None = None

    def _open(self) -> DumpSource:
        return DumpSource(super()._open(), self._expected)

    def _forget(self, fd: int) -> None:
        with suppress(OSError):  # Advice.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def _prepare(self, place: Place) -> list[Engine]:
        self._forget(self._route.fd)  # The content on disk counts, not what is still in the page cache.
        codec = stored_by(self._expected.stages)
        if codec is None:
            self._reader.hasher = self._new_hasher()
            # For a sink without a descriptor (it only compares, or is filled through a mapping), `candidates` returns
            # only ``read``.
            engines = super()._prepare(place)
            self._direct = DirectRead(self._route.fd)
            return [self._direct if engine.method == "read" else engine for engine in engines]
        self._route.sink.resize(self.length)
        frames = listed(self._route.fd, self._route.source.path, codec)
        if frames.content != self.length:
            raise self._corrupt("its frames have changed since it was opened", None)
        self._unpack = Unpack(codec, frames, self._new_hasher())
        return [self._unpack]

    def _new_hasher(self) -> Hasher | None:
        """Return a hasher for the file as stored, which also locates damage."""
        kind = checksum_of(self._expected.digest)
        if not self._expected.marks or (digest := bare_digest(kind)) is None:
            return new_digest(kind)
        self._marked = Marked(digest)
        return Hasher(self._marked)

    def _spans(self) -> Iterator[Span]:
        if self._unpack is None:
            return super()._spans()
        return self._reader.cut(Span(offset=0, length=self.length))

    def _step(self, lane: Lane) -> bool:
        try:
            return super()._step(lane)
        except DamagedError as error:
            if self._unpack is not None:
                self._place(error, self._unpack)
            raise

    def _finish(self, lane: Lane) -> None:
        if self._unpack is None:
            super()._finish(lane)
        else:
            self._unpack.finish(self._route, lane, self._stop.check)
            self._note_stored(self._unpack.stored)
            self._note_content(self._reader.hasher)
        self._compare()

    def _compare(self) -> None:
        expected = self._expected
        if expected.digest is not None and self.digest != expected.digest.partition(":")[2]:
            raise self._misfit()
        content = expected.content_digest
        if content is not None and holds_source(expected) and self.content_digest != content.partition(":")[2]:
            raise self._corrupt("the digest of its content doesn't match", None)

    def _misfit(self) -> DamagedError:
        """Return the error for a digest mismatch, with the location of the damage as far as the record shows it."""
        expected = self._expected
        if self._marked is not None or (expected.blocks is None and expected.size < BLOCK):
            first = 0 if self._marked is None else first_damage(self._marked.marks.hex(), expected.marks, expected.size)
            return self._corrupt(f"digest mismatch; first bad 2 MiB block at byte {first}", first)
        blocks, damaged = expected.blocks, self._damaged()
        if blocks is None or not damaged:
            return self._corrupt("digest mismatch", None)
        first = damaged[0].offset
        why = f"digest mismatch; first bad {blocks.grain >> 20} MiB block at byte {first}"
        if (count := sum(-(-each.length // blocks.grain) for each in damaged)) > 1:
            why += f", {count} of {blocks.count} blocks are bad"
        return self._corrupt(why, first, damaged)

    def _damaged(self) -> tuple[Span, ...]:
        """Return the ranges of the file whose blocks differ from the record; the entire file was read."""
        if self.blocks is None or self._expected.blocks is None:
            return ()
        return self.blocks.changed(self._expected.blocks)

    def _place(self, error: DamagedError, unpack: Unpack) -> None:
        """Add the other damaged ranges of the file to the error of a bad frame; the rest is hashed as it is stored."""
        if self._expected.blocks is not None and unpack.stored is not None:
            unpack.skip(self._route, self._stop.check)
            self._note_stored(unpack.stored)
            error.note_ranges((each.offset, each.length) for each in self._damaged())

    def _close_source(self) -> None:
        if self._origin is not None and self._origin.fd is not None:
            self._forget(self._origin.fd)  # Looking for the frames has read ahead.
        if self._direct is not None:
            self._direct.close()
        super()._close_source()

    def _corrupt(self, why: str, offset: int | None, damaged: Sequence[Span] = ()) -> DamagedError:
        path = self._expected.path
        failure = DamagedError(f"{path} is corrupt: {why}", verdict="corrupt", path=path, offset=offset)
        failure.note_ranges((each.offset, each.length) for each in damaged)
        return failure


def prove(file: FileReport, store: Store, lane: Lane, stop: Stop, watch: Callable[[Transfer], None]) -> FileReport:
    """Read a dump and compare it with its record; ``watch`` is called with the transfer, for its progress.

    Without a digest, its size and inode must match the record, and it must be durable: nothing else can be checked.

    Returns:
        The record; if it was of version 1, with the block digests added.

    Raises:
        DamagedError: the dump differs from its record, or is missing.
        DumpError: it can't be read.
    """
    source, length = look_at(file, store)
    if file.digest is None:
        if source.inode != file.inode or not file.durable:
            raise DamagedError(f"{file.path} can't be verified: it has no digest", verdict="unknown", path=file.path)
        return file
    proof = Proof(planned(file, source=source, length=length), resources(stop, store))
    watch(proof)
    try:
        proof.begin(NullPlace(store.path), lane)
        proof.work(lane)
        proof.seal(lane)
    finally:
        proof.abort()
    if file.blocks is not None:
        return file
    content = proof.content_blocks if holds_source(file) else None
    return msgspec.structs.replace(file, blocks=proof.blocks, content_blocks=content, marks="")
