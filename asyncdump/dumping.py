"""Dumping: `dump_all` awaits a run, `open_run` shows its events, `plan_all` returns what it would do."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Final, Unpack

from asyncdump.errors import ManifestError, Problem, absolute, opening_output
from asyncdump.manifest.keywords import checked, given, spell_out
from asyncdump.manifest.models import Dump, Manifest
from asyncdump.manifest.options import Overrides
from asyncdump.manifest.yaml import Marks, read_manifest
from asyncdump.plan.earlier import find_earlier
from asyncdump.plan.plan import Plan
from asyncdump.plan.planner import make_plan
from asyncdump.records.journal import Head, Journal
from asyncdump.records.report import Report, now
from asyncdump.run.opening import Handler, listen, running
from asyncdump.run.run import Run
from asyncdump.run.threads import in_thread
from asyncdump.sinks.output import open_store
from asyncdump.sinks.pipe import StdoutPlace
from asyncdump.sinks.place import Store
from asyncdump.text import as_path, shown
from asyncdump.vocabulary.names import JOURNAL, LOCK, RESERVED, name_complaint
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import STANDARD_OUTPUT

_STDOUT: Final = 1


What = str | os.PathLike[str] | Manifest | Plan | Dump | Iterable[Dump | str | os.PathLike[str]]
"""What to dump: the path of a manifest, a manifest, a plan, or sources (which need ``output``)."""


@spell_out
async def plan_all(what: What, **options: Unpack[Overrides]) -> Plan:
    """Return what `dump_all` would do with the same arguments; nothing is written.

    Args:
        what: as for `dump_all`. A `Plan` is checked and returned.
        **options

    Raises:
        ManifestError: it can't be done. All reasons are reported.
    """
    chosen, stop = checked(options), Stop()
    return await in_thread(lambda: _prepare(what, chosen, stop.check), give_up=stop.request)


def _prepare(what: What, options: Overrides, check: Callable[[], None]) -> Plan:
    match what:
        case Plan():
            return _runnable(what, options)
        case Manifest():
            manifest, marks, folder = what, _marks_of(what), _working_folder()
        case str() | os.PathLike():
            path = _path(what)
            manifest, marks = read_manifest(path, check)
            folder = os.path.dirname(absolute(path))
        case _:
            manifest = _manifest_of((what,) if isinstance(what, Dump) else what, options.get("output"))
            marks, folder = _marks_of(manifest), _working_folder()
    return make_plan(manifest, marks, folder, options, check)


def _runnable(plan: Plan, options: Overrides) -> Plan:
    """Return an existing plan, perhaps from another process, if it can be run as it is."""
    message = "a plan is run as it was made: pass this option to plan_all"
    problems = [Problem(key=name, message=message) for name in given(options)]
    problems += [
        Problem(key=f"dumps[{index}].name", message=complaint)
        for index, dump in enumerate(plan.dumps)
        if (complaint := name_complaint(dump.name))
    ]
    if len({dump.name for dump in plan.dumps}) < len(plan.dumps):
        problems.append(Problem(key="dumps", message="two dumps of the plan have the same name"))
    if problems:
        raise ManifestError(*problems)
    return plan


def _path(what: str | os.PathLike[str]) -> str:
    try:
        return as_path(what)
    except ValueError as error:
        raise ManifestError(Problem(key="manifest", message=str(error))) from error


def _manifest_of(sources: Iterable[Dump | str | os.PathLike[str]], output: str | os.PathLike[str] | None) -> Manifest:
    """Return a manifest for sources, each one a `Dump`, a path or a glob."""
    if output is None:
        raise ManifestError(Problem(key="output", message="is missing: specify where to write the dumps"))
    problems: list[Problem] = []
    dumps: list[Dump] = []
    given: Iterable[object] = sources
    for index, source in enumerate(given):
        if isinstance(source, Dump | str | os.PathLike):
            dumps.append(source if isinstance(source, Dump) else Dump(source))
        else:
            message = f"{shown(source)} is neither a Dump nor a path: write Dump(source, ...)"
            problems.append(Problem(key=f"dumps[{index}]", message=message))
    if problems:
        raise ManifestError(*problems)
    return Manifest(output=output, dumps=dumps)


def _marks_of(manifest: Manifest) -> Marks:
    return Marks(sha256=sha256(repr(manifest).encode(errors="surrogateescape")).hexdigest())


def _working_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # It was removed. Absolute paths don't need it, and relative ones fail with this name.
        return "/proc/self/cwd"


def _open_output(plan: Plan, stop: Stop) -> Run:
    """Lock the output, and read the records of earlier runs."""
    if plan.output == STANDARD_OUTPUT:
        return Run(plan, StdoutPlace(_STDOUT, stop.check), stop)
    with opening_output():
        store = open_store(plan.output)
    try:
        with opening_output():
            store.lock()
        for name in RESERVED:
            store.hold(name)
        earlier = find_earlier(plan, store)
        store.sweep()
        _check_names(plan, store)
        run = Run(plan, store, stop, store=store, earlier=earlier)
        # The last step, because it replaces the journal of an earlier run: nothing may fail after that.
        head = Head(files=len(plan.dumps), started=now().isoformat(), manifest_sha256=plan.manifest_sha256)
        with opening_output():
            run.attach(Journal(store, head, earlier.values()))
    except BaseException:
        store.close()
        raise
    return run


def _check_names(plan: Plan, store: Store) -> None:
    own = (*sorted(RESERVED), JOURNAL, LOCK)
    same = store.clashes([*own, *(dump.name for dump in plan.dumps)])
    if same:
        raise ManifestError(
            *(
                Problem(
                    key="output",
                    message=f"{name} and {other}{', which asyncdump writes,' if other in own else ''} are the same "
                    f"name on the filesystem of {store.path}",
                    remedy="choose a different name for the dump",
                )
                for name, other in same
            )
        )


@spell_out
@asynccontextmanager
async def open_run(what: What, **options: Unpack[Overrides]) -> AsyncIterator[Run]:
    """Start a run, and yield it as an asynchronous iterator of its events::

        async with asyncdump.open_run("manifest.yaml") as run:
            async for event in run:
                print(event)
        run.report.raise_for_failures()

    Leaving the block waits for the run to end; leaving it by an exception cancels the run first. After the block, no
    thread of the run is left, nothing of it is open or locked, and there is a report, regardless of who cancelled this
    task and how often. A listener may be slow, or not listen at all: the run neither slows down nor uses more memory.

    Args:
        what: as for `dump_all`.
        **options

    Raises:
        ManifestError: it can't be done; nothing was written. All reasons are reported.
        TargetExistsError: dumps of these names exist; nothing was written.
        BusyError: another run is running in the output directory.
        OutputError: the output directory can't be created, opened or written to.
        DumpError: the limit of open files is too low, or no thread can be started.
    """
    made = await plan_all(what, **options)
    stop = Stop()
    run = await in_thread(lambda: _open_output(made, stop), Run.discard)
    async with running(run):
        yield run


@spell_out
async def dump_all(what: What, *, on_event: Handler | None = None, **options: Unpack[Overrides]) -> Report:
    """Dump all files of a manifest, a plan or a list, and return the report.

    The failure of a file is in the report, and raised by `Report.raise_for_failures`. Threads move the bytes: the event
    loop stays free. Cancelling ends the run within about 100 ms; finished dumps and the receipt stay.

    Args:
        what: the path of a manifest, a `Manifest`, a `Plan`, a `Dump`, or an iterable of `Dump` and of paths or globs.
            The last two need ``output``. A plan is run as it was made, without options; its sources are checked again.
        on_event: called with each event, sync or async. If it raises an exception, that is logged, and it isn't called
            again: a dump outlives its listener. When the run has ended, it has 10 seconds for each event that is left,
            then it is cancelled, which is logged too.
        **options

    Raises:
        ManifestError: it can't be done; nothing was written. All reasons are reported.
        TargetExistsError: dumps of these names exist; nothing was written.
        BusyError: another run is running in the output directory.
        OutputError: the output directory can't be created, opened or written to.
        DumpError: the limit of open files is too low, or no thread can be started.
    """
    async with open_run(what, **options) as run:
        if on_event is not None:
            await listen(run, on_event)
    return run.report
