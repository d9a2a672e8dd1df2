"""The command ``verify``: its signals, its output, its exit code."""

from __future__ import annotations

from typing import Any

import msgspec

from asyncdump.cli.columns import fill, seconds
from asyncdump.cli.listener import VERIFYING
from asyncdump.cli.output import excuse_reader
from asyncdump.cli.progress import new_listener
from asyncdump.cli.run import conduct, interruption, listen
from asyncdump.cli.signals import ending
from asyncdump.cli.tables import complain, count, print_lines
from asyncdump.text import text
from asyncdump.verifying import FileVerdict, Verification, open_verify
from asyncdump.vocabulary.size import format_size

_MOST = 20
_SHOWN = 3


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
        print(msgspec.json.format(msgspec.json.encode(_record(outcome)), indent=1).decode())
    elif progress != "json":
        how = "found as their sources are, by" if options["against_source"] else "proved whole by"
        _print(outcome, how, quiet=quiet)
    return interruption(outcome.interrupted) or int(not outcome.ok)


def _print(outcome: Verification, how: str, *, quiet: bool) -> None:
    whole = [file for file in outcome.files if file.verdict == "ok"]
    if not quiet:
        rate = f"{format_size(outcome.bytes / max(outcome.seconds, 1e-6))}/s"
        print_lines(
            f"{len(whole)} of {count(len(outcome.files) + outcome.unrecorded, 'dump')} {how} "
            f"{text(outcome.receipt)}: {format_size(outcome.bytes)} in {seconds(outcome.seconds)}, {rate}"
        )
        if outcome.strays:
            more = len(outcome.strays) - _SHOWN
            names = ", ".join(map(text, outcome.strays[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
            print_lines(*fill(f"Beside them, unknown to it: {names}"))
    for file in outcome.failures[:_MOST]:
        complain(f"{file.verdict}: {file.name}: {file.message}")
        if file.hint:
            complain(f"  {file.hint}")
    if len(outcome.failures) > _MOST:
        complain(f"and {len(outcome.failures) - _MOST} more: --json tells of all")
    if outcome.unrecorded:
        complain(f"{count(outcome.unrecorded, 'dump')} not made by the last run; go on with it by --resume")
    if outcome.interrupted:
        complain(f"ended early by {outcome.interrupted}")


def _record(outcome: Verification) -> dict[str, Any]:
    return {
        "ok": outcome.ok,
        "receipt": text(outcome.receipt),
        "interrupted": outcome.interrupted,
        "seconds": round(outcome.seconds, 6),
        "bytes": outcome.bytes,
        "unrecorded": outcome.unrecorded,
        "strays": [text(name) for name in outcome.strays],
        "files": [_file(file) for file in outcome.files],
    }


def _file(file: FileVerdict) -> dict[str, Any]:
    values = msgspec.structs.asdict(file)
    shown = {name: text(values[name]) for name in ("name", "path", "message", "hint")}
    return {**values, **shown, "seconds": round(file.seconds, 6)}
