"""Dump with one method and print the result: ``library MANIFEST OUTPUT METHOD CHECKSUM``."""

from __future__ import annotations

import json
import resource
import sys
from typing import cast

import uvloop

import asyncdump
from asyncdump.vocabulary.values import Checksum, Choice


async def dump(manifest: str, output: str, method: Choice, checksum: Checksum) -> dict[str, object]:
    """Return bytes, seconds and CPU seconds of the dump alone, or the errno of the first failure."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    report = await asyncdump.dump_all(manifest, output=output, method=method, checksum=checksum)
    after = resource.getrusage(resource.RUSAGE_SELF)
    if report.failures:
        error = report.failures[0].error
        return {"errno": error.errno if isinstance(error, asyncdump.DumpError) else None, "error": str(error)}
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"bytes": report.bytes, "seconds": report.seconds, "cpu": cpu}


def main() -> None:
    manifest, output, method, checksum = sys.argv[1:]
    sys.stdout.write(json.dumps(uvloop.run(dump(manifest, output, cast(Choice, method), cast(Checksum, checksum)))))


if __name__ == "__main__":
    main()
