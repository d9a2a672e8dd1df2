"""One dump of a plan on its way through a run: what has become of it, and what threads do with it."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable

import msgspec

from asyncdump.errors import AsyncdumpError, InterruptedDumpError, NotDurableError, as_failure
from asyncdump.kernel.lane import Lane
from asyncdump.log import logger
from asyncdump.plan.plan import PlannedDump
from asyncdump.records.report import FileReport
from asyncdump.transfer.piped import Piped
from asyncdump.transfer.transfer import Transfer


class Job(msgspec.Struct, eq=False):
    """One planned dump and what has become of it; changed by the lane that has it, then by the committer.

    ``under_way`` is there only while it is: of 80,000 dumps hardly any are, and what is kept of all of them would cost
    each full collection of garbage a part of a second, in which no thread goes on.
    """

    index: int
    planned: PlannedDump
    under_way: Transfer | None = None
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

    @property
    def transfer(self) -> Transfer:
        assert self.under_way is not None
        return self.under_way

    @property
    def stage(self) -> str:
        """What is being done, or ``plan`` before anything was."""
        return self.under_way.stage if self.under_way is not None and self.started else "plan"

    def watch(self, proof: Transfer) -> None:
        """Have the progress of a proof told."""
        self.proof = proof


def report_of(job: Job, manifest_sha256: str) -> FileReport:
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
        bytes=transfer.length,
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
        manifest_sha256=manifest_sha256,
        bad=transfer.bad,
        bad_left_out=transfer.bad_left_out,
    )


def failure_of(job: Job, error: AsyncdumpError, folder: str, manifest_sha256: str) -> FileReport:
    """Return the outcome of a dump into ``folder`` that has failed, or was given up."""
    if isinstance(error, NotDurableError):
        return msgspec.structs.replace(report_of(job, manifest_sha256), error=error, stage="sync", bytes=0, stored=0)
    engine = job.under_way.engine if job.under_way is not None else None
    return FileReport(
        source=job.planned.source.path,
        name=job.planned.name,
        path=os.path.join(folder, job.planned.name),
        bytes=0,
        stored=0,
        seconds=time.perf_counter() - job.started if job.started else 0.0,
        method=engine.method if engine else None,
        digest=None,
        error=error,
        stage=job.stage,
        stages=job.planned.stages,
    )


def has_room(job: Job) -> bool:
    """Tell whether one more lane may work on a file: its compression may have a limit of threads, a pipe takes one."""
    compression = job.planned.compression
    if isinstance(job.transfer, Piped):
        return False
    return compression is None or not compression.threads or job.lanes < compression.threads


def share(job: Job) -> int:
    """Return the bytes that one more lane would have to move."""
    return job.transfer.remaining // (job.lanes + 1)


def work(job: Job, lane: Lane) -> None:
    """Move all of a dump."""
    guarded(job, lambda: job.transfer.work(lane))


def seal(job: Job, lane: Lane) -> None:
    """End a dump that is moved."""
    guarded(job, lambda: job.transfer.seal(lane))
    job.sealed = job.error is None
    if job.sealed and (bad := job.transfer.bad):
        lost = sum(each.length for each in bad) + job.transfer.bad_left_out
        logger().warning("bad_memory", source=job.planned.source.path, bytes=lost, ranges=len(bad))


def abort(jobs: list[Job]) -> None:
    """Remove what was written of dumps; what goes wrong with one keeps none of the others."""
    for job in jobs:
        try:
            if job.under_way is not None:
                job.under_way.abort()
        except Exception as error:  # noqa: BLE001 (there is nothing left to be done about it)
            logger().error("not_removed", dump=job.planned.name, error=str(error))


def guarded(job: Job, step: Callable[[], None]) -> None:
    """Take a step of a job unless it has failed; what it raises is the job's outcome, not the run's."""
    if job.error is not None:
        return
    try:
        step()
    except Exception as error:  # noqa: BLE001 (what nobody foresaw is this file's failure all the same)
        note(job, as_failure(error, job.planned.source.path))


def _forget_frames(error: BaseException | None) -> None:
    """Drop what the frames of a traceback hold: it lives as long as the report, and a frame may hold 128 MiB."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def note(job: Job, error: AsyncdumpError) -> None:
    """Take down why a job has failed, and log it. That one thread gave up is no reason where another has a better."""
    _forget_frames(error)
    if job.error is not None and not isinstance(job.error, InterruptedDumpError):
        return
    job.error = error
    if not isinstance(error, InterruptedDumpError) and not job.told_elsewhere:
        logger().warning("dump_failed", source=job.planned.source.path, stage=job.stage, error=str(error))
