"""Dumps that exist already: if they verify, they are kept and not dumped again."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec

from asyncdump.errors import DumpError, InterruptedDumpError
from asyncdump.kernel.lane import Lane
from asyncdump.log import logger
from asyncdump.plan.earlier import fits
from asyncdump.plan.plan import Plan
from asyncdump.records.journal import Journal
from asyncdump.records.report import FileReport
from asyncdump.run.job import Job
from asyncdump.run.stranger import recognise
from asyncdump.sinks.place import Store
from asyncdump.transfer.proof import prove
from asyncdump.vocabulary.stop import Stop


class Keeper:
    """Checks whether a dump exists in the store before a lane begins it. Places that aren't stores keep no dumps.

    Attributes:
        journal: where kept dumps are recorded, or None.
    """

    def __init__(self, plan: Plan, store: Store, stop: Stop) -> None:
        self.journal: Journal | None = None
        self._plan: Final = plan
        self._store: Final = store
        self._stop: Final = stop

    def settle(self, job: Job, lane: Lane) -> None:
        """Set ``kept`` of a job whose dump exists and is complete, or its error if another file has its name."""
        earlier = job.earlier
        if earlier is None:
            job.guard(lambda: self._recognise(job, lane))
        elif (complete := self._verified(job, earlier, lane)) is not None:
            self._keep(job, complete)

    def _keep(self, job: Job, report: FileReport) -> None:
        job.kept = report
        if self.journal is not None:
            with suppress(DumpError):  # Without the record, the next run verifies it again.
                self.journal.append([report])

    def _verified(self, job: Job, earlier: FileReport, lane: Lane) -> FileReport | None:
        """Return the record of an earlier run if it is of the same dump, and the dump verifies."""
        if job.attempts or not earlier.ok or not fits(job.planned, earlier, self._plan):
            return None
        try:
            if job.planned.durable and not earlier.durable:
                self._store.settle(earlier.name)
            proved = prove(earlier, self._store, lane, self._stop, job.watch)
            if not self._store.hold(earlier.name):
                return None
        except InterruptedDumpError as error:
            job.note(error)
        except Exception as error:  # noqa: BLE001 (any error: a dump that doesn't verify is dumped again)
            logger().warning("dumped_again", dump=earlier.name, error=str(error) or type(error).__name__)
        else:
            return msgspec.structs.replace(proved, kept=True, durable=earlier.durable or job.planned.durable)
        finally:
            job.proof = None
        return None

    def _recognise(self, job: Job, lane: Lane) -> None:
        """Keep a file under the name of a dump that no record mentions, if its content is that of the source.

        Raises:
            DumpError: its content differs, or can't be read.
        """
        if not self._is_in_the_way(job):
            return
        try:
            found = recognise(job.planned, self._store, lane, self._stop, job.watch)
        finally:
            job.proof = None
        self._store.hold(found.name)
        self._keep(job, msgspec.structs.replace(found, manifest_sha256=self._plan.manifest_sha256))

    def _is_in_the_way(self, job: Job) -> bool:
        """Return whether a file has the name of the dump that no record mentions, and that this run didn't write."""
        name = job.planned.name
        if not self._plan.resume or self._plan.overwrite:
            return False
        return self._store.exists(name) and self._store.holder(name) is None
