"""A run on the command line: signals, the listener, the exit code."""

from __future__ import annotations

import signal

import anyio
import msgspec

from asyncdump.cli.progress import Listener, new_listener
from asyncdump.cli.tables import print_plan, print_summary
from asyncdump.plan import Options, Plan
from asyncdump.report import Report
from asyncdump.run import Run, open_run, plan_all

_EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def wet(manifest: str, options: Options, progress: str, *, quiet: bool) -> int:
    """Dump, and return the exit code."""

    async def dump() -> Report:
        async with open_run(manifest, **msgspec.structs.asdict(options)) as run, anyio.create_task_group() as tasks:
            tasks.start_soon(_heed_signals, run)
            await _listen(run, new_listener(progress))
            tasks.cancel_scope.cancel()
        return run.report

    report = anyio.run(dump, backend_options={"use_uvloop": True})
    if progress == "json":
        return _exit_code(report)
    print_summary(report, quiet=quiet)
    return _exit_code(report)


def dry(manifest: str, options: Options) -> int:
    """Print the plan, and return the exit code."""
    from asyncdump.finding import expected_methods

    async def make() -> Plan:
        return await plan_all(manifest, **msgspec.structs.asdict(options))

    made = anyio.run(make)
    print_plan(made, expected_methods(made.dumps, made.output))
    return 0


def _exit_code(report: Report) -> int:
    return _EXIT_CODES.get(report.interrupted or "", 0 if report.ok else 1)


async def _listen(run: Run, listener: Listener) -> None:
    with listener:
        async for event in run:
            listener.tell(event)


async def _heed_signals(run: Run) -> None:
    """End the run on SIGINT and SIGTERM: in order, and within some 100 ms."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            run.cancel(signal.Signals(number).name)
