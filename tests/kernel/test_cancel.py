"""A run that is ended early ends soon, keeps what is done, removes what isn't, and tells which is which."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Literal

import anyio
import pytest
from files import GiB, MiB, busy_threads, leftovers, noise, read

import asyncdump

SOON = 0.5
"""Seconds; the promise is some 100 ms, and a machine that runs tests may be busy with other things."""

PIECE = noise(48 * MiB)
MANY = 64


@pytest.fixture
def many(make) -> list[asyncdump.Dump]:
    """3 GiB to write, out of one small source: more than any disk takes in the time that a test lets it run."""
    source = make("tmpfs", PIECE)
    return [asyncdump.Dump(source=source, name=f"dump-{n:02}") for n in range(MANY)]


def check_what_is_left(folder: str, report: asyncdump.Report) -> None:
    assert leftovers(folder) == []
    done = {file.name for file in report.files if file.ok}
    assert set(os.listdir(folder)) - {"receipt.json", "XXH128SUMS", "SHA256SUMS"} == done
    for name in done:
        assert read(os.path.join(folder, name)) == PIECE
    receipt = json.loads(read(os.path.join(folder, "receipt.json")))
    assert receipt["ok"] is False
    assert receipt["interrupted"] == report.interrupted
    assert {file["name"] for file in receipt["files"] if file["error"] is None} == done
    for file in report.files:
        assert file.ok or isinstance(file.error, asyncdump.InterruptedDumpError)


async def first(run: asyncdump.Run, kind: type[asyncdump.Event], **wanted: object) -> None:
    async for event in run:
        if isinstance(event, kind) and all(getattr(event, key) == value for key, value in wanted.items()):
            return


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.sample(1)
@pytest.mark.parametrize("checksum", ["none", "xxh128"])
@pytest.mark.parametrize("method", ["auto", "direct", "sendfile", "splice", "mmap", "read"])
async def test_a_run_that_is_cancelled(method, checksum, many, folder_on) -> None:
    folder = folder_on("ext4").path
    began = 0.0
    async with asyncdump.open_run(many, output=folder, method=method, checksum=checksum) as run:
        await first(run, asyncdump.FileFinished)
        began = time.perf_counter()
        run.cancel()
        run.cancel("a second reason")
    assert time.perf_counter() - began < SOON
    assert run.report.interrupted == "cancelled"
    assert not run.report.ok
    assert len(run.report.files) == MANY
    assert 1 <= len([file for file in run.report.files if file.ok]) < MANY
    check_what_is_left(folder, run.report)


@pytest.mark.parametrize("durable", [True, False])
async def test_a_scope_that_is_cancelled(durable, many, folder_on) -> None:
    folder = folder_on("ext4").path
    threads, opened = threading.active_count(), descriptors()
    finished = anyio.Event()
    outcomes: dict[str, type[asyncdump.Event]] = {}

    def watch(event: asyncdump.Event) -> None:
        if isinstance(event, asyncdump.FileFinished):
            outcomes[event.name] = type(event)
            finished.set()

    began = 0.0
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def end_it() -> None:
                nonlocal began
                await finished.wait()
                began = time.perf_counter()
                scope.cancel()

            tasks.start_soon(end_it)
            await asyncdump.dump_all(many, output=folder, on_event=watch, durable=durable)
    assert scope.cancelled_caught
    assert time.perf_counter() - began < SOON
    assert leftovers(folder) == []
    receipt = json.loads(read(os.path.join(folder, "receipt.json")))
    done = {file["name"] for file in receipt["files"] if file["error"] is None}
    assert receipt["interrupted"] == "cancelled"
    assert set(outcomes) <= done < {dump.name for dump in many}
    assert {name for name in os.listdir(folder) if name.startswith("dump-")} == done
    assert descriptors() <= opened
    # Idle worker threads belong to the event loop and end with it; none may still be at work.
    assert busy_threads() == 0
    assert threading.active_count() <= threads + 10


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_thread_outlives_its_loop(backend, many, folder_on) -> None:
    folder = folder_on("ext4").path

    async def main() -> None:
        with anyio.move_on_after(0.2):
            await asyncdump.dump_all(many, output=folder)

    before = time.perf_counter()
    anyio.run(main, backend=backend)
    assert time.perf_counter() - before < 0.2 + 2 * SOON
    assert busy_threads() == 0
    assert leftovers(folder) == []
    assert json.loads(read(os.path.join(folder, "receipt.json")))["interrupted"] == "cancelled"


@pytest.mark.parametrize("method", ["read", "mmap"])
async def test_one_enormous_file_is_given_up_soon(method, tmpfs: Path, folder_on) -> None:
    source = tmpfs / "enormous"
    with source.open("wb") as file:
        file.truncate(8 * GiB)
        file.write(noise(16 * MiB))
    folder = folder_on("ext4").path
    dump = asyncdump.Dump(source=str(source), name="dump", sparse="never", method=method)
    try:
        async with asyncdump.open_run([dump], output=folder, checksum="sha256") as run:
            await first(run, asyncdump.Progress)
            began = time.perf_counter()
            run.cancel()
        assert time.perf_counter() - began < SOON
    finally:
        source.unlink()
    check_what_is_left(folder, run.report)


@pytest.mark.slow
async def test_reading_back_is_given_up_soon(make, folder_on) -> None:
    folder = folder_on("ext4").path
    dump = asyncdump.Dump(source=make("tmpfs", noise(512 * MiB)), name="dump", method="mmap", checksum="sha256")
    async with asyncdump.open_run([dump], output=folder) as run:
        await first(run, asyncdump.Progress, phase="digest")
        began = time.perf_counter()
        run.cancel()
    assert time.perf_counter() - began < SOON
    [file] = run.report.files
    assert file.phase == "digest"
    check_what_is_left(folder, run.report)


async def test_an_exception_in_the_block_ends_the_run(many, folder_on) -> None:
    folder = folder_on("ext4").path
    runs: list[asyncdump.Run] = []
    began = 0.0

    async def stumble() -> None:
        nonlocal began
        async with asyncdump.open_run(many, output=folder) as run:
            runs.append(run)
            await first(run, asyncdump.FileFinished)
            began = time.perf_counter()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stumble()
    assert time.perf_counter() - began < SOON
    check_what_is_left(folder, runs[0].report)


async def test_cancelled_before_anything_began(many, folder_on) -> None:
    folder = folder_on("ext4").path
    async with asyncdump.open_run(many, output=folder) as run:
        run.cancel("changed my mind")
    assert run.report.interrupted == "changed my mind"
    check_what_is_left(folder, run.report)


# --- one file fails --------------------------------------------------------------------------------------------------


@pytest.fixture
def doomed(make) -> list[asyncdump.Dump]:
    """Three files of which the largest, and so the first, will be gone when it is its turn."""
    return [
        asyncdump.Dump(source=make("tmpfs", noise(size)), name=name)
        for name, size in (("gone", 5 * MiB), ("stays", 3 * MiB), ("stays too", MiB))
    ]


async def conduct(
    dumps: list[asyncdump.Dump], folder: str, on_error: Literal["continue", "abort"]
) -> tuple[asyncdump.Report, list[object]]:
    """Carry out a run whose first source disappears once the plan stands."""
    from asyncdump.run.opening import running
    from asyncdump.run.run import Run
    from asyncdump.sinks.folder import Folder

    plan = await asyncdump.plan_all(dumps, output=folder, on_error=on_error, concurrency=1)
    os.unlink(str(dumps[0].source))
    place = Folder(plan.output)
    run = Run(plan, place, store=place)
    async with running(run):
        pass
    return run.report, [event async for event in run]


async def test_one_failure_does_not_touch_the_others(doomed, folder_on) -> None:
    folder = folder_on("ext4").path
    report, events = await conduct(doomed, folder, "continue")
    assert [file.ok for file in report.files] == [False, True, True]
    assert report.interrupted is None
    assert isinstance(report.files[0].error, asyncdump.DumpError)
    assert sorted(os.listdir(folder)) == ["XXH128SUMS", "receipt.json", "stays", "stays too"]
    ends = [event.name for event in events if isinstance(event, asyncdump.FileFailed | asyncdump.FileFinished)]
    assert sorted(ends) == ["gone", "stays", "stays too"]
    with pytest.raises(ExceptionGroup, match=r"1 .*3"):
        report.raise_for_failures()


async def test_one_failure_ends_the_run_where_that_is_asked_for(doomed, folder_on) -> None:
    folder = folder_on("ext4").path
    report, _ = await conduct(doomed, folder, "abort")
    gone, *others = report.files
    assert isinstance(gone.error, asyncdump.DumpError)
    assert not isinstance(gone.error, asyncdump.InterruptedDumpError)
    assert report.interrupted == "on_error: abort"
    assert all(isinstance(file.error, asyncdump.InterruptedDumpError) for file in others)
    assert os.listdir(folder) == ["receipt.json"]
