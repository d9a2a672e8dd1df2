"""Dump while a heartbeat runs, and print how late each beat was: ``heart asyncio|uvloop MANIFEST OUTPUT COMPRESS``."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Literal, cast

import uvloop

import asyncdump

BEAT = 0.001


async def beat(lags: list[float]) -> None:
    while True:
        due = time.perf_counter() + BEAT
        await asyncio.sleep(BEAT)
        lags.append(time.perf_counter() - due)


async def dump(manifest: str, output: str, compress: Literal["none", "zstd", "lz4"]) -> dict[str, object]:
    """Return the lags in seconds, first of an idle second and then during the dump, and the cost of the dump."""
    idle: list[float] = []
    busy: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        heart = tasks.create_task(beat(idle))
        await asyncio.sleep(1)
        heart.cancel()
        heart = tasks.create_task(beat(busy))
        report = await asyncdump.dump_all(manifest, output=output, compress=compress)
        heart.cancel()
    report.raise_for_failures()
    return {"idle": idle, "busy": busy, "seconds": report.seconds, "bytes": report.bytes}


def main() -> None:
    loop, manifest, output, compress = sys.argv[1:]
    run = uvloop.run if loop == "uvloop" else asyncio.run
    sys.stdout.write(json.dumps(run(dump(manifest, output, cast(Literal["none", "zstd", "lz4"], compress)))))


if __name__ == "__main__":
    main()
