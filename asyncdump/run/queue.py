"""The files of a run that wait and those in progress: what a lane does next."""

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
"""Several lanes may work on a file of at least this many bytes at the same time."""

WORTH_JOINING: Final = 16 << 20
"""A lane joins a file only if its share of the remaining bytes is at least this many."""

_SMALL: Final = 16 << 20
_BATCH_BYTES: Final = 64 << 20
_TICK: Final = 0.1
"""Seconds after which a lane without work checks whether the run is stopped."""


class Queue:
    """Distributes the files to the lanes.

    A lane takes the largest waiting file, or several small ones. If no file is waiting, it joins the file with the most
    bytes left for it, so that one huge file doesn't become the long tail of the run.

    A lane may join a file after its first lane has begun it (`share`), and until its last lane has left (`leave`). The
    last lane to leave seals the file. Since joining and leaving happen under the turn, no lane can join a file that is
    being sealed.
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
        """``transfer`` makes the transfer of a dump; a lane takes at most ``batch`` small files at a time."""
        self._transfer: Final = transfer
        self._stop: Final = stop
        self._concurrency: Final = concurrency
        self._lanes: Final = lanes
        self._batch: Final = batch
        # The turn guards everything below, and `lanes`, `moved_by` and `open_to_join` of all jobs.
        self._turn = threading.Lock()
        self._work = threading.Condition(self._turn)
        # The largest first: at the end, only small files are left, and all lanes finish at about the same time.
        self._waiting = deque(sorted(jobs, key=lambda job: -job.planned.length))
        self._in_flight = 0
        self._active: dict[Job, None] = {}

    def add(self, jobs: Iterable[Job]) -> None:
        """Let jobs wait again. Call this only while no lane is running."""
        self._waiting.extend(jobs)

    @contextmanager
    def active(self) -> Iterator[Iterable[Job]]:
        """Yield the jobs in progress; none is added or removed within the block."""
        with self._turn:
            yield self._active

    def wake(self) -> None:
        """Make lanes without work check for work again."""
        with self._turn:
            self._work.notify_all()

    def next(self) -> list[Job]:
        """Return what a lane does next: files to begin, one in progress to join, or nothing if no work is left."""
        with self._turn:
            while not self._stop.requested:
                if self._waiting and self._in_flight < self._concurrency:
                    return self._take()
                shared = [job for job in self._active if job.planned.length >= SHARED and job.transfer.remaining]
                joinable = [
                    job
                    for job in shared
                    # A lane that joined a failed file would have nothing to do and come back, in a busy loop.
                    if job.open_to_join and job.error is None and job.has_room and job.share >= WORTH_JOINING
                ]
                if joinable:
                    job = max(joinable, key=lambda job: job.share)
                    job.lanes += 1
                    return [job]
                # Stay if a large file is still being opened: it may be joined soon.
                if not self._waiting and all(job.open_to_join for job in shared):
                    break
                self._work.wait(_TICK)
        return []

    def _take(self) -> list[Job]:
        """Take the largest waiting file, or a batch of small ones."""
        jobs = [self._waiting.popleft()]
        room = _BATCH_BYTES - jobs[0].planned.length
        # At most half of an equal share, so that the last small files are spread over all lanes.
        most = min(self._batch, len(self._waiting) // (2 * self._lanes))
        if jobs[0].planned.length <= _SMALL:
            while len(jobs) < most and room > 0:
                jobs.append(self._waiting.popleft())
                room -= jobs[-1].planned.length
        self._in_flight += 1  # A batch counts as one file: its lane works on one of its files at a time.
        for job in jobs:
            job.lanes = 1
            # A retry starts without the state of the failed attempt.
            job.error, job.sealed, job.moved_by, job.recorded = None, False, 0, None
            job.under_way = self._transfer(job.planned)
            self._active[job] = None
        return jobs

    def share(self, job: Job) -> None:
        """Let other lanes join a file that was begun, unless it is kept and nothing is to be moved."""
        with self._turn:
            job.open_to_join = job.kept is None
            self._work.notify_all()

    def leave(self, job: Job) -> bool:
        """Note that a lane has nothing left to do for a file; return whether it was the last lane of that file."""
        with self._turn:
            job.moved_by += 1
            job.lanes -= 1
            if job.lanes:
                return False
            job.open_to_join = False
            return True

    def release(self, jobs: Iterable[Job]) -> None:
        """Note that jobs which were taken together are no longer in progress: a lane may take the next file."""
        with self._turn:
            for job in jobs:
                job.lanes = 0
                del self._active[job]
            self._in_flight -= 1
            self._work.notify_all()
