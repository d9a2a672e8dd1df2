"""Dump through filters, and print the CPU seconds of this process without the filters: ``own MANIFEST OUTPUT``."""

from __future__ import annotations

import json
import resource
import sys

import uvloop

import asyncdump


async def dump(manifest: str, output: str) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    report = await asyncdump.dump_all(manifest, output=output, checksum="none", allow_filters=True)
    after = resource.getrusage(resource.RUSAGE_SELF)
    report.raise_for_failures()
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    return {"seconds": report.seconds, "user": user, "system": system}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(uvloop.run(dump(*sys.argv[1:]))))
