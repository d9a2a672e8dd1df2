"""The command without a name, which runs a manifest: its signals, its listener, its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from signal import Signals
from typing import Any, Final, TypeVar

import anyio

from asyncdump.cli.listener import Listener
from asyncdump.cli.output import check_stdout, dumping, excuse_reader
from asyncdump.cli.progress import new_listener
from asyncdump.cli.signals import ending, exit_code
from asyncdump.cli.tables import complain, print_lines, print_summary
from asyncdump.dumping import open_run, plan_all
from asyncdump.errors import explain
from asyncdump.manifest.options import Overrides
from asyncdump.plan.plan import Plan
from asyncdump.records.report import Report
from asyncdump.records.summary import summary_of
from asyncdump.run.run import Run
from asyncdump.vocabulary.values import STANDARD_OUTPUT

_DESCRIPTORS: Final = 16
"""The number of descriptors that an event loop and the threads next to it open."""

Outcome = TypeVar("Outcome")


def wet(manifest: str, options: Overrides, progress: str, *, quiet: bool) -> int:
    """Dump the files of a manifest and return the exit code."""

    async def dump() -> Report:
        async with open_run(manifest, **options) as run:
            if run.plan.output == STANDARD_OUTPUT:
                check_stdout()
            with ending(run.cancel), _beside(run.plan.output):
                await listen(run, new_listener(progress))
        return run.report

    excuse_reader()
    report = conduct(dump)
    if progress == "json":
        if report.receipt_error is not None:  # No event contains it.
            complain(f"the receipt could not be written: {report.receipt_error}")
        return _exit_code(report)
    with _beside(report.output):
        print_summary(summary_of(report), quiet=quiet)
    return _exit_code(report)


def _beside(output: str) -> AbstractContextManager[object]:
    """Print on stderr within the block if the dump itself goes to stdout."""
    return redirect_stdout(sys.stderr) if output == STANDARD_OUTPUT else nullcontext()


def dry(manifest: str, options: Overrides) -> int:
    """Print the plan of a manifest and return the exit code."""
    from asyncdump.plan.summary import summary_of
    from asyncdump.probing import expected_methods

    async def make() -> Plan:
        return await plan_all(manifest, **options)

    made = conduct(make)
    print_summary(summary_of(made, expected_methods(made.dumps, made.output)))
    print_lines("A dry run: nothing was written.")
    return 0


def conduct(function: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
    """Run an async function to its end and return its result.

    Raises:
        DumpError: too few descriptors are left. This is tried first, because an event loop that runs out of them while
            it starts prints a traceback.
    """
    taken: list[int] = []
    try:
        with explain("open", "an event loop"):
            taken += (os.dup(0) for _ in range(_DESCRIPTORS))
    finally:
        for fd in taken:
            os.close(fd)
    return anyio.run(function, backend_options={"use_uvloop": True})


def _exit_code(report: Report) -> int:
    return interruption(report.interrupted) or int(not report.ok)


def interruption(reason: str | None) -> int:
    """Return the exit code of a run that was interrupted by a signal, or 0."""
    number = Signals.__members__.get(reason or "")
    return exit_code(number) if number else 0


async def listen(run: Run, listener: Listener) -> None:
    """Pass each event to a listener when it is ready for one; a slow reader of its output holds up nothing else."""
    with dumping(), listener:
        async for event in run:
            listener.tell(event)
            await listener.ready()
