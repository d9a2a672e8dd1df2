"""The dumps of a run, proved: each read back and compared with its receipt, or with its source."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from asyncdump.codecs.registry import stored_by
from asyncdump.errors import (
    DamagedError,
    DumpError,
    InterruptedDumpError,
    Verdict,
)
from asyncdump.plan.plan import Plan
from asyncdump.plan.readback import from_source, plain
from asyncdump.records.receipt import Receipt, open_receipt
from asyncdump.records.report import FileReport, Report
from asyncdump.run.opening import Handler, listen, running
from asyncdump.run.run import Run
from asyncdump.run.threads import in_thread
from asyncdump.sinks.folder import Folder
from asyncdump.sinks.mirror import Mirror
from asyncdump.sinks.null import NullPlace
from asyncdump.vocabulary.names import RESERVED, TEMPORARY_PREFIX
from asyncdump.vocabulary.values import Concurrency


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
                dumps.append(from_source(file) if against_source else plain(file))
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
        compressed = {file.name: codec for file in files if (codec := stored_by(file.stages)) is not None}
        place = Mirror(folder.path, compressed) if against_source else NullPlace(folder.path)
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
