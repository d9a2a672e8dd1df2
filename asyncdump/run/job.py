"""One planned dump during a run: its state, and what threads do with it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from asyncdump.errors import AsyncdumpError, InterruptedDumpError, NotDurableError, as_failure
from asyncdump.kernel.lane import Lane
from asyncdump.log import logger
from asyncdump.plan.plan import PlannedDump
from asyncdump.records.report import FileReport
from asyncdump.run.mappers import Mappers
from asyncdump.transfer.transfer import Transfer


class Facts(NamedTuple):
    """What the records of all dumps of a run share. It isn't part of each `Job`, for the sake of the garbage collector.

    Attributes:
        clock: returns the seconds since the run began.
        mappers: knows which processes have the sources mapped.
        manifest_sha256: the SHA-256 of the manifest.
    """

    clock: Callable[[], float]
    mappers: Mappers
    manifest_sha256: str


class Job(msgspec.Struct, eq=False):
    """One planned dump and its state. The lane that has it changes it, and later the committer.

    ``stands`` is the record of a complete dump that an earlier attempt has left under the final name, but could not
    make durable.

    ``under_way`` is only set while the dump is in progress, which few of 80,000 dumps are. If all of them kept a
    transfer, each full garbage collection would stop all threads for a good part of a second.
    """

    index: int
    planned: PlannedDump
    under_way: Transfer | None = None
    recorded: FileReport | None = None
    lanes: int = 0
    open_to_join: bool = False
    began: float | None = None
    lane: int | None = None
    moved_by: int = 0
    sealed: bool = False
    published: bool = False
    error: AsyncdumpError | None = None
    attempts: int = 0
    told_elsewhere: bool = False
    earlier: FileReport | None = None
    kept: FileReport | None = None
    stands: FileReport | None = None
    proof: Transfer | None = None
    announced: bool = False
    told: tuple[int, str] = (0, "")

    @property
    def transfer(self) -> Transfer:
        assert self.under_way is not None
        return self.under_way

    @property
    def phase(self) -> str:
        """The current phase; ``plan`` before the dump has begun."""
        return self.under_way.phase if self.under_way is not None and self.began is not None else "plan"

    def watch(self, proof: Transfer) -> None:
        """Report the progress of a proof as the progress of this job."""
        self.proof = proof

    @property
    def has_room(self) -> bool:
        """Whether one more lane may work on it; its sink and its compression may have a limit."""
        most = self.transfer.most_lanes
        return most is None or self.lanes < most

    @property
    def share(self) -> int:
        """The share of the remaining bytes that one more lane would move."""
        return self.transfer.remaining // (self.lanes + 1)

    def work(self, lane: Lane) -> None:
        """Move its bytes, together with other lanes."""
        self.guard(lambda: self.transfer.work(lane))

    def seal(self, lane: Lane) -> None:
        """Seal the dump after all bytes are moved."""
        self.guard(lambda: self.transfer.seal(lane))
        self.sealed = self.error is None
        if self.sealed and (bad := self.transfer.bad):
            lost = sum(each.length for each in bad) + self.transfer.bad_left_out
            logger().warning("bad_memory", source=self.planned.source.path, bytes=lost, ranges=len(bad))

    def guard(self, step: Callable[[], None]) -> None:
        """Call ``step`` unless the job has failed; an exception fails this job, not the run."""
        if self.error is not None:
            return
        try:
            step()
        except Exception as error:  # noqa: BLE001 (even an unexpected error is only the failure of this file)
            self.note(as_failure(error, self.planned.source.path))

    def note(self, error: AsyncdumpError) -> None:
        """Record why the job failed, and log it. The first error stays; only an interruption is replaced by another."""
        _forget_frames(error)
        if self.error is not None and not isinstance(self.error, InterruptedDumpError):
            return
        self.error = error
        if not isinstance(error, InterruptedDumpError) and not self.told_elsewhere:
            logger().warning("dump_failed", source=self.planned.source.path, phase=self.phase, error=str(error))

    def report(self, facts: Facts) -> FileReport:
        """Return the outcome of a sealed dump; of what was recorded before, only the time changes."""
        assert self.began is not None
        now = facts.clock()
        if self.recorded is not None:
            return msgspec.structs.replace(self.recorded, ended=now, seconds=now - self.began)
        planned, transfer = self.planned, self.transfer
        assert transfer.engine is not None
        assert transfer.sink is not None
        maps, maps_left_out = facts.mappers.of(planned.source)
        digest, content_digest = (
            f"{planned.checksum}:{digest}" if digest else None for digest in (transfer.digest, transfer.content_digest)
        )
        self.recorded = FileReport(
            source=planned.source.path,
            name=planned.name,
            path=transfer.sink.path,
            offset=planned.offset,
            bytes=transfer.length,
            size=transfer.size,
            stored=transfer.sink.stored,
            seconds=now - self.began,
            began=self.began,
            ended=now,
            lane=self.lane,
            lanes=max(1, self.moved_by),
            method=transfer.engine.method,
            digest=digest,
            error=None,
            phase="done",
            content_digest=content_digest,
            stages=planned.stages,
            identity=planned.source.identity,
            inode=transfer.inode,
            blocks=transfer.blocks,
            content_blocks=transfer.content_blocks,
            stat=planned.source.stat,
            maps=maps,
            maps_left_out=maps_left_out,
            durable=planned.durable,
            manifest_sha256=facts.manifest_sha256,
            bad=transfer.bad,
            bad_left_out=transfer.bad_left_out,
        )
        return self.recorded

    def failure(self, error: AsyncdumpError, folder: str, facts: Facts) -> FileReport:
        """Return the outcome of a dump into ``folder`` that has failed or was abandoned."""
        if isinstance(error, NotDurableError):
            return msgspec.structs.replace(self.report(facts), error=error, phase="sync", bytes=0, stored=0)
        if self.stands is not None:  # The failure of a later attempt doesn't change the file under the final name.
            return msgspec.structs.replace(self.stands, error=error)
        now = facts.clock()
        engine = self.under_way.engine if self.under_way is not None else None
        return FileReport(
            source=self.planned.source.path,
            name=self.planned.name,
            path=os.path.join(folder, self.planned.name),
            bytes=0,
            stored=0,
            seconds=0.0 if self.began is None else now - self.began,
            began=self.began,
            ended=None if self.began is None else now,
            lane=self.lane,
            lanes=0 if self.lane is None else max(1, self.moved_by),
            method=engine.method if engine else None,
            digest=None,
            error=error,
            phase=self.phase,
            stages=self.planned.stages,
            stat=self.planned.source.stat,
        )


def abort(jobs: list[Job]) -> None:
    """Remove what was written for some jobs; a failure to remove one doesn't affect the others."""
    for job in jobs:
        try:
            if job.under_way is not None:
                job.under_way.abort()
        except Exception as error:  # noqa: BLE001 (nothing else can be done about it)
            logger().error("not_removed", dump=job.planned.name, error=str(error))


def _forget_frames(error: BaseException | None) -> None:
    """Clear the frames of a traceback: it lives as long as the report, and a frame may refer to 128 MiB."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
