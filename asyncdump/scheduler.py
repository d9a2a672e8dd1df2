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
    taken = len(os.listdir("/proc/self/fd")) + _SPARE_DESCRIPTORS
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


class _Job(msgspec.Struct, eq=False):
    """One planned dump and what has become of it; changed by the event loop, and by one thread while a hop lasts."""

    index: int
    planned: PlannedDump
    transfer: Transfer
    lanes: int = 0
    open_to_join: bool = False
    started: float = 0.0
    sealed: bool = False
    published: bool = False
    error: AsyncdumpError | None = None
    attempts: int = 0
    told_elsewhere: bool = False
    earlier: FileReport | None = None
    kept: FileReport | None = None
    proof: Transfer | None = None
    announced: bool = False
    told: tuple[int, str] = (0, "")

    def watch(self, proof: Transfer) -> None:
        """Have the progress of a proof told."""
        self.proof = proof


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
        self._again: list[_Job] = []
        self._compressors = Compressors()
        self._buffers = Buffers()
        self._jobs = [self._job(index, planned) for index, planned in enumerate(plan.dumps)]
        self._waiting = deque(sorted(self._jobs, key=lambda job: -job.planned.length))
        self._in_flight = 0
        self._active: dict[_Job, None] = {}
        self._changed = anyio.Event()
        self._outcomes: dict[int, FileReport] = {}

    def _job(self, index: int, planned: PlannedDump) -> _Job:
        earlier = self._earlier.get(planned.name)
        told = not isinstance(self._folder, Folder | Outlet)
        return _Job(index, planned, self._transfer(planned), earlier=earlier, told_elsewhere=told)

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
                    await self._hop(_abort, lost)
            for job in rest:
                if job.published:
                    self._finish(job)
                else:
                    self._fail(job, job.error or self._given_up(job))

    async def _round(self) -> None:
        """Serve all that waits."""
        send, receive = anyio.create_memory_object_stream[_Job](self._group)
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

    def _given_up(self, job: _Job) -> InterruptedDumpError:
        return InterruptedDumpError(
            f"{job.planned.source.path} was not dumped: the run was ended before", path=job.planned.source.path
        )

    # --- lanes ---------------------------------------------------------------------------------------------------

    async def _lane(self, send: MemoryObjectSendStream[_Job]) -> None:
        lane = Lane()
        try:
            while jobs := await self._next():
                await self._serve(jobs, lane, send)
        finally:
            lane.close()

    async def _next(self) -> list[_Job]:
        """Return what this lane does next: files to begin, or one under way to join; nothing when all is given out."""
        while not self._stop.requested:
            if self._waiting and self._in_flight < self.concurrency:
                return self._take()
            shared = [job for job in self._active if job.planned.length >= SHARED and job.transfer.remaining]
            joinable = [
                job
                for job in shared
                # One that has failed has nothing for a lane to do: it would come back at once, and for ever.
                if job.open_to_join and job.error is None and _has_room(job) and _share(job) >= _WORTH_JOINING
            ]
            if joinable:
                return [max(joinable, key=_share)]
            if not self._waiting and all(job.open_to_join for job in shared):
                break
            await self._changed.wait()
        return []

    def _take(self) -> list[_Job]:
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

    async def _serve(self, jobs: list[_Job], lane: Lane, send: MemoryObjectSendStream[_Job]) -> None:
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
        for job in jobs:
            del self._active[job]
        self._in_flight -= 1
        self._wake()
        if failed:
            # Not in the event loop: to remove a large file takes a while.
            await self._hop(_abort, failed)
        for job in jobs:
            if job.kept is not None:
                self._keep(job, job.kept)
            elif job.sealed:
                await send.send(job)
            else:
                self._fail(job, job.error or self._given_up(job))

    async def _share_work(self, job: _Job, lane: Lane, *, joining: bool) -> None:
        if not joining:
            await self._hop(self._begin, job, lane)
            if job.kept is not None:
                return
            job.open_to_join = True
            self._wake()
        if job.error is None:
            await self._hop(_work, job, lane)
        if job.lanes == 1:  # The last one out.
            job.open_to_join = False
            if job.error is None:
                await self._hop(_seal, job, lane)

    async def _hop(self, function: Callable[[*Args], None], *args: *Args) -> None:
        await run_sync(function, *args, limiter=self._limiter)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # --- the committer -------------------------------------------------------------------------------------------

    async def _commit(self, receive: MemoryObjectReceiveStream[_Job]) -> None:
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

    def _tell(self, job: _Job) -> None:
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

    def _announce(self, job: _Job) -> None:
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

    def _may_pass(self, job: _Job, error: AsyncdumpError) -> bool:
        retries = self._plan.retries
        passing = isinstance(error, DumpError) and error.errno in retries.numbers
        return passing and job.attempts < retries.times and not self._stop.requested

    def _finish(self, job: _Job) -> None:
        engine = job.transfer.engine
        assert engine is not None
        self._outcomes[job.index] = report = self._report(job)
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

    def _keep(self, job: _Job, report: FileReport) -> None:
        self._outcomes[job.index] = report
        self._emit(
            FileKept(at=self._clock(), name=report.name, source=report.source, bytes=report.bytes, digest=report.digest)
        )

    def _report(self, job: _Job) -> FileReport:
        """Return the outcome of a dump that is sealed."""
        planned, transfer = job.planned, job.transfer
        assert transfer.engine is not None
        assert transfer.sink is not None
        digest, content_digest = (
            f"{planned.checksum}:{digest}" if digest else None for digest in (transfer.digest, transfer.content_digest)
        )
        return FileReport(
            source=planned.source.path,
            name=planned.name,
            path=transfer.sink.path,
            offset=planned.offset,
            bytes=planned.length,
            size=transfer.size,
            stored=transfer.sink.stored,
            seconds=time.perf_counter() - job.started,
            method=transfer.engine.method,
            digest=digest,
            error=None,
            stage="done",
            content_digest=content_digest,
            stages=planned.stages,
            identity=planned.source.identity,
            inode=transfer.inode,
            marks=transfer.marks,
            durable=planned.durable,
            manifest_sha256=self._plan.manifest_sha256,
            bad=transfer.bad,
        )

    def _fail(self, job: _Job, error: AsyncdumpError) -> None:
        if self._may_pass(job, error):
            job.attempts += 1
            self._again.append(job)
            delay = self._plan.retries.wait(job.attempts)
            self._emit(
                FileRetried(at=self._clock(), name=job.planned.name, error=error, attempt=job.attempts, delay=delay)
            )
            return
        planned, engine = job.planned, job.transfer.engine
        stage = job.transfer.stage if job.started else "plan"
        self._outcomes[job.index] = FileReport(
            source=planned.source.path,
            name=planned.name,
            path=os.path.join(self._folder.path, planned.name),
            bytes=0,
            stored=0,
            seconds=time.perf_counter() - job.started if job.started else 0.0,
            method=engine.method if engine else None,
            digest=None,
            error=error,
            stage=stage,
            stages=planned.stages,
        )
        if job.transfer.moved:
            self._announce(job)
        self._emit(
            FileFailed(at=self._clock(), name=planned.name, source=planned.source.path, error=error, stage=stage)
        )
        self._end_run(job, error)

    def _end_run(self, job: _Job, error: AsyncdumpError | None) -> None:
        """End the run if it is to end with the failure of a file."""
        passing = error is None or isinstance(error, InterruptedDumpError) or self._may_pass(job, error)
        if self._plan.on_error == "abort" and not passing:
            self.aborted = self._stop.requested = True
            self._wake()

    # --- in worker threads ------------------------------------------------------------------------------------------

    def _whole(self, jobs: list[_Job], lane: Lane) -> None:
        for job in jobs:
            self._begin(job, lane)
            if job.kept is None:
                _work(job, lane)
                _seal(job, lane)

    def _begin(self, job: _Job, lane: Lane) -> None:
        job.started = job.started or time.perf_counter()
        if job.earlier is not None and self._is_whole(job, job.earlier, lane):
            durable = job.earlier.durable or job.planned.durable
            job.kept = msgspec.structs.replace(job.earlier, kept=True, durable=durable)
            if self.journal is not None:
                with suppress(DumpError):  # It was taken over already; what is lost is that this run has proved it.
                    self.journal.append([job.kept])
            return
        _guarded(job, lambda: job.transfer.begin(self._folder, lane))
        if job.earlier is not None and isinstance(job.transfer.sink, Draft):
            job.transfer.sink.replaces = job.earlier.source == job.planned.source.path

    def _is_whole(self, job: _Job, earlier: FileReport, lane: Lane) -> bool:
        """Tell whether an earlier run has done this very thing, and what it wrote is whole still."""
        if job.attempts or not earlier.ok or not _fits(job.planned, earlier, self._plan):
            return False
        try:
            prove(earlier, lane, self._stop, job.watch)
            if job.planned.durable and not earlier.durable:
                sync_file(earlier.path)
        except InterruptedDumpError as error:
            _note(job, error)
        except (AsyncdumpError, OSError) as error:
            logger().warning("dumped_again", dump=earlier.name, error=str(error))
        else:
            return True
        finally:
            job.proof = None
        return False

    def _publish(self, group: list[_Job]) -> None:
        for durable in (True, False):
            jobs = [job for job in group if job.planned.durable is durable]
            for job in jobs:
                job.transfer.stage = "sync"
            if not jobs:
                continue
            try:
                if self.journal is not None:
                    self.journal.append(self._report(job) for job in jobs)
            except DumpError as error:
                _abort(jobs)
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
                    _note(job, failure)


def _fits(planned: PlannedDump, earlier: FileReport, plan: Plan) -> bool:
    """Tell whether a dump made earlier is what is asked for now, as far as that's seen without reading it."""
    checksum = earlier.digest.partition(":")[0] if earlier.digest else "none"
    asked = (planned.source.path, planned.offset, planned.length, planned.stages, planned.checksum)
    if (earlier.source, earlier.offset, earlier.bytes, earlier.stages, checksum) != asked:
        return False
    if earlier.bad and planned.on_read_error == "fail":
        return False
    if plan.trust_receipt:
        return True
    # The arguments of programs are recorded nowhere, for they may be secrets: the same manifest has the same.
    if planned.filters and earlier.manifest_sha256 != plan.manifest_sha256:
        return False
    return earlier.identity is not None and earlier.identity == planned.source.identity


def _has_room(job: _Job) -> bool:
    """Tell whether one more lane may work on a file: its compression may have a limit of threads, a pipe takes one."""
    zstd = job.planned.zstd
    if isinstance(job.transfer, Piped):
        return False
    return zstd is None or not zstd.threads or job.lanes < zstd.threads


def _share(job: _Job) -> int:
    """Return the bytes that one more lane would have to move."""
    return job.transfer.remaining // (job.lanes + 1)


def _work(job: _Job, lane: Lane) -> None:
    _guarded(job, lambda: job.transfer.work(lane))


def _seal(job: _Job, lane: Lane) -> None:
    _guarded(job, lambda: job.transfer.seal(lane))
    job.sealed = job.error is None
    if job.sealed and (bad := job.transfer.bad):
        lost = sum(each.length for each in bad)
        logger().warning("bad_memory", source=job.planned.source.path, bytes=lost, ranges=len(bad))


def _abort(jobs: list[_Job]) -> None:
    for job in jobs:
        job.transfer.abort()


def _guarded(job: _Job, step: Callable[[], None]) -> None:
    """Take a step of a job unless it has failed; what it raises is the job's outcome, not the run's."""
    if job.error is not None:
        return
    try:
        step()
    except AsyncdumpError as error:
        _note(job, error)
    except OSError as error:  # A call of ours that nobody foresaw to fail: this file's failure all the same.
        unforeseen = DumpError(f"{job.planned.source.path}: {error}", path=job.planned.source.path, errno=error.errno)
        unforeseen.__cause__ = error
        _note(job, unforeseen)


def _note(job: _Job, error: AsyncdumpError) -> None:
    job.error = job.error or error
    if not isinstance(error, InterruptedDumpError) and not job.told_elsewhere:
        logger().warning("dump_failed", source=job.planned.source.path, stage=job.transfer.stage, error=str(error))
