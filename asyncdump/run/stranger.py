"""A file under the name of a planned dump that no record mentions: if its content is that of the source, it is kept."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

import msgspec

from asyncdump.codecs.detect import listed_frames
from asyncdump.errors import DamagedError, DumpError
from asyncdump.kernel.lane import Lane
from asyncdump.plan.plan import PlannedDump
from asyncdump.records.report import FileReport
from asyncdump.sinks.comparing import ComparingPlace
from asyncdump.sinks.null import NullPlace
from asyncdump.sinks.place import Store
from asyncdump.sources.describe import describe
from asyncdump.sources.file import regular
from asyncdump.transfer.proof import Stored
from asyncdump.transfer.resources import resources
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import Source


def recognise(
    planned: PlannedDump, store: Store, lane: Lane, stop: Stop, watch: Callable[[Transfer], None]
) -> FileReport:
    """Return a record of the file under the name of a planned dump, if its content is that of the source.

    Raises:
        DumpError: its content differs, or can't be read.
    """
    began = time.perf_counter()
    path = os.path.join(store.path, planned.name)
    if not planned.source.sized:  # Its content is generated on each read, so there is nothing to compare with.
        raise _stranger(path, planned)
    os.close(regular(store.open(planned.name), path))
    store.settle(planned.name)
    stored = _look_at(store, path, planned)
    compressed = {} if planned.compression is None else {planned.name: planned.compression.codec}
    # The same comparison as `verify --against-source`; the hashed bytes are the compared bytes.
    shared = resources(stop, store)
    source = Transfer(_reading(planned, planned.source, planned.offset, planned.length), shared)
    held = source
    try:
        _carry(source, ComparingPlace(store.path, store.open, compressed), lane, watch)
    except DamagedError as error:
        raise _stranger(path, planned) from error
    if compressed:
        held = Stored(_reading(planned, stored, 0, stored.size), shared)
        _carry(held, NullPlace(store.path), lane, watch)
    return FileReport(
        source=planned.source.path,
        name=planned.name,
        path=path,
        offset=planned.offset,
        bytes=planned.length,
        size=stored.size,
        stored=min(stored.size, stored.allocated),
        seconds=time.perf_counter() - began,
        method="read",
        digest=_named(planned, held.digest),
        content_digest=_named(planned, source.content_digest),
        error=None,
        phase="done",
        stages=planned.stages,
        kept=True,
        identity=planned.source.identity,
        inode=stored.inode,
        blocks=held.blocks,
        content_blocks=source.content_blocks,
        stat=planned.source.stat,
        durable=planned.durable,
        manifest_sha256="",
    )


def _look_at(store: Store, path: str, planned: PlannedDump) -> Source:
    fd = regular(store.open(planned.name), path)
    try:
        stored = describe(fd, path)
        length = stored.size
        if planned.compression is not None:
            length = sum(frame.length for frame in listed_frames(fd, path, planned.compression.codec) or ())
    finally:
        os.close(fd)
    if length != planned.length:
        raise _stranger(path, planned)
    return stored


def _reading(planned: PlannedDump, source: Source, offset: int, length: int) -> PlannedDump:
    """Return a plan that only reads: the source of a dump, or the dump itself, as it is stored."""
    what = {"source": source, "offset": offset, "length": length, "on_read_error": "fail"}
    return msgspec.structs.replace(planned, method="read", sparse=False, **what)


def _carry(transfer: Transfer, place: NullPlace, lane: Lane, watch: Callable[[Transfer], None]) -> None:
    watch(transfer)
    try:
        transfer.begin(place, lane)
        transfer.work(lane)
        transfer.seal(lane)
    finally:
        transfer.abort()


def _named(planned: PlannedDump, digest: str | None) -> str | None:
    return None if digest is None else f"{planned.checksum}:{digest}"


def _stranger(path: str, planned: PlannedDump) -> DumpError:
    return DumpError(
        f"{path} is in no record of a run, and differs from {planned.source.path}",
        path=path,
        operation="compare",
        errno=errno.EEXIST,
        hint="move it away, or also pass {overwrite}",
    )
