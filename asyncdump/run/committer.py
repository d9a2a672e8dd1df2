"""The committer: makes durable in one go whatever was sealed while it was busy, and gives it its names."""

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
"""Seconds after which a lane that waits for room looks whether the run goes on."""


class Committer:
    """A short queue of sealed jobs, which `next_group` empties.

    Lanes call `hand_over`, each for a job that it alone has: from then on the job is the committer's. A full queue
    holds them up: that is the backpressure of a disk that syncs more slowly than it writes.

    Attributes:
        journal: takes down what is published, unless it is None.
        finishes: whether what was handed over is published although the run is stopped (``on_error: abort``).
    """

    def __init__(self, plan: Plan, place: Place, stop: Stop, facts: Facts, *, group: int) -> None:
        """``group`` is how many jobs may wait, and are published together at most."""
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
        """Expect jobs, until `close`."""
        self._open = True

    def close(self) -> None:
        """Say that nothing more will be handed over."""
        with self._turn:
            self._open = False
            self._arrived.notify_all()
            self._room.notify_all()

    def hand_over(self, job: Job) -> None:
        """Give a sealed job to the committer, when it has room for one more."""
        with self._turn:
            while len(self._sealed) >= self._group and not self._stop.requested:
                self._room.wait(_TICK)
            self._sealed.append(job)
            self._arrived.notify()

    def next_group(self) -> list[Job]:
        """Wait for jobs, publish them as a group and return them; nothing at the end, or when the run is stopped.

        Of each job returned, ``published`` or ``error`` is set.
        """
        with self._turn:
            while not self._sealed and self._open:
                self._arrived.wait()
            if self._stop.requested and not self.finishes:
                return []
            group = [self._sealed.popleft() for _ in range(min(self._group, len(self._sealed)))]
            self._room.notify_all()
        for durable in (True, False):
            if jobs := [job for job in group if job.planned.durable is durable]:
                self._publish(jobs, durable=durable)
        return group

    def _publish(self, jobs: list[Job], *, durable: bool) -> None:
        for job in jobs:
            job.transfer.phase = "sync"
        errors: Sequence[AsyncdumpError | None]
        try:
            if self.journal is not None:
                self.journal.append(job.report(self._facts) for job in jobs)
            sinks = [sink for job in jobs if (sink := job.transfer.sink) is not None]
            errors = self._place.publish(sinks, durable=durable, overwrite=self._plan.overwrite, journal=self.journal)
        except Exception as error:  # noqa: BLE001 (whatever it is, it's these files')
            abort(jobs)
            errors = [as_failure(error, job.planned.source.path) for job in jobs]
        for job, failure in zip(jobs, errors, strict=True):
            if failure is None:
                job.published = True
                continue
            job.note(failure)
            if self.journal is not None and isinstance(failure, NotDurableError):
                with suppress(DumpError):  # It says then that the dump is done: a run that goes on proves that.
                    self.journal.append([job.failure(failure, self._place.path, self._facts)])
