"""The dumps of a run, proved: each read back and compared with its receipt, or with its source."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import msgspec

from asyncdump.errors import (
    DamagedError,
    DumpError,
    InterruptedDumpError,
    ReceiptError,
    Verdict,
    absolute,
)
from asyncdump.plan.planner import Plan, PlannedDump
from asyncdump.records.receipt import Receipt, read_receipt
from asyncdump.records.record import RECEIPT, RESERVED
from asyncdump.records.report import FileReport, Report
from asyncdump.run.run import Handler, Run, listen, running
from asyncdump.run.threads import in_thread
from asyncdump.sinks.file import TEMPORARY_PREFIX, Folder
from asyncdump.sinks.mirror import Mirror, Nowhere
from asyncdump.sources.file import Source, describe, open_source
from asyncdump.text import as_path
from asyncdump.transfer.proof import has_checksums, is_compressed, look_at, went_through

Concurrency = int | Literal["auto"]


class FileVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one dump.

    Attributes:
        name, path: its name, and its full path.
        verdict: ``ok``; ``corrupt``; ``short``; ``missing``; ``differs`` from its source; or ``unknown``, where nothing
            tells: it has no digest, a filter's output can't be compared with a source, or the call failed.
        bytes: how much of the source it holds.
        offset: where in the file as stored the first bad frame or 2 MiB block begins, in bytes; of one that differs
            from its source, the first such byte of its content. None where that isn't known.
        frame: the number of the first bad frame of a compressed dump, from 0, or None.
        message: why it isn't ``ok``.
        hint: what can be done.
        seconds: how long it took.
    """

    name: str
    path: str
    verdict: Verdict
    bytes: int
    offset: int | None = None
    frame: int | None = None
    message: str = ""
    hint: str = ""
    seconds: float = 0.0


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the dumps of a run.

    Attributes:
        receipt: what they were compared with: a receipt, or the journal of a run that never ended.
        files: what came of each dump that it names.
        unrecorded: how many dumps the last run was to make and didn't: it was killed, or an older one stands there.
        strays: files beside the dumps that it doesn't name; they are no failure.
        seconds: how long it took.
        interrupted: what ended it early, or None.
    """

    receipt: str
    files: tuple[FileVerdict, ...]
    unrecorded: int
    strays: tuple[str, ...]
    seconds: float
    interrupted: str | None = None

    @property
    def ok(self) -> bool:
        """True if each dump of the run is there and ``ok``."""
        whole = all(file.verdict == "ok" for file in self.files)
        return whole and not self.unrecorded and self.interrupted is None

    @property
    def failures(self) -> tuple[FileVerdict, ...]:
        return tuple(file for file in self.files if file.verdict != "ok")

    @property
    def bytes(self) -> int:
        """The bytes that the dumps which are ``ok`` hold of their sources."""
        return sum(file.bytes for file in self.files if file.verdict == "ok")

    def raise_for_failures(self) -> None:
        """Raise an ``ExceptionGroup`` of `DamagedError`, if any dump isn't ``ok`` or the run never ended."""
        errors: list[Exception] = [
            DamagedError(file.message, verdict=file.verdict, path=file.path, offset=file.offset, frame=file.frame)
            for file in self.failures
        ]
        if self.unrecorded:
            errors.append(DumpError(f"{self.unrecorded} dumps were not made by the last run"))
        if errors:
            lost = len(errors) - bool(self.unrecorded) + self.unrecorded
            raise ExceptionGroup(f"{lost} of {len(self.files) + self.unrecorded} dumps are not proved", errors)


class Verifier:
    """A verification under way: its `run` tells of it while it lasts, `outcome` is there when that has ended."""

    def __init__(self, receipt: Receipt, folder: Folder, *, against_source: bool, concurrency: Concurrency) -> None:
        self._receipt: Final = receipt
        self._began = time.perf_counter()
        self._known: dict[str, FileVerdict] = {}
        # Of what earlier runs made and this one wasn't asked for, somebody may have removed some.
        asked = {file.name for file in receipt.files}
        files = [file for name, file in receipt.known.items() if name in asked or os.path.lexists(file.path)]
        self._order = [file.name for file in files]
        dumps = []
        for file in files:
            try:
                dumps.append(_from_source(file) if against_source else _plain(file))
            except DumpError as error:
                self._known[file.name] = _verdict(file, error, 0.0)
        self._strays = _strays(folder, set(receipt.known))
        plan = Plan(
            output=folder.path,
            dumps=tuple(dumps),
            concurrency=concurrency,
            on_error="continue",
            overwrite=False,
            free=0,
            manifest_sha256="",
        )
        compressed = frozenset(file.name for file in files if is_compressed(file))
        place = Mirror(folder.path, compressed) if against_source else Nowhere(folder.path)
        self.run: Final = Run(plan, place, receipt=False, guard=folder)

    @property
    def outcome(self) -> Verification:
        """What came of it.

        Raises:
            RuntimeError: it hasn't ended.
        """
        report: Report = self.run.report
        verdicts = {file.name: _judged(file) for file in report.files} | self._known
        return Verification(
            receipt=self._receipt.path,
            files=tuple(verdicts[name] for name in self._order),
            unrecorded=self._receipt.unmade,
            strays=self._strays,
            seconds=time.perf_counter() - self._began,
            interrupted=report.interrupted,
        )


async def verify_all(
    what: str | os.PathLike[str],
    *,
    against_source: bool = False,
    concurrency: Concurrency = "auto",
    on_event: Handler | None = None,
) -> Verification:
    """Read every dump of a run and compare it with the receipt: sizes, digests, the checksums of frames.

    Args:
        what: the folder of the run, or its receipt.
        against_source: compare the dumps with their sources as they are now, byte for byte, instead.
        concurrency: files in flight, or ``auto``.
        on_event: called with each event, as that of `dump_all`.

    Raises:
        ReceiptError: there is no receipt, or it can't be read.
        DumpError: the folder can't be read, or a run is at work in it.
    """
    async with open_verify(what, against_source=against_source, concurrency=concurrency) as verifier:
        if on_event is not None:
            await listen(verifier.run, on_event)
    return verifier.outcome


@asynccontextmanager
async def open_verify(
    what: str | os.PathLike[str], *, against_source: bool = False, concurrency: Concurrency = "auto"
) -> AsyncIterator[Verifier]:
    """Start what `verify_all` does, to watch or cancel its ``run``."""

    def prepare() -> Verifier:
        receipt, folder = open_receipt(what)
        try:
            return Verifier(receipt, folder, against_source=against_source, concurrency=concurrency)
        except BaseException:
            folder.close()
            raise

    verifier = await in_thread(prepare, lambda made: made.run.discard())
    async with running(verifier.run):
        yield verifier


def open_receipt(what: str | os.PathLike[str]) -> tuple[Receipt, Folder]:
    """Read the receipt that a path names, or that in the folder that it names, and keep runs out of the folder.

    Raises:
        ReceiptError: there is none, or it can't be read.
        DumpError: the folder can't be opened, or a run is at work in it.
    """
    try:
        path = absolute(as_path(what))
    except ValueError as error:
        raise ReceiptError(f"the folder of the run {error}") from error
    whole = os.path.isdir(path)
    place, name = (path, RECEIPT) if whole else os.path.split(path)
    folder = Folder(place, make=False)
    try:
        folder.lock(shared=True)
        try:
            receipt = read_receipt(folder, name)
        except DumpError as error:
            raise ReceiptError(f"{error} ({error.hint})" if error.hint else str(error)) from error
        if receipt is not None and not receipt.known and not receipt.missing:
            raise ReceiptError(f"{receipt.path} names no dump")
        if receipt is None:
            raise ReceiptError(
                f"there is no {name} in {place}, and no journal of a run" if whole else f"{path} is not there"
            )
    except BaseException:
        folder.close()
        raise
    return receipt, folder


def _plain(file: FileReport) -> PlannedDump:
    """Return the reading of a dump that is to be compared with its record."""
    _check_dumped(file)
    source, length = look_at(file)
    if file.digest is None and not has_checksums(file):
        raise _unknown(
            file, f"nothing but the size of {file.path} is recorded", "dump with a checksum, or use --against-source"
        )
    return planned(file, source=source, length=length)


def planned(file: FileReport, *, source: Source, length: int, **options: Any) -> PlannedDump:
    """Return the plan to read a dump back."""
    given: dict[str, Any] = {"method": "auto", "durable": False, "sparse": False, **options}
    checksum: Any = file.digest.partition(":")[0] if file.digest else "none"
    return PlannedDump(
        source=source, name=file.name, offset=0, length=length, checksum=checksum, expected=file, **given
    )


def _from_source(file: FileReport) -> PlannedDump:
    """Return the reading of a source that is to be compared with its dump."""
    _check_dumped(file)
    _, length = look_at(file)
    if programs := went_through(file):
        raise _unknown(file, f"{file.path} went through {', '.join(programs)}: it can't be compared with a source", "")
    fd = open_source(file.source)
    try:
        source = describe(fd, file.source)
    finally:
        os.close(fd)
    if source.size < file.offset + file.bytes and source.sized:
        raise DamagedError(
            f"{file.path} differs from its source: {file.source} has {source.size} bytes now, "
            f"{file.offset + file.bytes} are needed",
            verdict="differs",
            path=file.path,
        )
    if length != file.bytes:
        raise DamagedError(
            f"{file.path} differs from its source: it holds {length} bytes, not {file.bytes}",
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
        if file.inode and file.stage == "sync":
            raise _unknown(file, str(file.error), "complete the run with --resume")
        raise DamagedError(
            f"{file.path} was not dumped: {file.error}", verdict="missing", path=file.path, hint=file.error.hint
        )


def _unknown(file: FileReport, why: str, hint: str) -> DamagedError:
    return DamagedError(why, verdict="unknown", path=file.path, hint=hint)


def _judged(file: FileReport) -> FileVerdict:
    if file.error is None:
        return FileVerdict(name=file.name, path=file.path, verdict="ok", bytes=file.bytes, seconds=file.seconds)
    return _verdict(file, file.error, file.seconds)


def _verdict(file: FileReport, error: Exception, seconds: float) -> FileVerdict:
    damage = error if isinstance(error, DamagedError) else None
    return FileVerdict(
        name=file.name,
        path=file.path,
        verdict=damage.verdict if damage else "unknown",
        bytes=file.bytes,
        offset=damage.offset if damage else None,
        frame=damage.frame if damage else None,
        message="not verified: ended before" if isinstance(error, InterruptedDumpError) else str(error),
        hint=getattr(error, "hint", ""),
        seconds=seconds,
    )


def _strays(folder: Folder, known: set[str]) -> tuple[str, ...]:
    ours = known | RESERVED
    names = os.listdir(folder.fd)
    return tuple(sorted(name for name in names if name not in ours and not name.startswith(TEMPORARY_PREFIX)))
