"""The events of the files of a run, in the promised order, and the outcome of each file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from asyncdump.errors import AsyncdumpError
from asyncdump.records.report import FileReport
from asyncdump.run.events import Event, FileFailed, FileFinished, FileKept, FileRetried, FileStarted, Progress
from asyncdump.run.job import Job


class Telling:
    """Emits the events of all files of a run, one at a time, from any thread.

    The lock guards the order: `FileStarted` comes before any other event of its file. The caller ensures that no
    progress follows the last event of a file: it ends a job only after the last call of `progress` for it. A job that
    `Queue.release` has removed gets no such call.
    """

    def __init__(self, emit: Callable[[Event], None], clock: Callable[[], float]) -> None:
        """``emit`` is called with each event; ``clock`` returns the seconds since the run began."""
        self._emit: Final = emit
        self._clock: Final = clock
        self._lock = threading.RLock()
        self._outcomes: dict[int, FileReport] = {}

    @property
    def reports(self) -> tuple[FileReport, ...]:
        """The outcomes so far, in the order of the plan."""
        return tuple(self._outcomes[index] for index in sorted(self._outcomes))

    def is_over(self, job: Job) -> bool:
        """Return whether a job has an outcome."""
        return job.index in self._outcomes

    def progress(self, job: Job) -> None:
        """Emit the progress of a job if it has changed since the last call."""
        proof = job.proof
        transfer = proof or job.transfer
        state = (transfer.moved, "verify" if proof else transfer.phase)
        if state == job.told or not transfer.moved:
            return
        with self._lock:
            if proof is None:
                self.announce(job)
            job.told = state
            self._emit(
                Progress(
                    at=self._clock(), name=transfer.name, done=transfer.moved, total=transfer.length, phase=state[1]
                )
            )

    def announce(self, job: Job) -> None:
        """Emit that a job has started, once, and not before an engine was found for it."""
        with self._lock:
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

    def finished(self, job: Job, report: FileReport) -> None:
        """End a job whose dump is published."""
        with self._lock:
            self._outcomes[job.index] = report
            self.announce(job)
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
            job.under_way = job.recorded = None

    def kept(self, job: Job, report: FileReport) -> None:
        """End a job whose dump is kept from an earlier run."""
        with self._lock:
            self._outcomes[job.index] = report
            job.under_way = None
            self._emit(
                FileKept(
                    at=self._clock(), name=report.name, source=report.source, bytes=report.bytes, digest=report.digest
                )
            )

    def retried(self, job: Job, error: AsyncdumpError, delay: float) -> None:
        """Emit that a job will be started again, in ``delay`` seconds or later."""
        with self._lock:
            self._emit(
                FileRetried(at=self._clock(), name=job.planned.name, error=error, attempt=job.attempts, delay=delay)
            )

    def failed(self, job: Job, error: AsyncdumpError, report: FileReport) -> None:
        """End a job that has failed or was abandoned."""
        with self._lock:
            self._outcomes[job.index] = report
            if job.under_way is not None and job.under_way.moved:
                self.announce(job)
            self._emit(
                FileFailed(
                    at=self._clock(),
                    name=job.planned.name,
                    source=job.planned.source.path,
                    error=error,
                    phase=job.phase,
                )
            )
            job.under_way = None
