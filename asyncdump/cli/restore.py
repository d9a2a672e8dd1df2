"""The command ``restore``: its signals, its output, its exit code."""

from __future__ import annotations

from typing import Any

from asyncdump.cli.listener import RESTORING
from asyncdump.cli.output import excuse_reader
from asyncdump.cli.progress import new_listener
from asyncdump.cli.run import conduct, interruption, listen
from asyncdump.cli.signals import ending
from asyncdump.cli.tables import print_summary
from asyncdump.records.report import Report
from asyncdump.records.summary import summary_of
from asyncdump.restoring import open_restore


def main(what: str, to: str, progress: str, *, quiet: bool, **options: Any) -> int:
    """Restore the dumps of a run and return the exit code."""

    async def restore() -> Report:
        async with open_restore(what, to, **options) as restorer:
            with ending(restorer.run.cancel):
                await listen(restorer.run, new_listener(progress, RESTORING))
        return restorer.report

    excuse_reader()
    report = conduct(restore)
    if progress != "json":
        print_summary(summary_of(report), quiet=quiet)
    return interruption(report.interrupted) or int(not report.ok)
