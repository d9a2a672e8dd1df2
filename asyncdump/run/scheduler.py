"""The fan-out: which thread moves what, how many at once, and how a run ends. Nothing here knows of an event loop.

A *lane* is a thread with a buffer and a pipe of its own, which it closes itself. It takes the largest file that waits;
when none waits, it joins the file with most bytes left, so that one huge file is not the run's long tail. What is moved
goes through a short queue to the *committer*, which makes durable in one go all that has gathered while it was busy.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any, Final

import msgspec

from asyncdump.codecs.compressors import Compressors
from asyncdump.errors import AsyncdumpError, DumpError, InterruptedDumpError, NotDurableError, as_failure
from asyncdump.kernel.lane import Buffers, Lane
from asyncdump.log import logger
from asyncdump.plan.earlier import fits
from asyncdump.plan.plan import Plan, PlannedDump
from asyncdump.records.journal import Journal
from asyncdump.records.report import FileReport
from asyncdump.run.events import Event, FileFailed, FileFinished, FileKept, FileRetried, FileStarted, Progress
from asyncdump.run.job import Job, abort, failure_of, guarded, has_room, note, report_of, seal, share, work
from asyncdump.run.limits import default_lanes, within_open_files
from asyncdump.run.stranger import recognise
from asyncdump.run.threads import start
from asyncdump.sinks.folder import Draft, Folder, sync_file
from asyncdump.sinks.pipe import Outlet
from asyncdump.sinks.place import Place
from asyncdump.transfer.packed import Packed
from asyncdump.transfer.piped import Piped
from asyncdump.transfer.proof import Proof, prove
from asyncdump.transfer.transfer import Transfer
from asyncdump.vocabulary.stop import Stop

SHARED: Final = 64 << 20
"""A file of at least this many bytes may be worked on by several lanes at once."""

_WORTH_JOINING: Final = 16 << 20
_SMALL: Final = 16 << 20
_BATCH_BYTES: Final = 64 << 20
_BATCH_FILES: Final = 16
_GROUP: Final = 64
_TICK: Final = 0.1


class Scheduler:
    """Carries out one plan; `run` is called once. Making it raises `DumpError` where too few files may be open.

    ``emit`` is given each event, one after another, by whichever thread tells of it. ``watch`` is called ten times a
    second. ``earlier`` is what a run before this one has done, by name.

    Attributes:
        journal: takes down what is done, unless it is None.
        reports: the outcome of each dump, in the order of the plan, complete when `run` returns or raises.
        aborted: True when a failure ended the run, as ``on_error: abort`` asks.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Place,
        *,
        emit: Callable[[Event], None],
        stop: Stop,
        clock: Callable[[], float],
        watch: Callable[[], object],
        earlier: Mapping[str, FileReport] | None = None,
    ) -> None:
        lanes = default_lanes(folder.filesystem)
        wanted = lanes if plan.concurrency == "auto" else plan.concurrency
        programs = max((len(planned.filters) for planned in plan.dumps), default=0)
        self._lanes, allowed = within_open_files(max(lanes, wanted), programs)
        self.concurrency: Final = min(wanted, self._lanes)
        self.aborted = False
        self._plan = plan
        self._folder = folder
        self._emit = emit
        self._stop = stop
        self._clock = clock
        self._watch = watch
        # What waits: in the lanes' batches a half, in the queue and in the committer's hands a quarter each.
        self._group: Final = max(1, min(_GROUP, allowed // 4))
        self._batch: Final = max(1, min(_BATCH_FILES, allowed // (2 * self._lanes)))
        self._earlier = earlier or {}
        self.journal: Journal | None = None
        # All that follows is changed by whoever holds the turn; no thread works while it does.
        self._turn = threading.RLock()
        self._work = threading.Condition(self._turn)  # Lanes that have none wait for it,
        self._room = threading.Condition(self._turn)  # those that have a dump to hand over for this,
        self._arrived = threading.Condition(self._turn)  # the committer for a dump,
        self._over = threading.Condition(self._turn)  # and the run for all of them.
        self._moving = 0
        self._committing = False
        self._sealed: deque[Job] = deque()
        self._broken: BaseException | None = None
        self._again: list[Job] = []
        self._compressors = Compressors(stop.check)
        self._buffers = Buffers()
        self._jobs = [self._job(index, planned) for index, planned in enumerate(plan.dumps)]
        self._waiting = deque(sorted(self._jobs, key=lambda job: -job.planned.length))
        self._in_flight = 0
        self._active: dict[Job, None] = {}
        self._outcomes: dict[int, FileReport] = {}

    def _job(self, index: int, planned: PlannedDump) -> Job:
        earlier = self._earlier.get(planned.name)
        told = not isinstance(self._folder, Folder | Outlet)
        return Job(index, planned, earlier=earlier, told_elsewhere=told)

    def _transfer(self, planned: PlannedDump) -> Transfer:
        options: dict[str, Any] = {
            "offset": planned.offset,
            "length": planned.length,
            "method": planned.method,
            "checksum": planned.checksum,
            "sparse": planned.sparse,
            "stop": self._stop,
            "on_read_error": planned.on_read_error,
            "most": planned.most,
        }
        if planned.expected is not None:
            return Proof(planned.source, planned.name, expected=planned.expected, **options)
        shared: dict[str, Any] = {"compressors": self._compressors, "buffers": self._buffers}
        if planned.filters or (isinstance(self._folder, Outlet) and not planned.compression):
            return Piped(
                planned.source,
                planned.name,
                filters=planned.filters,
                timeout=planned.timeout,
                compression=planned.compression,
                compress_last=planned.compress_last,
                **shared,
                **options,
            )
        if planned.compression:
            return Packed(planned.source, planned.name, compression=planned.compression, **shared, **options)
        return Transfer(planned.source, planned.name, **options)

    @property
    def reports(self) -> tuple[FileReport, ...]:
        return tuple(self._outcomes[index] for index in sorted(self._outcomes))

    def run(self) -> None:
        """Dump all files, in threads; returns when each is published, kept, failed or given up, and no thread is left.

        When `Stop` is requested, threads end after the step they are in (some 10 ms), what they were writing is
        removed, and what was published stays.

        Raises:
            DumpError: no thread can be started.
        """
        try:
            self._round()
            while self._again and not self._stop.requested:
                self._rest()
                self._round()
        finally:
            # Every thread has ended by now: what isn't published won't be.
            rest = [job for job in self._jobs if job.index not in self._outcomes]
            abort([job for job in rest if job.started and not job.published])
            for job in rest:
                if job.published:
                    self._finish(job)
                else:
                    self._fail(job, job.error or self._given_up(job))

    def _round(self) -> None:
        """Serve all that waits."""
        wanted = min(self._lanes, self._useful_lanes())
        self._moving, self._committing = wanted, True
        threads = []
        try:
            threads.append(self._started(self._commit, self._committed))
            for number in range(wanted):
                try:
                    threads.append(self._started(self._lane, self._lane_ended))
                except DumpError as error:
                    if not number:
                        raise
                    with self._turn:
                        self._moving -= wanted - number
                    logger().warning("fewer_threads", started=number, wanted=wanted, error=str(error))
                    break
            self._watch_over()
        except BaseException:
            self._stop.requested = True
            with self._turn:
                self._moving = min(self._moving, len(threads) - 1)  # Those that never began don't end.
                self._arrived.notify_all()
            raise
        finally:
            for thread in threads:
                thread.join()
        if self._broken is not None:
            raise self._broken

    def _started(self, task: Callable[[], None], ended: Callable[[], None]) -> Thread:
        def carry_out() -> None:
            try:
                task()
            except BaseException as error:  # noqa: BLE001 (it ends the run, and is raised by that)
                self._broken = self._broken or error
                self._stop.requested = True
            finally:
                with self._turn:
                    ended()
                    for each in (self._work, self._room, self._arrived, self._over):
                        each.notify_all()

        return start(carry_out)

    def _lane_ended(self) -> None:
        self._moving -= 1

    def _committed(self) -> None:
        self._committing = False

    def _watch_over(self) -> None:
        """Tell of progress as the clock goes, until all is moved and published."""
        tick = time.monotonic() + _TICK
        with self._turn:
            while self._moving or self._committing:
                self._over.wait(max(0.0, tick - time.monotonic()))
                if time.monotonic() >= tick:
                    tick += _TICK
                    self._watch()
                    for job in self._active:
                        self._tell(job)

    def _rest(self) -> None:
        """Wait, then have what failed, and may do better, wait to be served once more."""
        jobs, self._again = self._again, []
        seconds = max(self._plan.retries.wait(job.attempts) for job in jobs)
        until = time.monotonic() + seconds
        while not self._stop.requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _TICK))
            self._watch()
        self._waiting.extend(jobs)  # Each keeps why it failed until it is begun anew: it may never be.

    def _useful_lanes(self) -> int:
        return sum(1 + job.planned.length // _WORTH_JOINING for job in self._jobs)

    def _given_up(self, job: Job) -> InterruptedDumpError:
        return InterruptedDumpError(
            f"{job.planned.source.path} was not dumped: the run was ended before", path=job.planned.source.path
        )

    # --- lanes ---------------------------------------------------------------------------------------------------

    def _lane(self) -> None:
        lane = Lane()
        try:
            while jobs := self._next():
                self._serve(jobs, lane)
        finally:
            lane.close()

    def _next(self) -> list[Job]:
        """Return what this lane does next: files to begin, or one under way to join; nothing when all is given out."""
        with self._turn:
            while not self._stop.requested:
                if self._waiting and self._in_flight < self.concurrency:
                    return self._take()
                shared = [job for job in self._active if job.planned.length >= SHARED and job.transfer.remaining]
                joinable = [
                    job
                    for job in shared
                    # One that has failed has nothing for a lane to do: it would come back at once, and for ever.
                    if job.open_to_join and job.error is None and has_room(job) and share(job) >= _WORTH_JOINING
                ]
                if joinable:
                    job = max(joinable, key=share)
                    job.lanes += 1
                    return [job]
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
            job.error, job.sealed = None, False
            job.under_way = self._transfer(job.planned)
            self._active[job] = None
        return jobs

    def _serve(self, jobs: list[Job], lane: Lane) -> None:
        if len(jobs) == 1 and jobs[0].planned.length >= SHARED:
            if not self._share_work(jobs[0], lane):
                return
        else:
            self._whole(jobs, lane)
        failed = [job for job in jobs if not job.sealed and job.kept is None]
        for job in failed:
            self._end_run(job, job.error)  # Before another lane begins what would not be wanted.
        abort(failed)  # First: the next may need the room.
        with self._turn:
            for job in jobs:
                job.lanes = 0
                del self._active[job]
            self._in_flight -= 1
            self._work.notify_all()
        for job in jobs:
            if job.kept is not None:
                self._keep(job, job.kept)
            elif job.sealed:
                self._hand_over(job)
            else:
                self._fail(job, job.error or self._given_up(job))

    def _share_work(self, job: Job, lane: Lane) -> bool:
        """Move a large file together with other lanes; return True to the last one out, which has sealed it."""
        if not job.open_to_join:  # It stays open as long as one works on it: so this is the first.
            self._begin(job, lane)
            with self._turn:
                job.open_to_join = job.kept is None
                self._work.notify_all()
                if job.transfer.moved:
                    self._announce(job)
        if job.kept is None:
            work(job, lane)
        with self._turn:
            job.lanes -= 1
            if job.lanes:
                return False
            job.open_to_join = False
        if job.kept is None:
            seal(job, lane)
        return True

    def _hand_over(self, job: Job) -> None:
        """Give a dump that is moved to the committer, when it has room for one more."""
        with self._turn:
            while len(self._sealed) >= self._group and not self._stop.requested:
                self._room.wait(_TICK)
            self._sealed.append(job)
            self._arrived.notify()

    # --- the committer -------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        while group := self._gathered():
            self._publish(group)
            for job in group:
                if job.published:
                    self._finish(job)
                else:
                    self._fail(job, job.error or self._given_up(job))

    def _gathered(self) -> list[Job]:
        """Return what waits to be made durable; nothing when no more will come, or the run was cancelled."""
        with self._turn:
            while not self._sealed and self._moving:
                self._arrived.wait()
            if self._stop.requested and not self.aborted:
                return []
            group = [self._sealed.popleft() for _ in range(min(self._group, len(self._sealed)))]
            self._room.notify_all()
        return group

    # --- telling -------------------------------------------------------------------------------------------------

    def _tell(self, job: Job) -> None:
        proof = job.proof
        transfer = proof or job.transfer
        state = (transfer.moved, "verify" if proof else transfer.stage)
        if state != job.told and transfer.moved:
            if proof is None:
                self._announce(job)
            job.told = state
            self._emit(
                Progress(
                    at=self._clock(),
                    name=transfer.name,
                    done=transfer.moved,
                    total=transfer.length,
                    stage=state[1],
                )
            )

    def _announce(self, job: Job) -> None:
        if job.announced or job.transfer.engine is None:
            return
        job.announced = True
        source = job.planned.source
        self._emit(
            FileStarted(
                at=self._clock(),
                name=job.planned.name,
                source=source.path,
                kind=source.kind,
                bytes=job.transfer.length,
                method=job.transfer.engine.method,
            )
        )

    def _may_pass(self, job: Job, error: AsyncdumpError) -> bool:
        retries = self._plan.retries
        sink = job.under_way.sink if job.under_way is not None else None
        if isinstance(self._folder, Outlet) and sink is not None and sink.stored:
            return False  # What a reader has been given can't be taken back.
        passing = isinstance(error, DumpError) and error.errno in retries.numbers and job.planned.error is None
        return passing and job.attempts < retries.times and not self._stop.requested

    def _finish(self, job: Job) -> None:
        report = report_of(job, self._plan.manifest_sha256)
        with self._turn:
            self._outcomes[job.index] = report
            self._announce(job)
            assert report.method is not None
            self._emit(
                FileFinished(
                    at=self._clock(),
                    name=report.name,
                    source=report.source,
                    bytes=report.bytes,
                    stored=report.stored,
                    seconds=report.seconds,
                    method=report.method,
                    digest=report.digest,
                    content_digest=report.content_digest,
                    bad_bytes=report.bad_bytes,
                )
            )
            job.under_way = None

    def _keep(self, job: Job, report: FileReport) -> None:
        with self._turn:
            self._outcomes[job.index] = report
            job.under_way = None
            self._emit(
                FileKept(
                    at=self._clock(), name=report.name, source=report.source, bytes=report.bytes, digest=report.digest
                )
            )

    def _fail(self, job: Job, error: AsyncdumpError) -> None:
        planned = job.planned
        with self._turn:
            if self._may_pass(job, error):
                job.attempts += 1
                self._again.append(job)
                delay = self._plan.retries.wait(job.attempts)
                self._emit(
                    FileRetried(at=self._clock(), name=planned.name, error=error, attempt=job.attempts, delay=delay)
                )
                return
            self._outcomes[job.index] = failure_of(job, error, self._folder.path, self._plan.manifest_sha256)
            if job.under_way is not None and job.under_way.moved:
                self._announce(job)
            self._emit(
                FileFailed(
                    at=self._clock(), name=planned.name, source=planned.source.path, error=error, stage=job.stage
                )
            )
            job.under_way = None
        self._end_run(job, error)

    def _end_run(self, job: Job, error: AsyncdumpError | None) -> None:
        """End the run if it is to end with the failure of a file."""
        passing = error is None or isinstance(error, InterruptedDumpError) or self._may_pass(job, error)
        if self._plan.on_error == "abort" and not passing:
            self.aborted = self._stop.requested = True

    # --- in worker threads ------------------------------------------------------------------------------------------

    def _whole(self, jobs: list[Job], lane: Lane) -> None:
        for job in jobs:
            self._begin(job, lane)
            if job.kept is None:
                work(job, lane)
                seal(job, lane)

    def _begin(self, job: Job, lane: Lane) -> None:
        if job.planned.error is not None:  # There is nothing to open.
            note(job, job.planned.error)
            return
        job.started = job.started or time.perf_counter()
        if job.earlier is not None and self._is_whole(job, job.earlier, lane):
            durable = job.earlier.durable or job.planned.durable
            job.kept = msgspec.structs.replace(job.earlier, kept=True, durable=durable)
            self._record_kept(job.kept)
            return
        if job.earlier is None:
            guarded(job, lambda: self._recognise(job, lane))
            if job.kept is not None or job.error is not None:
                return
        guarded(job, lambda: job.transfer.begin(self._folder, lane))
        if job.earlier is not None and isinstance(job.transfer.sink, Draft):
            job.transfer.sink.replaces = job.earlier.source == job.planned.source.path

    def _record_kept(self, kept: FileReport) -> None:
        if self.journal is not None:
            with suppress(DumpError):  # What is lost is that this run has proved it.
                self.journal.append([kept])

    def _is_in_the_way(self, job: Job) -> bool:
        """Tell whether something stands under a name that no record tells of, and none of this run has it."""
        folder, name = self._folder, job.planned.name
        if not self._plan.resume or self._plan.overwrite or not isinstance(folder, Folder):
            return False
        return folder.exists(name) and folder.holder(name) is None

    def _recognise(self, job: Job, lane: Lane) -> None:
        if not self._is_in_the_way(job):
            return
        try:
            found = recognise(job.planned, self._folder.path, lane, self._stop, job.watch)
        finally:
            job.proof = None
        assert isinstance(self._folder, Folder)
        self._folder.hold(found.name)
        job.kept = msgspec.structs.replace(found, manifest_sha256=self._plan.manifest_sha256)
        self._record_kept(job.kept)

    def _is_whole(self, job: Job, earlier: FileReport, lane: Lane) -> bool:
        """Tell whether an earlier run has done this very thing, and what it wrote is whole still."""
        if job.attempts or not earlier.ok or not fits(job.planned, earlier, self._plan):
            return False
        try:
            if job.planned.durable and not earlier.durable:
                sync_file(earlier.path)
            prove(earlier, lane, self._stop, job.watch)
            if isinstance(self._folder, Folder) and not self._folder.hold(earlier.name):
                return False
        except InterruptedDumpError as error:
            note(job, error)
        except Exception as error:  # noqa: BLE001 (whatever it is: what can't be proved is dumped again)
            logger().warning("dumped_again", dump=earlier.name, error=str(error) or type(error).__name__)
        else:
            return True
        finally:
            job.proof = None
        return False

    def _publish(self, group: list[Job]) -> None:
        for durable in (True, False):
            jobs = [job for job in group if job.planned.durable is durable]
            for job in jobs:
                job.transfer.stage = "sync"
            if not jobs:
                continue
            try:
                if self.journal is not None:
                    self.journal.append(report_of(job, self._plan.manifest_sha256) for job in jobs)
                sinks: list[Any] = [job.transfer.sink for job in jobs]
                errors: Sequence[AsyncdumpError | None] = self._folder.publish(
                    sinks, durable=durable, overwrite=self._plan.overwrite, journal=self.journal
                )
            except Exception as error:  # noqa: BLE001 (whatever it is, it's these files')
                abort(jobs)
                errors = [as_failure(error, job.planned.source.path) for job in jobs]
            for job, failure in zip(jobs, errors, strict=True):
                if failure is None:
                    job.published = True
                    continue
                note(job, failure)
                if self.journal is not None and isinstance(failure, NotDurableError):
                    with suppress(DumpError):  # It says then that the dump is done: a run that goes on proves that.
                        self.journal.append([failure_of(job, failure, self._folder.path, self._plan.manifest_sha256)])
