"""One run from the caller's side: `dump_all` awaits it, `open_run` watches it."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from threading import Thread
from typing import Any, Final

import msgspec

from asyncdump.errors import as_failure
from asyncdump.plan.plan import Plan
from asyncdump.records.journal import Journal
from asyncdump.records.report import FileReport, Report, now
from asyncdump.records.writer import digest_lists, receipt
from asyncdump.run.events import Event, RunFinished, RunStarted
from asyncdump.run.mailbox import Mailbox
from asyncdump.run.mappers import Mappers
from asyncdump.run.scheduler import Scheduler
from asyncdump.run.threads import Host, Signal, outlast, start
from asyncdump.sinks.place import Place, Store
from asyncdump.version import __version__
from asyncdump.vocabulary.names import LISTS, RECEIPT
from asyncdump.vocabulary.stop import Stop


class Run:
    """A run in progress: an asynchronous iterator of its events, for one listener at a time.

    An iteration continues where an earlier one was left. A second one at the same time raises `RuntimeError`, because
    each event is delivered once. After the last event, iterations end immediately.

    Attributes:
        plan: the plan of the run.
    """

    def __init__(
        self,
        plan: Plan,
        place: Place,
        stop: Stop | None = None,
        *,
        store: Store | None = None,
        earlier: Mapping[str, FileReport] | None = None,
        receipt: bool = True,
    ) -> None:
        """``store`` contains the records of this run, or with ``receipt=False`` those of the run whose dumps are read.
        It stays locked until the run has ended. ``earlier`` are the dumps of earlier runs in it, by name.
        """
        self.plan: Final = plan
        self._place: Final = place
        self._store: Final = store
        self._journal: Journal | None = None
        self._earlier: Final = earlier or {}
        self._receipt = receipt
        self._mailbox = Mailbox()
        self._stop = stop or Stop()
        self._interrupted: str | None = None
        self._report: Report | None = None
        self._began = time.perf_counter()
        self._mappers = Mappers(dump.source for dump in plan.dumps if receipt)
        self._scheduler = Scheduler(
            plan,
            place,
            emit=self._mailbox.put,
            stop=self._stop,
            clock=self._clock,
            watch=self._look_around,
            store=store,
            earlier=earlier,
            mappers=self._mappers,
            quiet=not receipt,
        )
        self.ended: Final = Signal()
        self._host: Host | None = None
        self._thread: Thread | None = None
        self._process: Final = os.getpid()
        self._failure: BaseException | None = None

    def attach(self, journal: Journal) -> None:
        """Record what is done in a journal."""
        self._journal = journal
        self._scheduler.attach(journal)

    def discard(self) -> None:
        """Release the resources of a run that is never started, without a trace on disk."""
        if self._journal is not None and not self._earlier:
            self._journal.remove()
        self._release()

    def _release(self) -> None:
        if self._journal is not None:
            self._journal.close()
        self._place.close()
        if self._store is not None:
            self._store.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return aiter(self._mailbox)

    def to_dict(self) -> dict[str, Any]:
        """Return the run as a JSON object: ``state`` (``running`` or ``ended``), ``plan``, and ``report`` or None."""
        ended = self._report is not None
        report = self._report.to_dict() if self._report is not None else None
        return {"state": "ended" if ended else "running", "plan": self.plan.to_dict(), "report": report}

    def to_json(self) -> str:
        """Return `to_dict` as text."""
        return msgspec.json.format(msgspec.json.encode(self.to_dict()), indent=1).decode()

    def __str__(self) -> str:
        return str(self.plan if self._report is None else self._report)

    def __repr__(self) -> str:
        what = repr(self.plan if self._report is None else self._report)
        return f"<Run, {'running' if self._report is None else 'ended'}: {what.partition(': ')[2]}"

    def _repr_html_(self) -> str:
        what = self.plan if self._report is None else self._report
        return what._repr_html_()

    @property
    def report(self) -> Report:
        """The outcome, once the run has ended: after the last event, or after ``async with``.

        Raises:
            RuntimeError: the run hasn't ended.
        """
        if self._report is None:
            raise RuntimeError("the run has not ended yet")
        return self._report

    def cancel(self, reason: str = "cancelled") -> None:
        """Stop the run within about 100 ms: finished dumps stay, others are removed, and the report says which.

        It may be called at any time, more than once, and from any thread or signal handler.
        """
        self._interrupted = self._interrupted or reason
        self._stop.requested = True

    def _clock(self) -> float:
        return time.perf_counter() - self._began

    def start(self) -> None:
        """Start the run in threads, which no event loop can interrupt.

        Raises:
            DumpError: no thread can be started. All resources are released then.
        """
        self._host = Host()
        try:
            self._thread = start(self._conduct)
        except BaseException:
            self.discard()
            raise

    @property
    def forked(self) -> bool:
        """Whether this process is a forked child of the one that runs it: it has neither its threads nor its loop."""
        return os.getpid() != self._process

    async def wait(self) -> None:
        """Wait for the end, through any number of cancellations; the first one stops the run.

        Raises:
            BaseException: the error that stopped the run, unless it is the failure of a file; or the last cancellation.
        """
        if self._thread is not None and not self.forked:
            await outlast(self._thread, self.ended, self.cancel)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _look_around(self) -> None:
        """Stop the run if its event loop is gone, so that no task can be waiting for it."""
        if self._host is not None and self._host.gone:
            self.cancel("the event loop was closed")

    def _conduct(self) -> None:
        started, self._began = now(), time.perf_counter()
        try:
            self._mailbox.put(
                RunStarted(
                    at=0.0,
                    output=self.plan.output,
                    files=len(self.plan.dumps),
                    bytes=self.plan.bytes,
                    concurrency=self._scheduler.concurrency,
                )
            )
            self._scheduler.run()
        except BaseException as error:  # noqa: BLE001 (raised by `wait`)
            self._failure = error
            self.cancel(f"{type(error).__name__}: {error}")
        try:
            if self._scheduler.aborted:
                self.cancel("on_error: abort")
            self._conclude(started)
        except BaseException as error:  # noqa: BLE001 (likewise)
            self._failure = self._failure or error
        finally:
            # Released first: when the events end, or `wait` returns, the directory is unlocked.
            self._mappers.end()
            self._release()
            self._mailbox.close()
            self.ended.give()

    def _conclude(self, started: datetime) -> None:
        report = Report(
            files=self._scheduler.reports,
            output=self.plan.output,
            started=started,
            ended=now(),
            seconds=self._clock(),
            interrupted=self._interrupted,
            manifest_sha256=self.plan.manifest_sha256,
            earlier=self._still_there(self._scheduler.reports),
        )
        try:
            self._write_records(report)
        except Exception as error:  # noqa: BLE001 (any error: the dumps are complete without a receipt)
            report = msgspec.structs.replace(report, receipt_error=as_failure(error, self._place.path))
        self._report = report
        self._mailbox.put(
            RunFinished(
                at=self._clock(),
                files=len(report.files),
                failed=len(report.failures),
                bytes=report.bytes,
                seconds=report.seconds,
                interrupted=report.interrupted,
            )
        )

    def _still_there(self, files: Iterable[FileReport]) -> tuple[FileReport, ...]:
        """Return the dumps of earlier runs that this run has neither written again nor kept."""
        made = {file.name for file in files if file.ok or file.inode}
        return tuple(file for name, file in self._earlier.items() if name not in made)

    def _write_records(self, report: Report) -> None:
        if self._receipt and self._store is not None:
            # The earlier digest of a dump that was replaced doesn't match its replacement: empty those lists.
            lists = {name: LISTS[file.digest.partition(":")[0]] for name, file in self._earlier.items() if file.digest}
            standing = {lists[file.name] for file in report.earlier if file.ok and file.name in lists}
            stale = dict.fromkeys(set(lists.values()) - standing, b"")
            self._store.write_small({**stale, **digest_lists(report), RECEIPT: receipt(report, __version__)})
        if self._journal is not None:
            self._journal.remove()
