"""Plans to read dumps back: to verify them, to compare them with their sources, or to restore them."""

from __future__ import annotations

from asyncdump.errors import (
    DamagedError,
    DumpError,
)
from asyncdump.plan.plan import PlannedDump
from asyncdump.records.report import FileReport
from asyncdump.records.standing import has_checksums, look_at, went_through
from asyncdump.sinks.place import Store
from asyncdump.sources.opening import look_at_recorded
from asyncdump.vocabulary.digest import checksum_of
from asyncdump.vocabulary.values import Source


def plain(file: FileReport, store: Store) -> PlannedDump:
    """Return the plan to compare a dump with its record."""
    _check_dumped(file)
    source, length = look_at(file, store)
    if file.digest is None and not has_checksums(file, store):
        raise _unknown(
            file, f"only the size of {file.path} is recorded", "dump with a checksum, or pass {against_source}"
        )
    return planned(file, source=source, length=length)


def planned(
    file: FileReport, *, source: Source, length: int, durable: bool = False, sparse: bool = False
) -> PlannedDump:
    """Return the plan to read a dump back."""
    return PlannedDump(
        source=source,
        name=file.name,
        offset=0,
        length=length,
        method="auto",
        checksum=checksum_of(file.digest),
        durable=durable,
        sparse=sparse,
        expected=file,
    )


def from_source(file: FileReport, store: Store) -> PlannedDump:
    """Return the plan to read a source and compare it with its dump."""
    _check_dumped(file)
    _, length = look_at(file, store)
    if programs := went_through(file):
        raise _unknown(file, f"{file.path} went through {', '.join(programs)}: it can't be compared with a source", "")
    source = look_at_recorded(file.source)
    if source.size < file.offset + file.bytes and source.sized:
        raise DamagedError(
            f"{file.path} differs from its source: {file.source} has {source.size} bytes now, "
            f"{file.offset + file.bytes} are needed",
            verdict="differs",
            path=file.path,
        )
    if length != file.bytes:
        raise DamagedError(
            f"{file.path} differs from its source: it contains {length} bytes, not {file.bytes}",
            verdict="differs",
            path=file.path,
        )
    return PlannedDump(
        source=source,
        name=file.name,
        offset=file.offset,
        length=file.bytes,
        method="read",
        checksum="none",
        durable=False,
        sparse=False,
    )


def _check_dumped(file: FileReport) -> None:
    if file.error is not None:
        if file.inode and file.phase == "sync":
            raise _unknown(file, str(file.error), "complete the run with {resume}")
        raise DamagedError(
            f"{file.path} was not dumped: {file.error}", verdict="missing", path=file.path, hint=file.error.hint
        )


def _unknown(file: FileReport, why: str, hint: str) -> DamagedError:
    return DamagedError(why, verdict="unknown", path=file.path, hint=hint)


def to_restore(file: FileReport, store: Store, *, durable: bool) -> PlannedDump:
    """Return the plan to restore a dump.

    Raises:
        DumpError: it was not dumped, or went through programs, which can't be undone here.
        DamagedError: it is missing, or has a different size.
    """
    if file.error is not None:
        raise DumpError(f"{file.path} was not dumped: {file.error}", path=file.path, hint=file.error.hint)
    if programs := went_through(file):
        raise DumpError(
            f"{file.path} went through {', '.join(programs)}, which can't be undone here",
            path=file.path,
            operation="restore",
            hint="decode it manually, and copy the result to its target",
        )
    source, length = look_at(file, store)
    return planned(file, source=source, length=length, durable=durable, sparse=True)
