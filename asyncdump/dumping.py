"""Dumping: `dump_all` awaits a run, `open_run` watches it, `plan_all` says what it would do."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Final, Unpack

from asyncdump.errors import ManifestError, Problem, absolute
from asyncdump.manifest.models import Dump, Manifest
from asyncdump.manifest.options import Options, Overrides
from asyncdump.manifest.yaml import Marks, read_manifest
from asyncdump.plan.earlier import find_earlier
from asyncdump.plan.plan import Plan
from asyncdump.plan.planner import make_plan
from asyncdump.records.journal import Head, Journal
from asyncdump.records.report import Report, now
from asyncdump.run.opening import Handler, listen, running
from asyncdump.run.run import Run
from asyncdump.run.threads import in_thread
from asyncdump.sinks.clash import clashes
from asyncdump.sinks.folder import Folder
from asyncdump.sinks.pipe import Outlet
from asyncdump.text import as_path
from asyncdump.vocabulary.names import JOURNAL, LOCK, RESERVED
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import STANDARD_OUTPUT

_STDOUT: Final = 1


What = str | os.PathLike[str] | Manifest | Iterable[Dump]
"""What is to be dumped: the path of a manifest, a manifest, or dumps (which need ``output``)."""


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
        earlier = find_earlier(plan, folder)
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
