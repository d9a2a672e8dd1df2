"""The threads of a run: which thread does what, how many there are, and how a run ends. There is no event loop here.

A *lane* is a thread with its own buffer and pipe, which it closes itself. It takes the largest waiting file, or joins
the file with the most bytes left (`Queue`). Sealed dumps go to the *committer*, which makes all dumps durable that were
sealed while it was busy, and publishes them (`Committer`). `Telling` emits the events.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import count
from typing import Final

from asyncdump.errors import AsyncdumpError, DumpError, InterruptedDumpError, NotDurableError
from asyncdump.kernel.lane import Lane
from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.records.journal import Journal
from asyncdump.records.report import FileReport
from asyncdump.run.committer import Committer
from asyncdump.run.crew import TICK, Crew
from asyncdump.run.events import Event
from asyncdump.run.job import Facts, Job, abort
from asyncdump.run.keeper import Keeper
from asyncdump.run.limits import default_lanes, within_open_files
from asyncdump.run.mappers import Mappers
from asyncdump.run.queue import SHARED, WORTH_JOINING, Queue
from asyncdump.run.telling import Telling
from asyncdump.sinks.place import Place, Store
from asyncdump.transfer.choose import transfer_of
from asyncdump.transfer.resources import resources
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary.stop import Stop

_BATCH_FILES: Final = 16
_GROUP: Final = 64


class Scheduler:
    """Runs one plan; call `run` once. The constructor raises `DumpError` if the limit of open files is too low.

    Threads call ``emit`` with each event, one at a time. ``watch`` is called ten times a second. ``store`` contains the
    dumps that are read: those to verify or restore, or those of earlier runs, whose records are ``earlier``, by name.
    ``mappers`` knows which processes have the sources mapped. With ``quiet``, failures aren't logged.

    Attributes:
        reports: the outcome of each dump, in the order of the plan; complete when `run` returns or raises.
        aborted: whether a failure stopped the run (``on_error: abort``).
    """

    def __init__(
        self,
        plan: Plan,
        place: Place,
        *,
        emit: Callable[[Event], None],
        stop: Stop,
        clock: Callable[[], float],
        watch: Callable[[], object],
        store: Store | None = None,
        earlier: Mapping[str, FileReport] | None = None,
        mappers: Mappers | None = None,
        quiet: bool = False,
    ) -> None:
        lanes = default_lanes(place.filesystem)
        wanted = lanes if plan.concurrency == "auto" else plan.concurrency
        programs = max((len(planned.filters) for planned in plan.dumps), default=0)
        self._lanes, allowed = within_open_files(max(lanes, wanted), programs)
        self.concurrency: Final = min(wanted, self._lanes)
        self.aborted = False
        self._plan = plan
        self._place: Final = place
        self._store: Final = store
        self._quiet: Final = quiet
        self._stop = stop
        self._watch = watch
        self._clock = clock
        self._facts = Facts(clock, mappers or Mappers(), plan.manifest_sha256)
        self._telling = Telling(emit, clock)
        self._keeper = Keeper(plan, store, stop) if store is not None else None
        # Sealed dumps wait with open files. Of those allowed, half may be in the batches of the lanes, and a quarter
        # each in the committer's queue and in the group that it is publishing.
        self._committer = Committer(plan, place, stop, self._facts, group=max(1, min(_GROUP, allowed // 4)))
        batch = max(1, min(_BATCH_FILES, allowed // (2 * self._lanes)))
        self._earlier = earlier or {}
        self._crew = Crew(stop, lane=self._lane, commit=self._commit, lanes_ended=self._lanes_ended)
        self._again: deque[Job] = deque()  # Jobs to retry: threads append, and it is emptied when none is left.
        self._numbers = count()  # The numbers of the lanes: a new one for each lane, also in rounds of retries.
        self._resources = resources(stop, store)
        self._jobs = [self._job(index, planned) for index, planned in enumerate(plan.dumps)]
        self._queue = Queue(
            self._jobs, self._transfer, stop, concurrency=self.concurrency, lanes=self._lanes, batch=batch
        )

    def attach(self, journal: Journal) -> None:
        """Record what is done in a journal."""
        self._committer.journal = journal
        if self._keeper is not None:
            self._keeper.journal = journal

    def _job(self, index: int, planned: PlannedDump) -> Job:
        return Job(index, planned, earlier=self._earlier.get(planned.name), told_elsewhere=self._quiet)

    def _transfer(self, planned: PlannedDump) -> Transfer:
        return transfer_of(planned, self._place, self._resources)

    @property
    def reports(self) -> tuple[FileReport, ...]:
        return self._telling.reports

    def run(self) -> None:
        """Dump all files in threads; return when each is published, kept, failed or abandoned, and no thread is left.

        After a stop is requested, threads end after their current read or write (about 10 ms), unfinished dumps are
        removed, and published dumps stay.

        Raises:
            DumpError: no thread can be started.
        """
        try:
            self._round()
            while self._again and not self._stop.requested:
                self._rest()
                self._round()
        finally:
            # All threads have ended: a dump that isn't published by now never will be.
            rest = [job for job in self._jobs if not self._telling.is_over(job)]
            abort([job for job in rest if job.began is not None and not job.published])
            for job in rest:
                if job.published:
                    self._finish(job)
                else:
                    self._fail(job, job.error or self._given_up(job))

    def _round(self) -> None:
        """Serve all waiting jobs."""
        # No more threads than could ever find work at the same time.
        wanted = min(self._lanes, self._useful_lanes())
        if wanted:  # Without lanes, no one would close it.
            self._committer.open()
        self._crew.work(wanted, self._tick)

    def _tick(self) -> None:
        self._watch()
        # A job leaves `active` before its last event is emitted, so no progress can follow that event.
        with self._queue.active() as jobs:
            for job in jobs:
                self._telling.progress(job)

    def _rest(self) -> None:
        """Wait for the delay of the retries, then queue them again."""
        jobs = list(self._again)
        self._again.clear()
        seconds = max(self._plan.retries.wait(job.attempts) for job in jobs)
        until = time.monotonic() + seconds
        while not self._stop.requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, TICK))
            self._watch()
        self._queue.add(jobs)  # Each keeps its error until it is started again, which may never happen.

    def _useful_lanes(self) -> int:
        return sum(1 + job.planned.length // WORTH_JOINING for job in self._jobs)

    def _given_up(self, job: Job) -> InterruptedDumpError:
        return InterruptedDumpError(
            f"{job.planned.source.path} was not dumped: the run ended before it was reached",
            path=job.planned.source.path,
        )

    # --- lanes ---------------------------------------------------------------------------------------------------

    def _lanes_ended(self) -> None:
        self._committer.close()  # Only lanes hand over jobs, so it gets no more.

    def _lane(self) -> None:
        lane = Lane(next(self._numbers))
        try:
            while jobs := self._queue.next():
                self._serve(jobs, lane)
        finally:
            lane.close()

    def _serve(self, jobs: list[Job], lane: Lane) -> None:
        if len(jobs) == 1 and jobs[0].planned.length >= SHARED:
            if not self._share_work(jobs[0], lane):
                return
        else:
            self._whole(jobs, lane)
        # The order matters. A failure that stops the run does so before another lane begins a file that isn't wanted.
        # Failed dumps are removed before their place in flight is free, because the next file may need the disk space.
        # Jobs are released before they are ended, so that no progress follows their last event. And they are released
        # before this lane waits for the committer, or a full queue would hold up files that other lanes could move.
        failed = [job for job in jobs if not job.sealed and job.kept is None]
        for job in failed:
            self._end_run(job, job.error)
        abort(failed)
        self._queue.release(jobs)
        for job in jobs:
            if job.kept is not None:
                self._telling.kept(job, job.kept)
            elif job.sealed:
                self._committer.hand_over(job)
            else:
                self._fail(job, job.error or self._given_up(job))

    def _share_work(self, job: Job, lane: Lane) -> bool:
        """Move a large file together with other lanes; return True in the last lane to leave, which has sealed it."""
        if not job.open_to_join:  # Once set, it stays set until the last lane leaves, so this is the first lane.
            self._begin(job, lane)
            self._queue.share(job)
            if job.transfer.moved:
                self._telling.announce(job)
        if job.kept is None:
            job.work(lane)
        if not self._queue.leave(job):
            return False
        if job.kept is None:
            job.seal(lane)
        return True

    # --- ends ----------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        while group := self._committer.next_group():
            for job in group:
                if job.published:
                    self._finish(job)
                else:
                    self._fail(job, job.error or self._given_up(job))

    def _finish(self, job: Job) -> None:
        self._telling.finished(job, job.report(self._facts))

    def _may_pass(self, job: Job, error: AsyncdumpError) -> bool:
        retries = self._plan.retries
        sink = job.under_way.sink if job.under_way is not None else None
        if self._place.streams and sink is not None and sink.stored:
            return False  # Bytes that the reader has got can't be taken back.
        passing = isinstance(error, DumpError) and error.errno in retries.numbers and job.planned.error is None
        return passing and job.attempts < retries.times and not self._stop.requested

    def _fail(self, job: Job, error: AsyncdumpError) -> None:
        if self._may_pass(job, error):
            if isinstance(error, NotDurableError):
                job.stands = job.failure(error, self._place.path, self._facts)
            job.attempts += 1
            self._telling.retried(job, error, self._plan.retries.wait(job.attempts))
            self._again.append(job)
            return
        self._telling.failed(job, error, job.failure(error, self._place.path, self._facts))
        self._end_run(job, error)

    def _end_run(self, job: Job, error: AsyncdumpError | None) -> None:
        """Stop the run if the failure of a file is to stop it (``on_error: abort``)."""
        passing = error is None or isinstance(error, InterruptedDumpError) or self._may_pass(job, error)
        if self._plan.on_error == "abort" and not passing:
            # Set before the stop: the committer reads both, and must not drop sealed jobs when it sees the stop alone.
            self.aborted = self._committer.finishes = True
            self._stop.requested = True

    # --- in worker threads ------------------------------------------------------------------------------------------

    def _whole(self, jobs: list[Job], lane: Lane) -> None:
        for job in jobs:
            self._begin(job, lane)
            if job.kept is None:
                job.work(lane)
                job.seal(lane)

    def _begin(self, job: Job, lane: Lane) -> None:
        if job.planned.error is not None:  # A match of a glob that could not be opened.
            job.note(job.planned.error)
            return
        job.lane = lane.number
        job.began = self._clock() if job.began is None else job.began  # A retry keeps the time of the first attempt.
        if self._keeper is not None:
            self._keeper.settle(job, lane)
        if job.kept is not None:
            return
        # This moves the first span, too. Only then may other lanes join: until then, the engine may still be refused.
        job.guard(lambda: job.transfer.begin(self._place, lane))
        if job.earlier is not None and job.transfer.sink is not None:
            job.transfer.sink.replaces = job.earlier.source == job.planned.source.path
