"""The files of a run that wait, and those under way: what a lane does next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from asyncdump.plan.plan import PlannedDump
from asyncdump.run.job import Job
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary.stop import Stop

SHARED: Final = 64 << 20
"""A file of at least this many bytes may be worked on by several lanes at once."""

WORTH_JOINING: Final = 16 << 20
"""Bytes that a lane must find to do in a file for joining it to be worth the while."""

_SMALL: Final = 16 << 20
_BATCH_BYTES: Final = 64 << 20
_TICK: Final = 0.1
"""Seconds after which a lane without work looks whether the run goes on."""


class Queue:
    """Gives out work. A lane takes the largest file that waits, or many small ones; when none waits, it joins the file
    with most bytes left, so that one huge file is not the run's long tail.

    A lane may join a file between `share`, when its first lane has begun it, and the moment in which one of its lanes
    finds nothing left to do (`leave`). The last lane to leave seals the file.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        transfer: Callable[[PlannedDump], Transfer],
        stop: Stop,
        *,
        concurrency: int,
        lanes: int,
        batch: int,
    ) -> None:
        """``transfer`` makes what moves a dump; ``batch`` small files are one turn of a lane at most."""
        self._transfer: Final = transfer
        self._stop: Final = stop
        self._concurrency: Final = concurrency
        self._lanes: Final = lanes
        self._batch: Final = batch
        # What follows, and `Job.lanes`, `Job.moved_by` and `Job.open_to_join`, is changed by whoever holds the turn.
        self._turn = threading.Lock()
        self._work = threading.Condition(self._turn)
        self._waiting = deque(sorted(jobs, key=lambda job: -job.planned.length))
        self._in_flight = 0
        self._active: dict[Job, None] = {}

    def add(self, jobs: Iterable[Job]) -> None:
        """Have jobs wait once more; while no lane is at work."""
        self._waiting.extend(jobs)

    @contextmanager
    def active(self) -> Iterator[Iterable[Job]]:
        """Give the jobs under way; none begins or ends within the block."""
        with self._turn:
            yield self._active

    def wake(self) -> None:
        """Have lanes without work look again."""
        with self._turn:
            self._work.notify_all()

    def next(self) -> list[Job]:
        """Return what a lane does next: files to begin, or one under way to join; nothing when all is given out."""
        with self._turn:
            while not self._stop.requested:
                if self._waiting and self._in_flight < self._concurrency:
                    return self._take()
                shared = [job for job in self._active if job.planned.length >= SHARED and job.transfer.remaining]
                joinable = [
                    job
                    for job in shared
                    # One that has failed has nothing for a lane to do: it would come back at once, and for ever.
                    if job.open_to_join and job.error is None and job.has_room and job.share >= WORTH_JOINING
                ]
                if joinable:
                    job = max(joinable, key=lambda job: job.share)
                    job.lanes += 1
                    return [job]
                # A large file that is being opened may be joined soon.
                if not self._waiting and all(job.open_to_join for job in shared):
                    break
                self._work.wait(_TICK)
        return []

    def _take(self) -> list[Job]:
        """Take the largest file that waits; many small ones are one turn of a lane, as far as that's fair."""
        jobs = [self._waiting.popleft()]
        room = _BATCH_BYTES - jobs[0].planned.length
        most = min(self._batch, len(self._waiting) // (2 * self._lanes))
        if jobs[0].planned.length <= _SMALL:
            while len(jobs) < most and room > 0:
                jobs.append(self._waiting.popleft())
                room -= jobs[-1].planned.length
        self._in_flight += 1
        for job in jobs:
            job.lanes = 1
            job.error, job.sealed, job.moved_by = None, False, 0
            job.under_way = self._transfer(job.planned)
            self._active[job] = None
        return jobs

    def share(self, job: Job) -> None:
        """Let other lanes join a file that was begun, unless there is nothing to be moved of it."""
        with self._turn:
            job.open_to_join = job.kept is None
            self._work.notify_all()

    def leave(self, job: Job) -> bool:
        """Note that a lane has done all that it could for a file; return whether it was the last one at work on it."""
        with self._turn:
            job.moved_by += 1
            job.lanes -= 1
            if job.lanes:
                return False
            job.open_to_join = False
            return True

    def release(self, jobs: Iterable[Job]) -> None:
        """Note that jobs which were taken together are no longer under way: another lane may take the next."""
        with self._turn:
            for job in jobs:
                job.lanes = 0
                del self._active[job]
            self._in_flight -= 1
            self._work.notify_all()
