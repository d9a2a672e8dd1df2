"""One dump of a plan on its way through a run: what has become of it, and what threads do with it."""

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
from asyncdump.run.owners import Owners
from asyncdump.transfer.transfer import Transfer


class Facts(NamedTuple):
    """What the records of all dumps of a run say alike, or by it; a `Job` has nothing of it, for the garbage collector.

    Attributes:
        clock: returns the seconds since the run began.
        owners: knows who had the sources mapped.
    """

    clock: Callable[[], float]
    owners: Owners
    manifest_sha256: str


class Job(msgspec.Struct, eq=False):
    """One planned dump and what has become of it; changed by the lane that has it, then by the committer.

    ``stands`` is the record of a complete dump that an attempt has left under its name, and could not make durable.

    ``under_way`` is there only while it is: of 80,000 dumps hardly any are, and what is kept of all of them would cost
    each full collection of garbage a part of a second, in which no thread goes on.
    """

    index: int
    planned: PlannedDump
    under_way: Transfer | None = None
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
        """What is being done, or ``plan`` before anything was."""
        return self.under_way.phase if self.under_way is not None and self.began is not None else "plan"

    def watch(self, proof: Transfer) -> None:
        """Have the progress of a proof told."""
        self.proof = proof

    @property
    def has_room(self) -> bool:
        """Whether one more lane may work on it: its sink and its compression may have a limit."""
        most = self.transfer.most_lanes
        return most is None or self.lanes < most

    @property
    def share(self) -> int:
        """The bytes that one more lane would have to move."""
        return self.transfer.remaining // (self.lanes + 1)

    def work(self, lane: Lane) -> None:
        """Move all of it, together with other lanes that do the same."""
        self.guard(lambda: self.transfer.work(lane))

    def seal(self, lane: Lane) -> None:
        """End a dump that is moved."""
        self.guard(lambda: self.transfer.seal(lane))
        self.sealed = self.error is None
        if self.sealed and (bad := self.transfer.bad):
            lost = sum(each.length for each in bad) + self.transfer.bad_left_out
            logger().warning("bad_memory", source=self.planned.source.path, bytes=lost, ranges=len(bad))

    def guard(self, step: Callable[[], None]) -> None:
        """Take a step unless the job has failed; what the step raises is the job's outcome, not the run's."""
        if self.error is not None:
            return
        try:
            step()
        except Exception as error:  # noqa: BLE001 (what nobody foresaw is this file's failure all the same)
            self.note(as_failure(error, self.planned.source.path))

    def note(self, error: AsyncdumpError) -> None:
        """Take down why it has failed, and log it. That one thread gave up is no reason where another has a better."""
        _forget_frames(error)
        if self.error is not None and not isinstance(self.error, InterruptedDumpError):
            return
        self.error = error
        if not isinstance(error, InterruptedDumpError) and not self.told_elsewhere:
            logger().warning("dump_failed", source=self.planned.source.path, phase=self.phase, error=str(error))

    def report(self, facts: Facts) -> FileReport:
        """Return the outcome of a dump that is sealed."""
        planned, transfer = self.planned, self.transfer
        assert transfer.engine is not None
        assert transfer.sink is not None
        assert self.began is not None
        now = facts.clock()
        maps, maps_left_out = facts.owners.of(planned.source)
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

    def failure(self, error: AsyncdumpError, folder: str, facts: Facts) -> FileReport:
        """Return the outcome of a dump into ``folder`` that has failed, or was given up."""
        if isinstance(error, NotDurableError):
            return msgspec.structs.replace(self.report(facts), error=error, phase="sync", bytes=0, stored=0)
        if self.stands is not None:  # What a later attempt has failed of changes nothing of what has the name.
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
    """Remove what was written of dumps; what goes wrong with one keeps none of the others."""
    for job in jobs:
        try:
            if job.under_way is not None:
                job.under_way.abort()
        except Exception as error:  # noqa: BLE001 (there is nothing left to be done about it)
            logger().error("not_removed", dump=job.planned.name, error=str(error))


def _forget_frames(error: BaseException | None) -> None:
    """Drop what the frames of a traceback hold: it lives as long as the report, and a frame may hold 128 MiB."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
