"""The committer: makes all dumps durable that were sealed while it was busy, as one group, and publishes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from asyncdump.errors import AsyncdumpError, DumpError, NotDurableError, as_failure
from asyncdump.plan.plan import Plan
from asyncdump.records.journal import Journal
from asyncdump.run.job import Facts, Job, abort
from asyncdump.sinks.place import Place
from asyncdump.vocabulary.stop import Stop

_TICK: Final = 0.1
"""Seconds after which a lane that waits for a full queue checks whether the run is stopped."""


class Committer:
    """A short queue of sealed jobs, which `next_group` empties.

    A lane calls `hand_over` for a job that no other lane uses any more. From then on, the job belongs to the committer.
    A full queue blocks the lanes: this is the backpressure of a disk that syncs more slowly than it writes.

    Attributes:
        journal: where published dumps are recorded, or None.
        finishes: whether jobs that were handed over are published even if the run is stopped (``on_error: abort``).
    """

    def __init__(self, plan: Plan, place: Place, stop: Stop, facts: Facts, *, group: int) -> None:
        """``group`` is the maximum number of jobs that wait, and that are published together."""
        self.journal: Journal | None = None
        self.finishes = False
        self._plan: Final = plan
        self._place: Final = place
        self._stop: Final = stop
        self._facts: Final = facts
        self._group: Final = group
        self._turn = threading.Lock()
        self._arrived = threading.Condition(self._turn)
        self._room = threading.Condition(self._turn)
        self._sealed: deque[Job] = deque()
        self._open = False

    def open(self) -> None:
        """Accept jobs until `close`."""
        self._open = True

    def close(self) -> None:
        """Note that nothing more will be handed over."""
        with self._turn:
            self._open = False
            self._arrived.notify_all()
            self._room.notify_all()

    def hand_over(self, job: Job) -> None:
        """Give a sealed job to the committer; wait while its queue is full."""
        with self._turn:
            # After a stop, don't wait, because the run must end soon.
            while len(self._sealed) >= self._group and not self._stop.requested:
                self._room.wait(_TICK)
            self._sealed.append(job)
            self._arrived.notify()

    def next_group(self) -> list[Job]:
        """Wait for jobs, publish them as a group and return them; return nothing at the end or if the run is stopped.

        Each returned job has either ``published`` or ``error`` set.
        """
        with self._turn:
            while not self._sealed and self._open:
                self._arrived.wait()
            if self._stop.requested and not self.finishes:
                return []
            group = [self._sealed.popleft() for _ in range(min(self._group, len(self._sealed)))]
            self._room.notify_all()
        # Separately, because `publish` syncs either all of its sinks or none.
        for durable in (True, False):
            if jobs := [job for job in group if job.planned.durable is durable]:
                self._publish(jobs, durable=durable)
        return group

    def _publish(self, jobs: list[Job], *, durable: bool) -> None:
        for job in jobs:
            job.transfer.phase = "sync"
        errors: Sequence[AsyncdumpError | None]
        try:
            # Before the rename: after a crash, every published dump has a record.
            if self.journal is not None:
                self.journal.append(job.report(self._facts) for job in jobs)
            sinks = [sink for job in jobs if (sink := job.transfer.sink) is not None]
            errors = self._place.publish(sinks, durable=durable, overwrite=self._plan.overwrite, journal=self.journal)
        except Exception as error:  # noqa: BLE001 (any error is a failure of these files, not of the run)
            abort(jobs)
            errors = [as_failure(error, job.planned.source.path) for job in jobs]
        for job, failure in zip(jobs, errors, strict=True):
            if failure is None:
                job.published = True
                continue
            job.note(failure)
            if self.journal is not None and isinstance(failure, NotDurableError):
                with suppress(DumpError):  # Then the journal says that the dump is done, which a resumed run verifies.
                    self.journal.append([job.failure(failure, self._place.path, self._facts)])
