"""What earlier runs have dumped already: found complete, it is kept and not dumped again."""

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
    """Looks whether a dump is there before a lane begins it: in a store; elsewhere nothing is found again.

    Attributes:
        journal: takes down what is kept, unless it is None.
    """

    def __init__(self, plan: Plan, store: Store, stop: Stop) -> None:
        self.journal: Journal | None = None
        self._plan: Final = plan
        self._store: Final = store
        self._stop: Final = stop

    def settle(self, job: Job, lane: Lane) -> None:
        """Set ``kept`` of a job whose dump is there and complete, or its error where something else is in the way."""
        earlier = job.earlier
        if earlier is None:
            job.guard(lambda: self._recognise(job, lane))
        elif (complete := self._verified(job, earlier, lane)) is not None:
            self._keep(job, complete)

    def _keep(self, job: Job, report: FileReport) -> None:
        job.kept = report
        if self.journal is not None:
            with suppress(DumpError):  # What is lost is that this run has verified it.
                self.journal.append([report])

    def _verified(self, job: Job, earlier: FileReport, lane: Lane) -> FileReport | None:
        """Return the record of what an earlier run has done, if it has done this very thing and that verifies."""
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
        except Exception as error:  # noqa: BLE001 (whatever it is: what doesn't verify is dumped again)
            logger().warning("dumped_again", dump=earlier.name, error=str(error) or type(error).__name__)
        else:
            return msgspec.structs.replace(proved, kept=True, durable=earlier.durable or job.planned.durable)
        finally:
            job.proof = None
        return None

    def _recognise(self, job: Job, lane: Lane) -> None:
        """Keep a file of a dump's name that no record mentions, if it holds what the source holds now.

        Raises:
            DumpError: it holds something else, or can't be read.
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
        """Tell whether a file has a dump's name that no record mentions, and that no dump of this run holds."""
        name = job.planned.name
        if not self._plan.resume or self._plan.overwrite:
            return False
        return self._store.exists(name) and self._store.holder(name) is None
