"""The library: a run that is awaited, one that is watched, and one that ends early."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from anyio.to_thread import run_sync
from blockbuster import BlockBuster, BlockingError, blockbuster_ctx
from files import GiB, KiB, MiB, busy_threads, digest_of, leftovers, noise, read
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncdump
from asyncdump import Dump, Event, FileFailed, FileFinished, FileStarted, Manifest, Progress, RunFinished, RunStarted
from asyncdump.engines import ENGINES, Engine, Route
from asyncdump.kernel.lane import Lane
from asyncdump.sinks.draft import Draft
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.values import Span

Main = Callable[[], Awaitable[Any]]

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
PATIENCE = 20
"""Seconds after which a test gives up what should have happened long ago."""

NAMES = [f"dump-{number}" for number in range(5)]
SIZES = [100, 0, 3 * MiB + 5, 4096, 2 * MiB]


def run_on(backend: str, main: Main) -> Any:
    name, options = BACKENDS[backend]

    async def patiently() -> Any:
        with anyio.fail_after(PATIENCE):
            return await main()

    return anyio.run(patiently, backend=name, backend_options=options)


@pytest.fixture(autouse=True)
def standard_logging() -> Iterator[None]:
    """Records go to the standard library's logger, whatever other tests have configured."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "dumps")


@pytest.fixture
def dumps(make) -> list[Dump]:
    return [Dump(source=make("tmpfs", noise(size, size)), name=name) for name, size in zip(NAMES, SIZES, strict=True)]


def check_dumps(folder: str) -> None:
    for name, size in zip(NAMES, SIZES, strict=True):
        assert read(os.path.join(folder, name)) == noise(size, size)
    assert leftovers(folder) == []


def exists(path: str) -> bool:
    return os.path.lexists(path)


def receipt_of(folder: str) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(read(os.path.join(folder, "receipt.json")))
    return receipt


# --- what is dumped --------------------------------------------------------------------------------------------------


async def test_the_path_of_a_manifest(dumps, tmp_path: Path) -> None:
    entries = "".join(f"  - {{source: '{dump.source}', name: {dump.name}}}\n" for dump in dumps)
    path = tmp_path / "manifest.yaml"
    path.write_text(f"version: 1\noutput: here\ndumps:\n{entries}")
    for what, output in ((str(path), "here"), (path, "there")):
        overrides: asyncdump.Overrides = {} if output == "here" else {"output": tmp_path / output}
        report = await asyncdump.dump_all(what, **overrides)
        assert report.ok
        assert report.output == str(tmp_path / output)
        check_dumps(report.output)


async def test_a_manifest(dumps, folder) -> None:
    assert (await asyncdump.dump_all(Manifest(output=folder, dumps=tuple(dumps)))).ok
    check_dumps(folder)


async def test_an_iterable_of_dumps(dumps, folder) -> None:
    assert (await asyncdump.dump_all((dump for dump in dumps), output=Path(folder))).ok
    check_dumps(folder)


async def test_an_iterable_of_dumps_needs_an_output(dumps) -> None:
    with pytest.raises(asyncdump.ManifestError) as raised:
        await asyncdump.dump_all(dumps)
    assert [problem.key for problem in raised.value.problems] == ["output"]


async def test_no_dump_is_no_run(folder) -> None:
    with pytest.raises(asyncdump.ManifestError) as raised:
        await asyncdump.dump_all([], output=folder)
    assert [problem.key for problem in raised.value.problems] == ["dumps"]
    assert not exists(folder)


async def test_what_is_wrong_is_told_before_anything_is_written(dumps, folder) -> None:
    wrong = [*dumps, Dump(source="/nowhere/a"), Dump(source=dumps[0].source, name="dump-1")]
    with pytest.raises(asyncdump.ManifestError) as raised:
        await asyncdump.dump_all(wrong, output=folder)
    assert {problem.key for problem in raised.value.problems} == {"dumps[5].source", "dumps[6].name"}
    assert not exists(folder)


async def test_an_output_folder_that_cannot_be_made(dumps, tmp_path: Path) -> None:
    plan = await asyncdump.plan_all(dumps, output=tmp_path / "dumps")
    assert os.listdir(tmp_path) == []
    assert (plan.output, plan.bytes, len(plan.dumps)) == (str(tmp_path / "dumps"), sum(SIZES), 5)
    with pytest.raises(asyncdump.AsyncdumpError):
        await asyncdump.dump_all(dumps, output="/proc/self/dumps")


async def test_the_report_is_what_is_on_disk(dumps, folder) -> None:
    report = await asyncdump.dump_all(dumps, output=folder, checksum="sha256")
    report.raise_for_failures()
    assert report.bytes == sum(SIZES)
    assert report.bytes_per_second == pytest.approx(report.bytes / report.seconds)
    assert report.started <= report.ended
    assert report.interrupted is None
    for file, dump, size in zip(report.files, dumps, SIZES, strict=True):
        assert (file.source, file.name, file.bytes, file.stored) == (dump.source, dump.name, size, size)
        assert file.path == os.path.join(folder, dump.name)
        assert file.digest == f"sha256:{digest_of(noise(size, size), 'sha256')}"
        assert (file.method, file.error, file.phase) == ("read", None, "done")
        assert 0 < file.seconds <= report.seconds
    receipt = receipt_of(folder)
    assert receipt["ok"]
    assert (receipt["bytes"], receipt["stored"]) == (report.bytes, report.stored)
    assert [file["digest"] for file in receipt["files"]] == [file.digest for file in report.files]
    assert len(read(os.path.join(folder, "SHA256SUMS")).splitlines()) == len(dumps)


# --- overrides -------------------------------------------------------------------------------------------------------


async def test_overrides_hold_for_all_files(dumps, folder) -> None:
    each = [Dump(source=dump.source, name=dump.name, method="read", checksum="blake3", durable=False) for dump in dumps]
    manifest = Manifest(output=folder, dumps=tuple(each), concurrency=2, on_error="abort")
    overrides: dict[str, Any] = {
        "output": f"{folder}-2",
        "method": "mmap",
        "checksum": "sha256",
        "durable": True,
        "concurrency": 3,
        "on_error": "continue",
    }
    plan = await asyncdump.plan_all(manifest, **overrides)
    assert (plan.output, plan.concurrency, plan.on_error) == (f"{folder}-2", 3, "continue")
    assert {(dump.method, dump.checksum, dump.durable) for dump in plan.dumps} == {("mmap", "sha256", True)}
    async with asyncdump.open_run(manifest, **overrides) as run:
        [started] = [event async for event in run if isinstance(event, RunStarted)]
    assert (started.output, started.concurrency, started.files, started.bytes) == (f"{folder}-2", 3, 5, sum(SIZES))
    assert {file.method for file in run.report.files} == {"mmap"}
    assert {str(file.digest).partition(":")[0] for file in run.report.files} == {"sha256"}
    check_dumps(f"{folder}-2")


async def test_without_overrides_the_manifest_holds(dumps, folder) -> None:
    each = [Dump(source=dump.source, name=dump.name, method="mmap", checksum="blake3", durable=False) for dump in dumps]
    plan = await asyncdump.plan_all(Manifest(output=folder, dumps=tuple(each), concurrency=2, on_error="abort"))
    assert (plan.output, plan.concurrency, plan.on_error) == (folder, 2, "abort")
    assert {(dump.method, dump.checksum, dump.durable) for dump in plan.dumps} == {("mmap", "blake3", False)}


async def test_durable_false_overrides_true(dumps, folder) -> None:
    plan = await asyncdump.plan_all(dumps, output=folder, durable=False)
    assert not any(dump.durable for dump in plan.dumps)


async def test_a_folder_in_use_needs_overwrite(dumps, folder) -> None:
    assert (await asyncdump.dump_all(dumps[:1], output=folder)).ok
    with pytest.raises(asyncdump.TargetExistsError, match=r"dump-0, receipt\.json"):
        await asyncdump.dump_all(dumps, output=folder)
    assert (await asyncdump.dump_all(dumps, output=folder, overwrite=True)).ok
    check_dumps(folder)
    assert len(receipt_of(folder)["files"]) == 5


@pytest.mark.parametrize(("on_error", "done"), [("continue", [False, True, True]), ("abort", [False, False, False])])
async def test_what_the_failure_of_one_means_for_the_others(on_error, done, make, folder) -> None:
    doomed, *others = (make("tmpfs", noise(size)) for size in (3 * MiB, 2 * MiB, MiB))
    dumps = [Dump(source=doomed, name="doomed", method="reflink"), *(Dump(source=other) for other in others)]
    report = await asyncdump.dump_all(dumps, output=folder, on_error=on_error, concurrency=1)
    assert [file.ok for file in report.files] == done
    assert isinstance(report.files[0].error, asyncdump.MethodRefusedError)
    assert (
        report.interrupted == receipt_of(folder)["interrupted"] == ("on_error: abort" if on_error == "abort" else None)
    )
    assert leftovers(folder) == []
    with pytest.raises(ExceptionGroup, match=f"{done.count(False)} .* 3"):
        report.raise_for_failures()


# --- handlers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_is_called_with_each_event(kind, backend, dumps, folder) -> None:
    events: list[Event] = []

    async def keep(event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        events.append(event)

    async def main() -> asyncdump.Report:
        return await asyncdump.dump_all(dumps, output=folder, on_event=keep if kind == "async" else events.append)

    report = run_on(backend, main)
    assert report.ok
    check_events(events, report)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_handler_that_raises_is_logged_and_dropped(kind, dumps, folder, caplog) -> None:
    calls: list[Event] = []

    def stumble(event: Event) -> None:
        calls.append(event)
        raise ZeroDivisionError

    async def stumble_later(event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        stumble(event)

    handler = stumble if kind == "sync" else stumble_later
    report = await asyncdump.dump_all(dumps, output=folder, on_event=handler)
    assert report.ok
    check_dumps(folder)
    assert len(calls) == 1
    [record] = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("asyncdump", "ERROR", "listener_failed")
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_slow_handler_neither_slows_the_run_nor_misses_a_life(backend, dumps, folder) -> None:
    """It doesn't return from its first event before the whole run is over: the receipt is written last."""
    events: list[Event] = []

    async def dawdle(event: Event) -> None:
        while not await anyio.Path(folder, "receipt.json").exists():
            await anyio.sleep(0.001)
        events.append(event)

    async def main() -> asyncdump.Report:
        return await asyncdump.dump_all(dumps, output=folder, on_event=dawdle)

    check_events(events, run_on(backend, main))


# --- watching --------------------------------------------------------------------------------------------------------


def check_events(events: list[Event], report: asyncdump.Report) -> None:
    """Check the promised order: a run begins and ends, and in between each file does."""
    first, *between, last = events
    assert isinstance(first, RunStarted)
    assert (first.at, first.files, first.output) == (0.0, len(report.files), report.output)
    assert isinstance(last, RunFinished)
    assert (last.files, last.failed, last.bytes) == (len(report.files), len(report.failures), report.bytes)
    assert last.interrupted == report.interrupted
    times = [event.at for event in events if not isinstance(event, Progress)]
    assert times == sorted(times)
    lives: dict[str, list[Event]] = defaultdict(list)
    for event in between:
        assert not isinstance(event, asyncdump.RunStarted | RunFinished)
        lives[event.name].append(event)
    assert lives.keys() == {file.name for file in report.files}
    for file in report.files:
        check_life(lives[file.name], file)


def check_life(life: list[Event], file: asyncdump.FileReport) -> None:
    *before, end = life
    assert isinstance(end, FileFinished if file.ok else FileFailed)
    assert end.source == file.source
    if isinstance(end, FileFinished):
        assert (end.bytes, end.stored, end.digest, end.method) == (file.bytes, file.stored, file.digest, file.method)
        assert before
    elif isinstance(end, FileFailed):
        assert (end.error, end.phase) == (file.error, file.phase)
    if before:
        started, *progress = before
        assert isinstance(started, FileStarted)
        assert (started.source, started.method) == (file.source, file.method)
        done = [event.done for event in progress if isinstance(event, Progress)]
        assert len(done) == len(progress)
        assert done == sorted(done)
        assert all(0 < some <= started.bytes for some in done)


@pytest.mark.parametrize("backend", BACKENDS)
def test_iterating_tells_every_life_in_order(backend, dumps, folder) -> None:
    events: list[Event] = []

    async def main() -> asyncdump.Report:
        async with asyncdump.open_run(dumps, output=folder) as run:
            async for event in run:
                events.append(event)
                if isinstance(event, RunFinished):
                    assert run.report.ok  # It is there as soon as the run has ended.
            assert receipt_of(folder)["ok"]
        return run.report

    report = run_on(backend, main)
    check_events(events, report)
    check_dumps(folder)


async def test_a_listener_may_come_late(dumps, folder) -> None:
    async with asyncdump.open_run(dumps, output=folder) as run:
        pass
    check_events([event async for event in run], run.report)


async def test_leaving_the_block_waits_for_the_run(dumps, folder) -> None:
    async with asyncdump.open_run(dumps, output=folder) as run:
        async for event in run:
            assert isinstance(event, RunStarted)
            break
    assert run.report.ok
    check_dumps(folder)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_at_once_do_not_meet(backend, dumps, folder) -> None:
    reports: dict[str, asyncdump.Report] = {}

    async def dump(output: str) -> None:
        reports[output] = await asyncdump.dump_all(dumps, output=output)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(2):
                tasks.start_soon(dump, f"{folder}-{number}")

    run_on(backend, main)
    assert len(reports) == 2
    for output, report in reports.items():
        assert report.ok
        assert report.output == output
        check_dumps(output)


async def test_hundreds_of_files(tmpfs: Path, folder_on) -> None:
    sources = tmpfs / "hundreds"
    sources.mkdir()
    for number in range(400):
        (sources / f"{number:03}").write_bytes(noise(number * 37, number))
    folder = folder_on("tmpfs").path
    events: list[Event] = []
    try:
        dump = Dump(source=f"{sources}/*", name="{index:03}-{name}")
        report = await asyncdump.dump_all([dump], output=folder, on_event=events.append)
    finally:
        shutil.rmtree(sources)
    report.raise_for_failures()
    check_events(events, report)
    for number in range(400):
        assert read(os.path.join(folder, f"{number:03}-{number:03}")) == noise(number * 37, number)
    assert len(os.listdir(folder)) == 402


# --- the event loop stays free ---------------------------------------------------------------------------------------


@contextmanager
def blocking_forbidden() -> Iterator[BlockBuster]:
    """Let any call that blocks the event loop raise."""
    with blockbuster_ctx() as guard:
        # Counting the open files reads /proc, which is in memory.
        guard.functions["os.listdir"].can_block_in("asyncdump/run/limits.py", "within_open_files")
        yield guard


@pytest.mark.parametrize("method", ["auto", "sendfile"])
@pytest.mark.parametrize("listening", [True, False])
def test_a_run_never_blocks_the_event_loop(listening, method, dumps, folder, tmp_path: Path) -> None:
    entries = "".join(f"  - {{source: '{dump.source}', name: {dump.name}}}\n" for dump in dumps)
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(f"version: 1\noutput: {folder}\ndumps:\n{entries}")
    events: list[Event] = []

    async def main() -> asyncdump.Report:
        with pytest.raises(BlockingError):
            os.stat(folder)  # The guard is awake.
        return await asyncdump.dump_all(manifest, method=method, on_event=events.append if listening else None)

    with blocking_forbidden():
        report = anyio.run(main)
    report.raise_for_failures()
    assert bool(events) is listening
    check_dumps(folder)


# --- a run that ends early -------------------------------------------------------------------------------------------


class Held:
    """An engine that lets some dumps wait at their first byte, in their threads, until they are let go."""

    def __init__(self, engine: Engine) -> None:
        self.method = engine.method
        self.span = engine.span
        self.sees_bytes = engine.sees_bytes
        self.refuses = engine.refuses
        self.load = engine.load
        self.names: set[str] = set()
        self._engine = engine
        self._arrived = threading.Semaphore(0)
        self._open = threading.Event()

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        if os.path.basename(route.sink.path) in self.names:
            self._arrived.release()
            assert self.wait()
        self._engine.store(route, span, lane, data)

    async def all_waiting(self) -> None:
        """Wait until each of the dumps has a thread that waits."""
        for _ in self.names:
            assert await run_sync(self._arrived.acquire, True, PATIENCE)  # noqa: FBT003 (acquire's own way)

    def wait(self) -> bool:
        return self._open.wait(PATIENCE)

    def let_go(self) -> None:
        self._open.set()


@pytest.fixture
def held(monkeypatch) -> Iterator[Held]:
    """Holds the dumps that are named ``held-...``."""
    engine = Held(ENGINES["read"])
    monkeypatch.setitem(ENGINES, "read", engine)
    yield engine
    engine.let_go()


HELD = 3
FREE = 3
LATER = 10


@pytest.fixture
def stuck(make, held: Held) -> list[Dump]:
    """Dumps of which three hang with half of them written, and a lane is left that finishes others meanwhile."""
    source = make("tmpfs", noise(6 * MiB))
    held.names = {f"held-{number}" for number in range(HELD)}
    return [
        *(Dump(source=source, name=name) for name in sorted(held.names)),
        *(Dump(source=source, name=f"free-{number}", length=5 * MiB) for number in range(FREE)),
        *(Dump(source=source, name=f"later-{number}", length=4 * MiB) for number in range(LATER)),
    ]


async def until_some_are_done(run: asyncdump.Run, held: Held) -> None:
    """Return when the largest are held and one that isn't has its name."""
    await held.all_waiting()
    with anyio.CancelScope() as scope:
        async for event in run:
            if isinstance(event, FileFinished):
                assert not event.name.startswith("held")
                scope.cancel()  # Ends the iteration where it would wait for more.


def check_what_is_left(folder: str, *, interrupted: str | None = "cancelled") -> None:
    """Finished dumps and the receipt are there, and the receipt says which; nothing else is, and no thread works."""
    assert busy_threads() == 0
    receipt = receipt_of(folder)
    assert receipt["interrupted"] == interrupted
    assert receipt["ok"] is False
    done = {file["name"] for file in receipt["files"] if file["error"] is None}
    assert "free-0" in done
    assert not any(name.startswith("held") for name in done)
    assert len(receipt["files"]) == HELD + FREE + LATER
    assert set(os.listdir(folder)) == {*done, "receipt.json", "XXH128SUMS"}
    for file in receipt["files"]:
        if file["name"] in done:
            assert read(os.path.join(folder, file["name"])) == noise(6 * MiB)[: file["bytes"]]
        else:
            assert file["error"]["type"] == "InterruptedDumpError"


@pytest.mark.parametrize("backend", BACKENDS)
def test_there_is_no_report_before_the_end(backend, stuck, held: Held, folder) -> None:
    async def main() -> asyncdump.Run:
        async with asyncdump.open_run(stuck, output=folder, concurrency=4) as run:
            await until_some_are_done(run, held)
            with pytest.raises(RuntimeError):
                _ = run.report
            held.let_go()
        return run

    run = run_on(backend, main)
    assert run.report.ok
    assert len(os.listdir(folder)) == len(stuck) + 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_is_cancelled(backend, stuck, held: Held, folder) -> None:
    events: list[Event] = []

    async def main() -> asyncdump.Run:
        async with asyncdump.open_run(stuck, output=folder, concurrency=4) as run:
            await until_some_are_done(run, held)
            run.cancel("no time")
            run.cancel("a second reason")
            held.let_go()
            events.extend([event async for event in run])
        return run

    run = run_on(backend, main)
    assert run.report.interrupted == "no time"
    assert isinstance(events[-1], RunFinished)
    ended = [event.name for event in events if isinstance(event, FileFailed)]
    assert sorted(ended) == sorted(file.name for file in run.report.failures)
    check_what_is_left(folder, interrupted="no time")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_scope_that_is_cancelled(backend, stuck, held: Held, folder) -> None:
    async def main() -> bool:
        with anyio.move_on_after(PATIENCE) as scope:
            async with asyncdump.open_run(stuck, output=folder, concurrency=4) as run:
                await until_some_are_done(run, held)
                scope.cancel()
                try:
                    await anyio.sleep_forever()
                finally:
                    held.let_go()
        return scope.cancelled_caught

    assert run_on(backend, main)
    check_what_is_left(folder)


@pytest.mark.parametrize("backend", ["asyncio", "uvloop"])
def test_a_scope_that_is_cancelled_from_a_handler(backend, stuck, held: Held, folder) -> None:
    async def main() -> bool:
        async def end_it(event: Event) -> None:
            if isinstance(event, FileFinished):
                await held.all_waiting()
                scope.cancel()
                try:
                    await anyio.sleep_forever()
                finally:
                    held.let_go()

        with anyio.CancelScope() as scope:
            await asyncdump.dump_all(stuck, output=folder, concurrency=4, on_event=end_it)
        return scope.cancelled_caught

    assert run_on(backend, main)
    check_what_is_left(folder)


async def test_a_timeout_of_asyncio(stuck, held: Held, folder) -> None:
    with pytest.raises(TimeoutError):  # noqa: PT012 (all of it belongs to the block)
        async with asyncio.timeout(None) as limit, asyncdump.open_run(stuck, output=folder, concurrency=4) as run:
            await until_some_are_done(run, held)
            limit.reschedule(0)
            try:
                await anyio.sleep_forever()
            finally:
                held.let_go()
    check_what_is_left(folder)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deadline_stops_the_threads(backend, tmpfs: Path, folder) -> None:
    """Zeros without end, of which nothing is written: to take their digest would take far longer than a test may."""
    source = tmpfs / "endless"
    with source.open("wb") as file:
        file.truncate(128 * GiB)

    async def main() -> float:
        began = anyio.current_time()
        with anyio.move_on_after(0.1):
            await asyncdump.dump_all([Dump(source=str(source))], output=folder)
        return anyio.current_time() - began

    try:
        assert run_on(backend, main) < 1.5
    finally:
        source.unlink()
    assert busy_threads() == 0
    assert os.listdir(folder) == ["receipt.json"]
    assert receipt_of(folder)["interrupted"] == "cancelled"


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_waits_to_be_made_durable_is_given_up(backend, make, held: Held, folder, monkeypatch) -> None:
    """While the first is being given its name, the second is whole and waits for its turn, and the third is moved."""
    source = make("tmpfs", noise(6 * MiB))
    sizes = {"first": 6 * MiB, "second": 5 * MiB, "held": 4 * MiB}
    dumps = [Dump(source=source, name=name, length=size) for name, size in sizes.items()]
    held.names = {"held"}
    publish = Folder.publish
    groups: list[list[str]] = []

    def publish_late(folder: Folder, sinks: Sequence[Draft], **options: Any) -> list[Any]:
        groups.append([sink.name for sink in sinks])
        assert held.wait()
        return publish(folder, sinks, **options)

    monkeypatch.setattr(Folder, "publish", publish_late)
    load = held.load

    def load_late(route: Route, span: Span, lane: Lane) -> memoryview | None:
        while os.path.basename(route.sink.path) == "second" and not groups:
            time.sleep(0.001)
        return load(route, span, lane)

    held.load = load_late

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with asyncdump.open_run(dumps, output=folder, concurrency=1):
                await held.all_waiting()
                scope.cancel()
                try:
                    await anyio.sleep_forever()
                finally:
                    held.let_go()

    run_on(backend, main)
    assert groups[0] == ["first"]
    errors = {file["name"]: file["error"] and file["error"]["type"] for file in receipt_of(folder)["files"]}
    assert errors == {"first": None, "second": "InterruptedDumpError", "held": "InterruptedDumpError"}
    assert set(os.listdir(folder)) == {"first", "receipt.json", "XXH128SUMS"}
    assert read(os.path.join(folder, "first")) == noise(6 * MiB)


class OwnError(Exception):
    pass


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("error", [OwnError("mine"), ExceptionGroup("mine", [OwnError()]), GeneratorExit()], ids=repr)
def test_an_exception_of_the_block_comes_out_as_itself(error, backend, stuck, held: Held, folder) -> None:
    async def main() -> None:
        async with asyncdump.open_run(stuck, output=folder, concurrency=4) as run:
            await until_some_are_done(run, held)
            held.let_go()
            raise error

    with pytest.raises(type(error)) as raised:
        run_on(backend, main)
    assert raised.value is error
    check_what_is_left(folder)


async def test_an_exception_after_the_end_changes_nothing(dumps, folder) -> None:
    runs: list[asyncdump.Run] = []
    with pytest.raises(OwnError):  # noqa: PT012 (all of it belongs to the block)
        async with asyncdump.open_run(dumps, output=folder) as run:
            runs.append(run)
            async for _ in run:
                pass
            raise OwnError
    assert runs[0].report.ok
    assert receipt_of(folder)["interrupted"] is None
    check_dumps(folder)


# --- any plan --------------------------------------------------------------------------------------------------------

SOURCE = noise(5 * MiB, 5)


@pytest.fixture(scope="module")
def place(tmpfs: Path) -> Iterator[Path]:
    """A folder with one source, that any number of runs may read from and dump into."""
    folder = tmpfs / "any-plan"
    folder.mkdir()
    (folder / "source").write_bytes(SOURCE)
    yield folder
    shutil.rmtree(folder)


methods = st.sampled_from(["auto", "read", "mmap", "sendfile", "reflink"])
checksums = st.sampled_from(["none", "xxh128", "blake3", "sha256"])
lengths = st.sampled_from([0, 1, 4095, 4096, 300 * KiB, 2 * MiB, 2 * MiB + 1, 5 * MiB])
entries = st.tuples(lengths, st.integers(0, 8192), methods, checksums, st.booleans())


@given(
    entries=st.lists(entries, min_size=1, max_size=24),
    concurrency=st.sampled_from([1, 2, 5, "auto"]),
    on_error=st.sampled_from(["continue", "abort"]),
    cancelled_at=st.none() | st.integers(0, 20),
    backend=st.sampled_from(sorted(BACKENDS)),
)
@settings(max_examples=60, deadline=None)
def test_any_run_tells_what_it_does(place: Path, entries, concurrency, on_error, cancelled_at, backend) -> None:
    dumps = [
        Dump(
            source=str(place / "source"),
            name=str(number),
            length=length,
            offset=offset,
            method=method,
            checksum=checksum,
            durable=durable,
        )
        for number, (length, offset, method, checksum, durable) in enumerate(entries)
    ]
    events: list[Event] = []

    async def main(folder: str) -> asyncdump.Report:
        async with asyncdump.open_run(dumps, output=folder, concurrency=concurrency, on_error=on_error) as run:
            async for event in run:
                events.append(event)
                if len(events) == cancelled_at:
                    run.cancel()
        return run.report

    with tempfile.TemporaryDirectory(dir=place) as folder:
        report = run_on(backend, lambda: main(folder))
        check_events(events, report)
        assert [file.name for file in report.files] == [dump.name for dump in dumps]
        done = {file.name for file in report.files if file.ok}
        assert {name for name in os.listdir(folder) if name.isdigit()} == done
        assert leftovers(folder) == []
        receipt = receipt_of(folder)
        assert {file["name"] for file in receipt["files"] if file["error"] is None} == done
        if report.interrupted is None:
            assert not any(isinstance(file.error, asyncdump.InterruptedDumpError) for file in report.files)
        for number, (length, offset, _, checksum, _) in enumerate(entries):
            if str(number) in done:
                data = SOURCE[offset : offset + length]
                assert read(os.path.join(folder, str(number))) == data
                digest = digest_of(data, checksum)
                assert report.files[number].digest == (digest and f"{checksum}:{digest}")
