"""A service: dumps beside other work, shows progress, and can be cancelled."""

import sys
from pathlib import Path
from typing import assert_never

import anyio

import asyncdump


def line(event: asyncdump.Event) -> str:
    match event:
        case asyncdump.RunStarted():
            return f"{event.files} files, {event.bytes} bytes, {event.concurrency} at once"
        case asyncdump.FileStarted(name=name, method=method):
            return f"{name} by {method}"
        case asyncdump.Progress(name=name, done=done, total=total, phase=phase):
            return f"{name}: {phase} {done} of {total}"
        case asyncdump.FileFinished() | asyncdump.FileKept():
            return f"{event.name}: {event.digest}"
        case asyncdump.FileRetried():
            return f"{event.name}: {event.error}, attempt {event.attempt} in {event.delay} s"
        case asyncdump.FileFailed(name=name, error=error, phase=phase):
            return f"{name}: {error} ({phase}), {error.hint}"
        case asyncdump.RunFinished():
            return f"{event.files - event.failed} of {event.files}"
        case _:
            assert_never(event)


async def dump(sources: list[Path], output: Path, lines: list[str]) -> asyncdump.Report:
    async with asyncdump.open_run(sources, output=output, compress=asyncdump.Zstd(level=1)) as run:
        async for event in run:
            lines.append(f"{event.at:.3f} {line(event)}")
            if isinstance(event, asyncdump.FileFailed):
                run.cancel(f"{event.name} failed")
    return run.report


async def main(folder: Path) -> None:
    lines: list[str] = []
    reports: list[asyncdump.Report] = []

    async def work() -> None:
        reports.append(await dump(sorted((folder / "sources").iterdir()), folder / "dumps", lines))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
    reports[0].raise_for_failures()
    assert lines[-1].endswith("3 of 3"), lines


anyio.run(main, Path(sys.argv[1]))
