"""Verifying: `verify_all` reads the dumps of a run and compares them with their records; `open_verify` shows events."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from asyncdump.codecs.registry import stored_by
from asyncdump.errors import DamagedError, DumpError, InterruptedDumpError
from asyncdump.plan.plan import Plan
from asyncdump.plan.readback import from_source, plain
from asyncdump.records.receipt import Receipt, open_receipt
from asyncdump.records.report import FileReport, Report
from asyncdump.records.verification import FileVerdict, Verification
from asyncdump.run.events import Event
from asyncdump.run.opening import Handler, listen, running
from asyncdump.run.run import Run
from asyncdump.run.threads import in_thread
from asyncdump.sinks.comparing import ComparingPlace
from asyncdump.sinks.null import NullPlace
from asyncdump.sinks.place import Store
from asyncdump.vocabulary.names import RESERVED, TEMPORARY_PREFIX
from asyncdump.vocabulary.values import Concurrency


class Verifier:
    """A verification in progress: an asynchronous iterator of its events, like a `Run`."""

    def __init__(self, receipt: Receipt, store: Store, *, against_source: bool, concurrency: Concurrency) -> None:
        self._receipt: Final = receipt
        self._against_source: Final = against_source
        self._began = time.perf_counter()
        self._known: dict[str, FileVerdict] = {}
        # Dumps of earlier runs that the last run didn't write may have been removed since.
        asked = {file.name for file in receipt.files}
        files = [file for name, file in receipt.known.items() if name in asked or store.entry(name) is not None]
        self._order = [file.name for file in files]
        dumps = []
        for file in files:
            try:
                dumps.append(from_source(file, store) if against_source else plain(file, store))
            except DumpError as error:
                self._known[file.name] = _verdict(file, error, 0.0)
        self._strays = _strays(store, set(receipt.known))
        plan = Plan(
            output=store.path,
            dumps=tuple(dumps),
            concurrency=concurrency,
            on_error="continue",
            overwrite=False,
            free=0,
            manifest_sha256="",
        )
        codecs = {file.name: codec for file in files if (codec := stored_by(file.stages)) is not None}
        path = store.path
        place = ComparingPlace(path, store.open, codecs) if against_source else NullPlace(path)
        self.run: Final = Run(plan, place, store=store, receipt=False)

    def __aiter__(self) -> AsyncIterator[Event]:
        return aiter(self.run)

    def cancel(self, reason: str = "cancelled") -> None:
        """Stop it within about 100 ms: dumps that aren't verified by then are ``unknown``. Call it from anywhere."""
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
            against_source=self._against_source,
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
        BusyError: a run is running in the directory.
        DumpError: the directory can't be read, or no thread can be started.
    """
    async with open_verify(what, against_source=against_source, concurrency=concurrency) as verifier:
        if on_event is not None:
            await listen(verifier.run, on_event)
    return verifier.outcome


@asynccontextmanager
async def open_verify(
    what: str | os.PathLike[str], *, against_source: bool = False, concurrency: Concurrency = "auto"
) -> AsyncIterator[Verifier]:
    """Start what `verify_all` does, and yield it as an asynchronous iterator of its events::

        async with asyncdump.open_verify("/var/dumps/out") as verifier:
            async for event in verifier:
                print(event)
        verifier.outcome.raise_for_failures()

    Raises:
        ReceiptError: there is no receipt, or it can't be read.
        BusyError: a run is running in the directory.
        DumpError: the directory can't be read, or no thread can be started.
    """

    def prepare() -> Verifier:
        receipt, store = open_receipt(what)
        try:
            return Verifier(receipt, store, against_source=against_source, concurrency=concurrency)
        except BaseException:
            store.close()
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
        ranges=damage.ranges if damage else (),
        damaged=damage.damaged if damage else 0,
        message="the verification ended before it was reached"
        if isinstance(error, InterruptedDumpError)
        else str(error),
        hint=getattr(error, "hint", ""),
        seconds=seconds,
    )


def _strays(store: Store, known: set[str]) -> tuple[str, ...]:
    ours = known | RESERVED
    return tuple(sorted(name for name in store.names() if name not in ours and not name.startswith(TEMPORARY_PREFIX)))
