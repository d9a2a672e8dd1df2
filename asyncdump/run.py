"""One run from the caller's side: `dump_all` awaits it, `open_run` watches it."""

from __future__ import annotations

import errno
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from hashlib import sha256
from typing import Final, Literal, TypedDict, TypeVar, Unpack

import anyio
import msgspec
from anyio.to_thread import run_sync

from asyncdump.digest import Checksum
from asyncdump.engines import Choice
from asyncdump.errors import AsyncdumpError, DumpError, ManifestError, Problem, absolute
from asyncdump.events import Event, Mailbox, RunFinished, RunStarted
from asyncdump.journal import Head, Journal
from asyncdump.log import logger
from asyncdump.manifest import Dump, Manifest, OnError, Retries, Zstd
from asyncdump.outlet import Outlet
from asyncdump.plan import STANDARD_OUTPUT, Options, Plan, make_plan
from asyncdump.receipt import digest_lists, read_receipt, receipt
from asyncdump.record import RECEIPT
from asyncdump.report import FileReport, Report, now
from asyncdump.salvage import OnReadError
from asyncdump.scheduler import Scheduler
from asyncdump.sink import Folder, Place
from asyncdump.transfer import Stop
from asyncdump.version import __version__
from asyncdump.yamlfile import Marks, read_manifest

_STDOUT: Final = 1

Opened = TypeVar("Opened")

What = str | os.PathLike[str] | Manifest | Iterable[Dump]
"""What is to be dumped: the path of a manifest, a manifest, or dumps (which need ``output``)."""

Handler = Callable[[Event], None] | Callable[[Event], Awaitable[None]]
"""What is called with each event. A plain function runs in the event loop, and so must not block."""


class Run:
    """A run under way: an asynchronous iterator of its events, for one listener."""

    def __init__(
        self,
        plan: Plan,
        folder: Place,
        stop: Stop | None = None,
        *,
        earlier: Mapping[str, FileReport] | None = None,
        receipt: bool = True,
    ) -> None:
        self.plan: Final = plan
        self._folder = folder
        self._journal: Journal | None = None
        self._earlier: Final = earlier or {}
        self._receipt = receipt
        self._mailbox = Mailbox()
        self._stop = stop or Stop()
        self._interrupted: str | None = None
        self._report: Report | None = None
        self._began = time.perf_counter()
        self._scheduler = Scheduler(
            plan,
            folder,
            emit=self._mailbox.put,
            stop=self._stop,
            clock=self._clock,
            earlier=earlier,
        )

    def attach(self, journal: Journal) -> None:
        """Have what is done taken down."""
        self._journal = self._scheduler.journal = journal

    def discard(self) -> None:
        """Give back what a run holds that is never conducted."""
        if self._journal is not None:
            self._journal.close()
        self._folder.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        return aiter(self._mailbox)

    @property
    def report(self) -> Report:
        """The outcome, once the run has ended: after the last event, or after ``async with``.

        Raises:
            RuntimeError: the run hasn't ended.
        """
        if self._report is None:
            raise RuntimeError("the run has not ended yet")
        return self._report

    def cancel(self, reason: str = "cancelled") -> None:
        """End the run within some 100 ms: finished dumps stay, others are removed, the report tells which.

        May be called at any time, and more than once; not from another thread.
        """
        self._interrupted = self._interrupted or reason
        self._stop.requested = True

    def _clock(self) -> float:
        return time.perf_counter() - self._began

    async def _conduct(self) -> None:
        started, self._began = now(), time.perf_counter()
        scheduler = self._scheduler
        self._mailbox.put(
            RunStarted(
                at=0.0,
                output=self.plan.output,
                files=len(self.plan.dumps),
                bytes=self.plan.bytes,
                concurrency=scheduler.concurrency,
            )
        )
        try:
            await scheduler.run()
        except anyio.get_cancelled_exc_class():
            self.cancel()
            raise
        finally:
            if scheduler.aborted:
                self.cancel("on_error: abort")
            with anyio.CancelScope(shield=True):
                await self._close(scheduler, started)

    async def _close(self, scheduler: Scheduler, started: datetime) -> None:
        report = Report(
            files=scheduler.reports,
            output=self.plan.output,
            started=started,
            ended=now(),
            seconds=self._clock(),
            interrupted=self._interrupted,
            manifest_sha256=self.plan.manifest_sha256,
            earlier=self._still_there(scheduler.reports),
        )
        try:
            await run_sync(self._write_records, report)
        except AsyncdumpError as error:
            report = msgspec.structs.replace(report, receipt_error=error)
        self._report = report
        self._mailbox.put(
            RunFinished(
                at=self._clock(),
                files=len(report.files),
                failed=len(report.failures),
                bytes=report.bytes,
                seconds=report.seconds,
                interrupted=report.interrupted,
            )
        )
        self._mailbox.close()
        self._folder.close()

    def _still_there(self, files: Iterable[FileReport]) -> tuple[FileReport, ...]:
        """Return what earlier runs have made and this one has neither made anew nor kept."""
        made = {file.name for file in files if file.ok}
        return tuple(file for name, file in self._earlier.items() if name not in made)

    def _write_records(self, report: Report) -> None:
        try:
            if self._receipt:
                self._folder.write_small({**digest_lists(report), RECEIPT: receipt(report, __version__)})
            if self._journal is not None:
                self._journal.remove()
        finally:
            if self._journal is not None:
                self._journal.close()


class Overrides(TypedDict, total=False):
    """Keyword arguments of `dump_all`, `open_run` and `plan_all`: each overrides the manifest, for all its files.

    Attributes:
        output: the folder for the dumps, relative to the working directory; ``-`` is standard output, for one dump.
        concurrency: files in flight, or ``auto``.
        method: how bytes are moved: ``auto``, ``reflink``, ``direct``, ``sendfile``, ``splice``, ``mmap`` or ``read``.
        checksum: the digest that is taken: ``xxh128``, ``blake3``, ``sha256`` or ``none``.
        on_error: ``continue``, or ``abort`` to end the run when a file fails.
        durable: whether to wait until the dumps would survive a power cut.
        overwrite: replace dumps of the same names; without it they are an error.
        compress: ``zstd``, a `Zstd`, or ``none``.
        allow_filters: whether the manifest may run programs; without it, filters are an error.
        resume: go on with what an earlier run into the same folder left: dumps that it has made are verified and kept,
            where their source is the same in size, time of change and inode, and the rest is done.
        trust_receipt: with ``resume``, keep them whatever has become of the source.
        retries: how often a file is dumped again after a failure that passes: a number, or `Retries`.
        on_read_error: ``fail``, or ``zero`` to have zeros in a dump where its source can't be read.
    """

    output: str | os.PathLike[str] | None
    concurrency: int | Literal["auto"] | None
    method: Choice | None
    checksum: Checksum | None
    on_error: OnError | None
    durable: bool | None
    overwrite: bool
    compress: Literal["none", "zstd"] | Zstd | None
    allow_filters: bool
    resume: bool
    trust_receipt: bool
    retries: int | Retries | None
    on_read_error: OnReadError | None


async def plan_all(what: What, **overrides: Unpack[Overrides]) -> Plan:
    """Return what `dump_all` would do with the same arguments; nothing is written.

    Raises:
        ManifestError: it can't be carried out. It holds all that is wrong.
    """
    options = Options(**overrides)
    return await run_sync(_prepare, what, options)


def _prepare(what: What, options: Options) -> Plan:
    if isinstance(what, str | os.PathLike):
        path = os.fsdecode(what)
        manifest, marks = read_manifest(path)
        return make_plan(manifest, marks, os.path.dirname(absolute(path)), options)
    if not isinstance(what, Manifest):
        if options.output is None:
            raise ManifestError(Problem(key="output", message="is missing: say where the dumps go"))
        what = Manifest(output=os.fsdecode(options.output), dumps=_dumps(what))
    marks = Marks(sha256=sha256(repr(what).encode(errors="surrogateescape")).hexdigest())
    return make_plan(what, marks, absolute("."), options)


def _dumps(given: Iterable[Dump]) -> tuple[Dump, ...]:
    dumps = tuple(given)
    problems = [
        Problem(key=f"dumps[{index}]", message=f"{dump!r} is not a Dump: write Dump(source=...)")
        for index, dump in enumerate(dumps)
        if not isinstance(dump, Dump)
    ]
    if problems:
        raise ManifestError(*problems)
    return dumps


def _open_output(plan: Plan, stop: Stop) -> Run:
    """Take possession of the output folder, and learn what is done already."""
    if plan.output == STANDARD_OUTPUT:
        return Run(plan, Outlet(_STDOUT, stop.check), stop)
    folder = Folder(plan.output)
    try:
        folder.lock()
        earlier = _find_earlier(plan, folder)
        run = Run(plan, folder, stop, earlier=earlier)
        folder.sweep()
        # Last, for it replaces the journal of a run before: nothing may fail any more.
        head = Head(files=len(plan.dumps), started=now().isoformat(), manifest_sha256=plan.manifest_sha256)
        run.attach(Journal(folder, head, earlier.values()))
    except BaseException:
        folder.close()
        raise
    return run


def _find_earlier(plan: Plan, folder: Folder) -> dict[str, FileReport]:
    if plan.resume:
        found = read_receipt(folder)
        return found.ours if found else {}
    if not plan.overwrite and folder.exists(RECEIPT):
        raise DumpError(
            f"another run has ended in {folder.path} since this one was planned",
            path=folder.path,
            operation="open",
            errno=errno.EEXIST,
            hint="choose another folder, or --overwrite",
        )
    if not plan.overwrite:
        return {}
    # What is about to be replaced is ours, which a later --resume must know, but is never again to be kept.
    names = {dump.name for dump in plan.dumps}
    with suppress(DumpError):
        found = read_receipt(folder)
        return {name: _outdated(file) for name, file in found.ours.items() if name in names} if found else {}
    return {}


def _outdated(file: FileReport) -> FileReport:
    """Return the record of a dump that is to be replaced."""
    error = file.error or DumpError("an older dump was to be replaced, and the run ended before", path=file.path)
    return msgspec.structs.replace(file, error=error)


@asynccontextmanager
async def open_run(what: What, **overrides: Unpack[Overrides]) -> AsyncIterator[Run]:
    """Start a run, and give it as an asynchronous iterator of its events::

        async with asyncdump.open_run("manifest.yaml") as run:
            async for event in run:
                print(event)
        run.report.raise_for_failures()

    Leaving the block waits for the run to end; leaving it by an exception ends the run first. A listener may be slow,
    or not listen at all: that neither slows the dumps nor lets memory grow.

    Args:
        what: the path of a manifest, a `Manifest`, or an iterable of `Dump`, which needs ``output``.
        overrides: see `Overrides`.

    Raises:
        ManifestError: it can't be carried out; nothing was written.
        DumpError: the output folder can't be created, another run is at work in it, or too few files may be open.
    """
    made = await plan_all(what, **overrides)
    stop = Stop()
    run = await opened(lambda: _open_output(made, stop), Run.discard)
    async with running(run):
        yield run


async def opened(make: Callable[[], Opened], close: Callable[[Opened], object]) -> Opened:
    """Return what ``make`` returns, called in a thread; if nobody waits for it any more, ``close`` it.

    A task that asyncio cancels leaves its thread behind, and what that opens, a lock for one, would stay for good.
    """
    made: list[Opened] = []
    turn = threading.Lock()
    abandoned = False

    def work() -> None:
        thing = make()
        with turn:
            if not abandoned:
                made.append(thing)
                return
        close(thing)

    try:
        await run_sync(work)
    except BaseException:
        with turn:
            abandoned = True
        for thing in made:
            close(thing)
        raise
    return made[0]


@asynccontextmanager
async def running(run: Run) -> AsyncIterator[None]:
    """Have a run conducted beside a block; an exception of the block ends it, and is raised by itself."""
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run._conduct)  # noqa: SLF001 (ours: the listener is given the same object)
            try:
                yield
            except BaseException as error:  # noqa: BLE001 (raised again below: the caller's own error, not a group of it)
                failure = error
                tasks.cancel_scope.cancel()
    finally:
        # Also where the task group ends by a cancellation from outside: that would hide the caller's own error.
        if failure is not None:
            raise failure


async def dump_all(what: What, *, on_event: Handler | None = None, **overrides: Unpack[Overrides]) -> Report:
    """Dump all files of a manifest and return the report of it.

    The failure of a file is in the report, and raised by `Report.raise_for_failures`. The event loop stays free: bytes
    are moved by threads. Cancelling ends the run within some 100 ms; finished dumps and the receipt stay.

    Args:
        what: the path of a manifest, a `Manifest`, or an iterable of `Dump`, which needs ``output``.
        on_event: called with each event, sync or async. An exception that it raises is logged, and it isn't called
            again: a dump outlives its listener.
        overrides: see `Overrides`.

    Raises:
        ManifestError: it can't be carried out; nothing was written.
        DumpError: the output folder can't be created, or another run is at work in it.
    """
    async with open_run(what, **overrides) as run:
        if on_event is not None:
            await listen(run, on_event)
    return run.report


async def listen(run: Run, handler: Handler) -> None:
    """Call a handler with each event of a run."""
    try:
        async for event in run:
            answer = handler(event)
            if inspect.isawaitable(answer):
                await answer
    except Exception as error:  # noqa: BLE001 (whatever it is, it's the listener's)
        await run_sync(_complain, error)


def _complain(error: Exception) -> None:
    # In a thread: the first record imports structlog, which would hold up the event loop.
    logger().error("listener_failed", exc_info=error)
