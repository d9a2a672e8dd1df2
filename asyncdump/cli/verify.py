"""The command ``verify``: its signals, its output, its exit code."""

from __future__ import annotations

from typing import Any

from asyncdump.cli.listener import VERIFYING
from asyncdump.cli.output import excuse_reader
from asyncdump.cli.progress import new_listener
from asyncdump.cli.run import conduct, interruption, listen
from asyncdump.cli.signals import ending
from asyncdump.cli.tables import print_summary
from asyncdump.records.verification import Verification
from asyncdump.verifying import open_verify


def main(what: str, progress: str, *, as_json: bool, quiet: bool, **options: Any) -> int:
    """Verify the dumps of a run and return the exit code."""

    async def verify() -> Verification:
        async with open_verify(what, **options) as verifier:
            with ending(verifier.run.cancel):
                await listen(verifier.run, new_listener(progress, VERIFYING))
        return verifier.outcome

    if not as_json:
        excuse_reader()
    outcome = conduct(verify)
    if as_json:
        print(outcome.to_json())
    elif progress != "json":
        print_summary(outcome.summary, quiet=quiet)
    return interruption(outcome.interrupted) or int(not outcome.ok)
