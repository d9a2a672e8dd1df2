"""A run in a separate process, to be traced by strace: its argument is JSON, and so is its last line."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any

import anyio

import asyncdump
from asyncdump.run.run import Run


def say(event: asyncdump.Event) -> None:
    if isinstance(event, asyncdump.FileFinished):
        os.write(1, f"finished {event.name}\n".encode())


def spare_the_receipt() -> None:
    """Use up the fault of the first pwritev2(2) before the receipt is written: strace counts each thread separately."""
    write = Run._write_records

    def write_late(run: Run, report: asyncdump.Report) -> None:
        with open(os.devnull, "wb") as nothing, suppress(OSError):
            os.pwritev(nothing.fileno(), [b"x"], 0)
        write(run, report)

    Run._write_records = write_late  # type: ignore[method-assign, assignment]


async def run(dumps: list[dict[str, Any]], options: dict[str, Any]) -> None:
    if options.pop("spare_the_receipt", False):
        spare_the_receipt()
    report = await asyncdump.dump_all([asyncdump.Dump(**dump) for dump in dumps], on_event=say, **options)
    outcome = {
        "ok": report.ok,
        "errors": {file.name: str(file.error) if file.error else None for file in report.files},
        "types": {file.name: type(file.error).__name__ for file in report.files},
        "bad": {file.name: [[bad.offset, bad.length, bad.errno] for bad in file.bad] for file in report.files},
        "receipt_error": str(report.receipt_error) if report.receipt_error else None,
    }
    os.write(1, json.dumps(outcome).encode())


if __name__ == "__main__":
    anyio.run(run, *json.loads(sys.argv[1]))
