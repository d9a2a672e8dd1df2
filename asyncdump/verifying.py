"""Verifying: `verify_all` reads the dumps of a run back and compares them, `open_verify` watches that."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec

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
from asyncdump.records.standing import is_compressed
from asyncdump.run.events import Event
from asyncdump.run.opening import Handler, listen, running
from asyncdump.run.run import Run
from asyncdump.run.threads import in_thread
from asyncdump.sinks.folder import Folder
from asyncdump.sinks.mirror import Mirror
from asyncdump.sinks.null import NullPlace
from asyncdump.vocabulary.names import RESERVED, TEMPORARY_PREFIX
from asyncdump.vocabulary.values import Concurrency


class FileVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome for one dump.

    Attributes:
        name, path: its name, and its full path.
        verdict: ``ok``; ``corrupt``; ``short``; ``missing``; ``differs`` from its source; or ``unknown``, where that
            can't be decided: it has no digest, it is the output of a filter and can't be compared with a source, or a
            call failed.
        bytes: the bytes of the source that it contains.
        offset: where in the file as stored the first bad frame or 2 MiB block begins, in bytes; for a dump that differs
            from its source, the first such byte of its content. None where that isn't known.
        frame: the number of the first bad frame of a compressed dump, from 0, or None.
        message: why it isn't ``ok``.
        hint: what can be done about it.
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
    """The outcome of a verification.

    Attributes:
        receipt: what the dumps were compared with: a receipt, or the journal of a run that never ended.
        files: the outcome for each dump in it.
        unrecorded: how many dumps the last run should have made and didn't: it was killed, or an older dump is there.
        strays: files in the directory that aren't in the receipt; they are not a failure.
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
        """True if every dump of the run is there and ``ok``."""
        verified = all(file.verdict == "ok" for file in self.files)
        return verified and not self.unrecorded and self.interrupted is None

    @property
    def failures(self) -> tuple[FileVerdict, ...]:
        return tuple(file for file in self.files if file.verdict != "ok")

    @property
    def bytes(self) -> int:
        """The bytes of the sources that the dumps which are ``ok`` contain."""
        return sum(file.bytes for file in self.files if file.verdict == "ok")

    def raise_for_failures(self) -> None:
        """Raise an ``ExceptionGroup`` of `DamagedError` if any dump isn't ``ok``, or the run never ended."""
        errors: list[Exception] = [
            DamagedError(file.message, verdict=file.verdict, path=file.path, offset=file.offset, frame=file.frame)
            for file in self.failures
        ]
        if self.unrecorded:
            errors.append(DumpError(f"{self.unrecorded} dumps were not made by the last run"))
        if errors:
            lost = len(errors) - bool(self.unrecorded) + self.unrecorded
            raise ExceptionGroup(f"{lost} of {len(self.files) + self.unrecorded} dumps are not verified", errors)


class Verifier:
    """A verification in progress: an asynchronous iterator of its events, like a `Run`."""

    def __init__(self, receipt: Receipt, folder: Folder, *, against_source: bool, concurrency: Concurrency) -> None:
        self._receipt: Final = receipt
        self._began = time.perf_counter()
        self._known: dict[str, FileVerdict] = {}
        # Dumps of earlier runs that this one didn't make may have been removed since.
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
        compressed = frozenset(file.name for file in files if is_compressed(file))
        place = Mirror(folder.path, compressed) if against_source else NullPlace(folder.path)
        self.run: Final = Run(plan, place, receipt=False, guard=folder)

    def __aiter__(self) -> AsyncIterator[Event]:
        return aiter(self.run)

    def cancel(self, reason: str = "cancelled") -> None:
        """End it within about 100 ms: what wasn't verified by then is ``unknown``. May be called from anywhere."""
        self.run.cancel(reason)

    @property
    def outcome(self) -> Verification:
        """The outcome, once it has ended: after the last event, or after ``async with``.

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
        what: the directory of the run, or its receipt.
        against_source: compare the dumps with their sources as they are now, byte for byte, instead.
        concurrency: files in flight, or ``auto``.
        on_event: called with each event, as that of `dump_all`.

    Raises:
        ReceiptError: there is no receipt, or it can't be read.
        DumpError: the directory can't be read, or a run is running in it.
    """
    async with open_verify(what, against_source=against_source, concurrency=concurrency) as verifier:
        if on_event is not None:
            await listen(verifier.run, on_event)
    return verifier.outcome


@asynccontextmanager
async def open_verify(
    what: str | os.PathLike[str], *, against_source: bool = False, concurrency: Concurrency = "auto"
) -> AsyncIterator[Verifier]:
    """Start what `verify_all` does, and give it as an asynchronous iterator of its events::

        async with asyncdump.open_verify("/var/dumps/out") as verifier:
            async for event in verifier:
                print(event)
        verifier.outcome.raise_for_failures()

    Raises:
        ReceiptError: there is no receipt, or it can't be read.
        DumpError: the directory can't be read, or a run is running in it.
    """

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
        message="the verification ended before it" if isinstance(error, InterruptedDumpError) else str(error),
        hint=getattr(error, "hint", ""),
        seconds=seconds,
    )


def _strays(folder: Folder, known: set[str]) -> tuple[str, ...]:
    ours = known | RESERVED
    names = os.listdir(folder.fd)
    return tuple(sorted(name for name in names if name not in ours and not name.startswith(TEMPORARY_PREFIX)))
