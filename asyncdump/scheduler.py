"""The fan-out: which thread moves what, how many at once, and how a run ends. The only module with task groups.

A *lane* is a task with a worker thread, a buffer and a pipe of its own. It takes the largest file that waits; when none
waits, it joins the file with most bytes left, so that one huge file is not the run's long tail. What is moved goes
through a short queue to the *committer*, which makes durable in one go all that has gathered while it was busy.
"""

from __future__ import annotations

import errno
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeVarTuple

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from anyio.to_thread import run_sync

from asyncdump.errors import AsyncdumpError, DumpError, InterruptedDumpError
from asyncdump.events import Event, FileFailed, FileFinished, FileKept, FileRetried, FileStarted, Progress
from asyncdump.job import Job, abort, failure_of, fits, guarded, has_room, note, report_of, seal, share, work
from asyncdump.journal import Journal
from asyncdump.lane import Buffers, Lane
from asyncdump.log import logger
from asyncdump.outlet import Outlet
from asyncdump.packed import Packed
from asyncdump.piped import Piped
from asyncdump.plan import Plan, PlannedDump
from asyncdump.proof import Proof, prove
from asyncdump.report import FileReport
from asyncdump.sink import Draft, Folder, Place, sync_file
from asyncdump.source import MEMORY
from asyncdump.stages.zstd import Compressors
from asyncdump.transfer import Stop, Transfer

Args = TypeVarTuple("Args")

SHARED: Final = 64 << 20
"""A file of at least this many bytes may be worked on by several lanes at once."""

_WORTH_JOINING: Final = 16 << 20
_SMALL: Final = 16 << 20
_BATCH_BYTES: Final = 64 << 20
_BATCH_FILES: Final = 16
_GROUP: Final = 64
_TICK: Final = 0.1
_SPARE_DESCRIPTORS: Final = 16
_DESCRIPTORS_PER_LANE: Final = 6  # The source, the sink twice and once more, the two ends of the pipe.


def default_lanes(filesystem: str) -> int:
    """Return how many worker threads serve a destination best, by its filesystem and the cores.

    A disk wants several requests in flight; threads beyond twice the cores only wait for one another. Memory is as fast
    as the cores are. (The kernel's ``rotational`` flag is no guide: virtual disks claim to rotate.)
    """
    cores = len(os.sched_getaffinity(0))
    return cores if filesystem in MEMORY else max(4, min(2 * cores, 8))


def _within_open_files(wanted: int) -> tuple[int, int]:
    """Return how many lanes the limit of open files allows, and how many finished dumps may wait open for their sync.

    Raises:
        DumpError: not even one lane.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = _open_files(soft) + _SPARE_DESCRIPTORS
    # For each lane one dump that waits, at least.
    lanes = min(wanted, (soft - taken) // (_DESCRIPTORS_PER_LANE + 1))
    if lanes < 1:
        raise DumpError(
            f"a run needs {taken + _DESCRIPTORS_PER_LANE + 1} open files, the limit is {soft}",
            operation="getrlimit",
            errno=errno.EMFILE,
            hint="raise it (ulimit -n)",
        )
    return lanes, soft - taken - _DESCRIPTORS_PER_LANE * lanes


def _open_files(limit: int) -> int:
    """Return how many descriptors are open (proc_pid_fd(5)); where nothing tells, as many as are found below 4096."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    count = 0
    for fd in range(min(limit, 4096)):
        with suppress(OSError):
            os.fstat(fd)
            count += 1
    return count


class Scheduler:
    """Carries out one plan; `run` is called once. Making it raises `DumpError` where too few files may be open.

    ``earlier`` is what a run before this one has done, by name.

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
        earlier: Mapping[str, FileReport] | None = None,
    ) -> None:
        lanes = default_lanes(folder.filesystem)
        wanted = lanes if plan.concurrency == "auto" else plan.concurrency
        self._lanes, allowed = _within_open_files(max(lanes, wanted))
        self.concurrency: Final = min(wanted, self._lanes)
        self.aborted = False
        self._plan = plan
        self._folder = folder
        self._emit = emit
        self._stop = stop
        self._clock = clock
        self._limiter = anyio.CapacityLimiter(self._lanes + 1)  # The committer has a thread too.
        # What waits: in the lanes' batches a half, in the queue and in the committer's hands a quarter each.
        self._group: Final = max(1, min(_GROUP, allowed // 4))
        self._batch: Final = max(1, min(_BATCH_FILES, allowed // (2 * self._lanes)))
        self._earlier = earlier or {}
        self.journal: Journal | None = None
        self._again: list[Job] = []
        self._compressors = Compressors()
        self._buffers = Buffers()
        self._jobs = [self._job(index, planned) for index, planned in enumerate(plan.dumps)]
        self._waiting = deque(sorted(self._jobs, key=lambda job: -job.planned.length))
        self._in_flight = 0
        self._active: dict[Job, None] = {}
        self._changed = anyio.Event()
        self._outcomes: dict[int, FileReport] = {}

    def _job(self, index: int, planned: PlannedDump) -> Job:
        earlier = self._earlier.get(planned.name)
        told = not isinstance(self._folder, Folder | Outlet)
        return Job(index, planned, self._transfer(planned), earlier=earlier, told_elsewhere=told)

    def _transfer(self, planned: PlannedDump) -> Transfer:
        options: dict[str, Any] = {
            "offset": planned.offset,
            "length": planned.length,
            "method": planned.method,
            "checksum": planned.checksum,
            "sparse": planned.sparse,
            "stop": self._stop,
            "on_read_error": planned.on_read_error,
        }
        if planned.expected is not None:
            return Proof(planned.source, planned.name, expected=planned.expected, **options)
        shared: dict[str, Any] = {"compressors": self._compressors, "buffers": self._buffers}
        if planned.filters or (isinstance(self._folder, Outlet) and not planned.zstd):
            return Piped(
                planned.source,
                planned.name,
                filters=planned.filters,
                timeout=planned.timeout,
                zstd=planned.zstd,
                zstd_last=planned.zstd_last,
                **shared,
                **options,
            )
        if planned.zstd:
            return Packed(planned.source, planned.name, zstd=planned.zstd, **shared, **options)
        return Transfer(planned.source, planned.name, **options)

    @property
    def reports(self) -> tuple[FileReport, ...]:
        return tuple(self._outcomes[index] for index in sorted(self._outcomes))

    async def run(self) -> None:
        """Dump all files; returns when each is published, kept, failed or given up.

        When it is cancelled, or `Stop` is requested, threads end after the step they are in (some 10 ms), what they
        were writing is removed, and what was published stays.
        """
        try:
            async with anyio.create_task_group() as watch:
                watch.start_soon(self._tick)
                await self._round()
                while self._again and not self._stop.requested:
                    await self._rest()
                    await self._round()
                watch.cancel_scope.cancel()
        finally:
            # Every thread has ended by now: what isn't published won't be.
            rest = [job for job in self._jobs if job.index not in self._outcomes]
            lost = [job for job in rest if not job.published]
            if any(job.started for job in lost):
                with anyio.CancelScope(shield=True):
                    await self._hop(abort, lost)
            for job in rest:
                if job.published:
                    self._finish(job)
                else:
                    self._fail(job, job.error or self._given_up(job))

    async def _round(self) -> None:
        """Serve all that waits."""
        send, receive = anyio.create_memory_object_stream[Job](self._group)
        with receive:
            async with anyio.create_task_group() as work:
                work.start_soon(self._commit, receive)
                async with send, anyio.create_task_group() as lanes:
                    for _ in range(min(self._lanes, self._useful_lanes())):
                        lanes.start_soon(self._lane, send)

    async def _rest(self) -> None:
        """Wait, then have what failed, and may do better, wait to be served once more."""
        jobs, self._again = self._again, []
        seconds = max(self._plan.retries.wait(job.attempts) for job in jobs)
        until = time.monotonic() + seconds
        while not self._stop.requested and (left := until - time.monotonic()) > 0:  # noqa: ASYNC110 (set by threads)
            await anyio.sleep(min(left, _TICK))
        for job in jobs:
            job.transfer = self._transfer(job.planned)
            job.error, job.sealed = None, False
            self._waiting.append(job)

    def _useful_lanes(self) -> int:
        return sum(1 + job.planned.length // _WORTH_JOINING for job in self._jobs)

    def _given_up(self, job: Job) -> InterruptedDumpError:
        return InterruptedDumpError(
            f"{job.planned.source.path} was not dumped: the run was ended before", path=job.planned.source.path
        )

    # --- lanes ---------------------------------------------------------------------------------------------------

    async def _lane(self, send: MemoryObjectSendStream[Job]) -> None:
        lane = Lane()
        try:
            while jobs := await self._next():
                await self._serve(jobs, lane, send)
        finally:
            lane.close()

    async def _next(self) -> list[Job]:
        """Return what this lane does next: files to begin, or one under way to join; nothing when all is given out."""
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
                return [max(joinable, key=share)]
            if not self._waiting and all(job.open_to_join for job in shared):
                break
            await self._changed.wait()
        return []

    def _take(self) -> list[Job]:
        """Take the largest file that waits; many small ones share one hop into a thread, as far as that's fair."""
        jobs = [self._waiting.popleft()]
        room = _BATCH_BYTES - jobs[0].planned.length
        most = min(self._batch, len(self._waiting) // (2 * self._lanes))
        if jobs[0].planned.length <= _SMALL:
            while len(jobs) < most and room > 0:
                jobs.append(self._waiting.popleft())
                room -= jobs[-1].planned.length
        self._in_flight += 1
        return jobs

    async def _serve(self, jobs: list[Job], lane: Lane, send: MemoryObjectSendStream[Job]) -> None:
        joining = jobs[0].lanes > 0
        for job in jobs:
            job.lanes += 1
            self._active[job] = None
        if len(jobs) == 1 and jobs[0].planned.length >= SHARED:
            await self._share_work(jobs[0], lane, joining=joining)
        else:
            await self._hop(self._whole, jobs, lane)
        for job in jobs:
            job.lanes -= 1
        if jobs[0].lanes > 0:
            return
        failed = [job for job in jobs if not job.sealed and job.kept is None]
        for job in failed:
            self._end_run(job, job.error)  # Before another lane begins what would not be wanted.
        if failed:
            # Not in the event loop: to remove a large file takes a while. And first: the next may need the room.
            await self._hop(abort, failed)
        for job in jobs:
            del self._active[job]
        self._in_flight -= 1
        self._wake()
        for job in jobs:
            if job.kept is not None:
                self._keep(job, job.kept)
            elif job.sealed:
                await send.send(job)
            else:
                self._fail(job, job.error or self._given_up(job))

    async def _share_work(self, job: Job, lane: Lane, *, joining: bool) -> None:
        if not joining:
            await self._hop(self._begin, job, lane)
            if job.kept is not None:
                return
            job.open_to_join = True
            self._wake()
        if job.error is None:
            await self._hop(work, job, lane)
        if job.lanes == 1:  # The last one out.
            job.open_to_join = False
            if job.error is None:
                await self._hop(seal, job, lane)

    async def _hop(self, function: Callable[[*Args], None], *args: *Args) -> None:
        await run_sync(function, *args, limiter=self._limiter)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # --- the committer -------------------------------------------------------------------------------------------

    async def _commit(self, receive: MemoryObjectReceiveStream[Job]) -> None:
        async for first in receive:
            group = [first]
            while len(group) < self._group:
                try:
                    group.append(receive.receive_nowait())
                except (anyio.WouldBlock, anyio.EndOfStream):
                    break
            await self._hop(self._publish, group)
            for job in group:
                if job.published:
                    self._finish(job)
                else:
                    self._fail(job, job.error or self._given_up(job))

    # --- telling -------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Tell of progress as the clock goes; on cancellation, the first to know: it tells the threads."""
        try:
            while True:
                await anyio.sleep(_TICK)
                for job in self._active:
                    self._tell(job)
        finally:
            self._stop.requested = True

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
                bytes=job.planned.length,
                method=job.transfer.engine.method,
            )
        )

    def _may_pass(self, job: Job, error: AsyncdumpError) -> bool:
        retries = self._plan.retries
        passing = isinstance(error, DumpError) and error.errno in retries.numbers
        return passing and job.attempts < retries.times and not self._stop.requested

    def _finish(self, job: Job) -> None:
        engine = job.transfer.engine
        assert engine is not None
        self._outcomes[job.index] = report = report_of(job, self._plan.manifest_sha256)
        self._announce(job)
        self._emit(
            FileFinished(
                at=self._clock(),
                name=report.name,
                source=report.source,
                bytes=report.bytes,
                stored=report.stored,
                seconds=report.seconds,
                method=engine.method,
                digest=report.digest,
                content_digest=report.content_digest,
                bad_bytes=report.bad_bytes,
            )
        )

    def _keep(self, job: Job, report: FileReport) -> None:
        self._outcomes[job.index] = report
        self._emit(
            FileKept(at=self._clock(), name=report.name, source=report.source, bytes=report.bytes, digest=report.digest)
        )

    def _fail(self, job: Job, error: AsyncdumpError) -> None:
        if self._may_pass(job, error):
            job.attempts += 1
            self._again.append(job)
            delay = self._plan.retries.wait(job.attempts)
            self._emit(
                FileRetried(at=self._clock(), name=job.planned.name, error=error, attempt=job.attempts, delay=delay)
            )
            return
        planned = job.planned
        self._outcomes[job.index] = failure_of(job, error, self._folder.path)
        if job.transfer.moved:
            self._announce(job)
        self._emit(
            FileFailed(at=self._clock(), name=planned.name, source=planned.source.path, error=error, stage=job.stage)
        )
        self._end_run(job, error)

    def _end_run(self, job: Job, error: AsyncdumpError | None) -> None:
        """End the run if it is to end with the failure of a file."""
        passing = error is None or isinstance(error, InterruptedDumpError) or self._may_pass(job, error)
        if self._plan.on_error == "abort" and not passing:
            self.aborted = self._stop.requested = True
            self._wake()

    # --- in worker threads ------------------------------------------------------------------------------------------

    def _whole(self, jobs: list[Job], lane: Lane) -> None:
        for job in jobs:
            self._begin(job, lane)
            if job.kept is None:
                work(job, lane)
                seal(job, lane)

    def _begin(self, job: Job, lane: Lane) -> None:
        job.started = job.started or time.perf_counter()
        if job.earlier is not None and self._is_whole(job, job.earlier, lane):
            durable = job.earlier.durable or job.planned.durable
            job.kept = msgspec.structs.replace(job.earlier, kept=True, durable=durable)
            if self.journal is not None:
                with suppress(DumpError):  # It was taken over already; what is lost is that this run has proved it.
                    self.journal.append([job.kept])
            return
        guarded(job, lambda: job.transfer.begin(self._folder, lane))
        if job.earlier is not None and isinstance(job.transfer.sink, Draft):
            job.transfer.sink.replaces = job.earlier.source == job.planned.source.path

    def _is_whole(self, job: Job, earlier: FileReport, lane: Lane) -> bool:
        """Tell whether an earlier run has done this very thing, and what it wrote is whole still."""
        if job.attempts or not earlier.ok or not fits(job.planned, earlier, self._plan):
            return False
        try:
            prove(earlier, lane, self._stop, job.watch)
            if job.planned.durable and not earlier.durable:
                sync_file(earlier.path)
        except InterruptedDumpError as error:
            note(job, error)
        except (AsyncdumpError, OSError) as error:
            logger().warning("dumped_again", dump=earlier.name, error=str(error))
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
            except DumpError as error:
                abort(jobs)
                errors: list[DumpError | None] = [error] * len(jobs)
            else:
                sinks: list[Any] = [job.transfer.sink for job in jobs]
                errors = self._folder.publish(
                    sinks, durable=durable, overwrite=self._plan.overwrite, journal=self.journal
                )
            for job, failure in zip(jobs, errors, strict=True):
                if failure is None:
                    job.published = True
                else:
                    note(job, failure)
