"""One run from the caller's side: `dump_all` awaits it, `open_run` watches it."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from hashlib import sha256
from threading import Thread
from typing import Final, Literal, TypedDict, Unpack

import anyio
import msgspec

from asyncdump.engines import Choice
from asyncdump.errors import DumpError, ManifestError, Problem, absolute, as_failure
from asyncdump.log import logger
from asyncdump.manifest.models import Dump, Manifest, OnError, Retries, Zstd
from asyncdump.manifest.yaml import Marks, read_manifest
from asyncdump.plan.planner import STANDARD_OUTPUT, Options, Plan, make_plan
from asyncdump.records.journal import JOURNAL, Head, Journal
from asyncdump.records.receipt import digest_lists, read_receipt, receipt
from asyncdump.records.record import RECEIPT, RESERVED
from asyncdump.records.report import FileReport, Report, now
from asyncdump.run.events import Event, Mailbox, RunFinished, RunStarted
from asyncdump.run.scheduler import Scheduler
from asyncdump.run.threads import Host, Signal, current_task, in_thread, outlast, start
from asyncdump.sinks.clash import clashes
from asyncdump.sinks.file import Folder, Place
from asyncdump.sinks.lock import LOCK
from asyncdump.sinks.pipe import Outlet
from asyncdump.text import as_path
from asyncdump.transfer.salvage import OnReadError
from asyncdump.transfer.transfer import Stop
from asyncdump.version import __version__
from asyncdump.vocabulary.digest import LISTS, Checksum

_STDOUT: Final = 1

GRACE: Final = 10.0
"""Seconds that a handler has for an event when nothing but that keeps a run from returning."""

What = str | os.PathLike[str] | Manifest | Iterable[Dump]
"""What is to be dumped: the path of a manifest, a manifest, or dumps (which need ``output``)."""

Handler = Callable[[Event], None] | Callable[[Event], Awaitable[None]]
"""What is called with each event. A plain function runs in the event loop, and so must not block."""


class Run:
    """A run under way: an asynchronous iterator of its events, for one listener at a time.

    Whoever iterates goes on where another has left off. A second iteration while one waits, and one that was left when
    another began, raise `RuntimeError`: each event is told once. After the last event iterations end at once.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Place,
        stop: Stop | None = None,
        *,
        earlier: Mapping[str, FileReport] | None = None,
        receipt: bool = True,
        guard: Folder | None = None,
    ) -> None:
        """``guard`` is a folder that is read meanwhile: it stays locked until the run has ended."""
        self.plan: Final = plan
        self._guard: Final = guard
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
            watch=self._look_around,
            earlier=earlier,
        )
        self.ended: Final = Signal()
        self._host: Host | None = None
        self._thread: Thread | None = None
        self._process: Final = os.getpid()
        self._failure: BaseException | None = None

    def attach(self, journal: Journal) -> None:
        """Have what is done taken down."""
        self._journal = self._scheduler.journal = journal

    def discard(self) -> None:
        """Give back what a run holds that is never conducted, as if it had never been."""
        if self._journal is not None and not self._earlier:
            self._journal.remove()
        self._release()

    def _release(self) -> None:
        if self._journal is not None:
            self._journal.close()
        self._folder.close()
        if self._guard is not None:
            self._guard.close()

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

        May be called at any time, more than once, and from any thread or signal handler.
        """
        self._interrupted = self._interrupted or reason
        self._stop.requested = True

    def _clock(self) -> float:
        return time.perf_counter() - self._began

    def start(self) -> None:
        """Have the run conducted, in threads that no event loop can cut short.

        Raises:
            DumpError: no thread can be started. Nothing is held any more then.
        """
        self._host = Host()
        try:
            self._thread = start(self._conduct)
        except BaseException:
            self.discard()
            raise

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that conducts the run: none of its threads is here, nor its loop."""
        return os.getpid() != self._process

    async def wait(self) -> None:
        """Wait for the end, through any number of cancellations; the first of them ends the run.

        Raises:
            BaseException: what ended the run where that wasn't the failure of a file, or the last cancellation.
        """
        if self._thread is not None and not self.forked:
            await outlast(self._thread, self.ended, self.cancel)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _look_around(self) -> None:
        """End the run when nobody can be waiting for it any more."""
        if self._host is not None and self._host.gone:
            self.cancel("the event loop was closed")

    def _conduct(self) -> None:
        started, self._began = now(), time.perf_counter()
        try:
            self._mailbox.put(
                RunStarted(
                    at=0.0,
                    output=self.plan.output,
                    files=len(self.plan.dumps),
                    bytes=self.plan.bytes,
                    concurrency=self._scheduler.concurrency,
                )
            )
            self._scheduler.run()
        except BaseException as error:  # noqa: BLE001 (raised by `wait`)
            self._failure = error
            self.cancel(f"{type(error).__name__}: {error}")
        try:
            if self._scheduler.aborted:
                self.cancel("on_error: abort")
            self._conclude(started)
        except BaseException as error:  # noqa: BLE001 (likewise)
            self._failure = self._failure or error
        finally:
            self._release()
            self._mailbox.close()
            self.ended.give()

    def _conclude(self, started: datetime) -> None:
        report = Report(
            files=self._scheduler.reports,
            output=self.plan.output,
            started=started,
            ended=now(),
            seconds=self._clock(),
            interrupted=self._interrupted,
            manifest_sha256=self.plan.manifest_sha256,
            earlier=self._still_there(self._scheduler.reports),
        )
        try:
            self._write_records(report)
        except Exception as error:  # noqa: BLE001 (whatever it is: the dumps are there)
            report = msgspec.structs.replace(report, receipt_error=as_failure(error, self._folder.path))
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

    def _still_there(self, files: Iterable[FileReport]) -> tuple[FileReport, ...]:
        """Return what earlier runs have made and this one has neither made anew nor kept."""
        made = {file.name for file in files if file.ok or file.inode}
        return tuple(file for name, file in self._earlier.items() if name not in made)

    def _write_records(self, report: Report) -> None:
        if self._receipt:
            # What an earlier list says of dumps that were replaced would find fault with those that replaced them.
            lists = {name: LISTS[file.digest.partition(":")[0]] for name, file in self._earlier.items() if file.digest}
            standing = {lists[file.name] for file in report.earlier if file.ok and file.name in lists}
            stale = dict.fromkeys(set(lists.values()) - standing, b"")
            self._folder.write_small({**stale, **digest_lists(report), RECEIPT: receipt(report, __version__)})
        if self._journal is not None:
            self._journal.remove()


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
    stop = Stop()
    return await in_thread(lambda: _prepare(what, options, stop.check), give_up=stop.request)


def _prepare(what: What, options: Options, check: Callable[[], None]) -> Plan:
    if isinstance(what, str | os.PathLike):
        try:
            path = as_path(what)
        except ValueError as error:
            raise ManifestError(Problem(key="manifest", message=str(error))) from error
        manifest, marks = read_manifest(path, check)
        return make_plan(manifest, marks, os.path.dirname(absolute(path)), options, check)
    if not isinstance(what, Manifest):
        if options.output is None:
            raise ManifestError(Problem(key="output", message="is missing: say where the dumps go"))
        what = Manifest(output=os.fsdecode(options.output), dumps=_dumps(what))
    marks = Marks(sha256=sha256(repr(what).encode(errors="surrogateescape")).hexdigest())
    return make_plan(what, marks, _working_folder(), options, check)


def _working_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # It was removed. Absolute paths need none; others fail by this name.
        return "/proc/self/cwd"


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
        for name in RESERVED:
            folder.hold(name)
        earlier = _find_earlier(plan, folder)
        folder.sweep()
        _check_names(plan, folder)
        run = Run(plan, folder, stop, earlier=earlier)
        # Last, for it replaces the journal of a run before: nothing may fail any more.
        head = Head(files=len(plan.dumps), started=now().isoformat(), manifest_sha256=plan.manifest_sha256)
        run.attach(Journal(folder, head, earlier.values()))
    except BaseException:
        folder.close()
        raise
    return run


def _check_names(plan: Plan, folder: Folder) -> None:
    own = (*sorted(RESERVED), JOURNAL, LOCK)
    same = clashes(folder, [*own, *(dump.name for dump in plan.dumps)])
    if same:
        raise ManifestError(
            *(
                Problem(
                    key="output",
                    message=f"{name} and {other}{', which asyncdump writes,' if other in own else ''} are one name "
                    f"to the filesystem of {folder.path}: give the dump another",
                )
                for name, other in same
            )
        )


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

    Leaving the block waits for the run to end; leaving it by an exception ends the run first. After the block no thread
    of the run is left, nothing of it is open or locked, and there is a report, whoever has cancelled this task and how
    often. A listener may be slow, or not listen at all: that neither slows the dumps nor lets memory grow.

    Args:
        what: the path of a manifest, a `Manifest`, or an iterable of `Dump`, which needs ``output``.
        overrides: see `Overrides`.

    Raises:
        ManifestError: it can't be carried out; nothing was written.
        DumpError: the output folder can't be created, another run is at work in it, too few files may be open, or no
            thread can be started.
    """
    made = await plan_all(what, **overrides)
    stop = Stop()
    run = await in_thread(lambda: _open_output(made, stop), Run.discard)
    async with running(run):
        yield run


@asynccontextmanager
async def running(run: Run) -> AsyncIterator[None]:
    """Have a run conducted beside a block. After the block it has ended, whatever was raised and whoever was cancelled.

    An exception of the block ends the run, and is raised by itself.
    """
    task = current_task()
    run.start()
    try:
        yield
    except BaseException as error:
        run.cancel()
        # A task that is destroyed can wait for nothing: the threads of the run end by themselves, and clean up.
        if not run.forked and (not isinstance(error, GeneratorExit) or current_task() == task):
            with suppress(Exception, anyio.get_cancelled_exc_class()):  # The caller's own error goes before later ones.
                await run.wait()
        raise
    await run.wait()


async def dump_all(what: What, *, on_event: Handler | None = None, **overrides: Unpack[Overrides]) -> Report:
    """Dump all files of a manifest and return the report of it.

    The failure of a file is in the report, and raised by `Report.raise_for_failures`. The event loop stays free: bytes
    are moved by threads. Cancelling ends the run within some 100 ms; finished dumps and the receipt stay.

    Args:
        what: the path of a manifest, a `Manifest`, or an iterable of `Dump`, which needs ``output``.
        on_event: called with each event, sync or async. An exception that it raises is logged, and it isn't called
            again: a dump outlives its listener. When the run has ended it has 10 seconds for each event that is left,
            then it is cancelled, which is logged too.
        overrides: see `Overrides`.

    Raises:
        ManifestError: it can't be carried out; nothing was written.
        DumpError: the output folder can't be created, another run is at work in it, or no thread can be started.
    """
    async with open_run(what, **overrides) as run:
        if on_event is not None:
            await listen(run, on_event)
    return run.report


async def listen(run: Run, handler: Handler) -> None:
    """Call a handler with each event of a run; once that has ended, it has `GRACE` for each that is left."""
    now = Host().time

    def hurry() -> None:
        scope.deadline = now() + GRACE

    with anyio.CancelScope() as scope:
        run.ended.then(hurry)
        try:
            async for event in run:
                if run.ended.given:
                    hurry()
                answer = handler(event)
                if inspect.isawaitable(answer):
                    await answer
        except BaseException as error:
            if not _is_the_handlers(error):
                raise
            failure = error
            await in_thread(lambda: logger().error("listener_failed", exc_info=failure))
    if scope.cancelled_caught:
        await in_thread(lambda: logger().error("listener_stuck", seconds=GRACE))


def _is_the_handlers(error: BaseException) -> bool:
    """Tell whether an error is the handler's own affair: a cancellation too, where nobody has cancelled this task."""
    if isinstance(error, Exception):
        return True
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # trio has another.
        return True
    return task is None or not task.cancelling()
