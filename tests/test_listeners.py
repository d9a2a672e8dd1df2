"""Who listens to a run, and how: none of them can hold it up, and none hangs."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from files import MiB, leftovers, noise

import asyncdump
import asyncdump.run.opening
from asyncdump.errors import DumpError
from asyncdump.records.journal import Head, Journal
from asyncdump.run.events import Event, FileFailed, FileFinished, FileRetried, FileStarted, RunFinished
from asyncdump.run.mailbox import Mailbox
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.names import JOURNAL

PATIENCE = 20.0


@pytest.fixture
def dumps(make) -> list[asyncdump.Dump]:
    source = make("tmpfs", noise(2 * MiB))
    return [asyncdump.Dump(source=source, name=f"dump-{n}") for n in range(8)]


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "dumps")


def retried(name: str, attempt: int) -> FileRetried:
    return FileRetried(at=0, name=name, error=DumpError("no room"), attempt=attempt, delay=1)


def failed(name: str) -> FileFailed:
    return FileFailed(at=0, name=name, source=name, error=DumpError("no room"), phase="move")


# --- the mailbox ------------------------------------------------------------------------------------------------------


async def test_retries_are_the_latest_of_each_file_in_its_place() -> None:
    mailbox = Mailbox()
    started = FileStarted(at=0, name="a", source="a", kind="tmpfs", bytes=1, method="read")
    mailbox.put(started)
    for attempt in range(1, 1001):
        mailbox.put(retried("a", attempt))
        mailbox.put(retried("b", attempt))
    mailbox.put(failed("a"))
    assert len(mailbox._events) == 4
    assert await anext(aiter(mailbox)) == started
    mailbox.close()
    told = [event async for event in mailbox]
    assert [(event.name, event.attempt) for event in told if isinstance(event, FileRetried)] == [
        ("a", 1000),
        ("b", 1000),
    ]
    assert isinstance(told[-1], FileFailed)


async def test_a_second_listener_is_refused_and_the_first_goes_on() -> None:
    mailbox = Mailbox()
    heard: list[Event] = []

    async def listen() -> None:
        heard.extend([event async for event in mailbox])

    last = failed("a")
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="listener"):
                aiter(mailbox)
            mailbox.put(last)
            mailbox.close()
    assert heard == [last]


async def test_so_is_one_while_the_first_is_busy_with_an_event() -> None:
    mailbox = Mailbox()
    for name in "abc":
        mailbox.put(failed(name))
    first = aiter(mailbox)
    await anext(first)
    with pytest.raises(RuntimeError, match="listener"):
        aiter(mailbox)
    assert (await anext(first)).name == "b"  # type: ignore[union-attr]
    del first
    assert (await anext(aiter(mailbox))).name == "c"  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_listener_whose_wait_was_cancelled_makes_way_for_another(backend) -> None:
    async def main() -> None:
        mailbox = Mailbox()
        left = aiter(mailbox)
        with anyio.move_on_after(0) as scope:
            await anext(left)
        assert scope.cancelled_caught
        first = aiter(mailbox)
        with pytest.raises(RuntimeError, match="listener"):
            await anext(left)
        mailbox.put(failed("a"))
        assert await anext(first)

    anyio.run(main, backend=backend)


async def test_a_listener_that_stumbles_makes_way_for_another() -> None:
    mailbox = Mailbox()
    for name in "abc":
        mailbox.put(failed(name))
    mailbox.close()

    async def stumble() -> None:
        async for _ in mailbox:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        await stumble()
    assert [event.name async for event in mailbox] == ["b", "c"]  # type: ignore[union-attr]
    assert caught.traceback


async def test_after_the_end_any_iteration_ends_at_once(dumps, output) -> None:
    async with asyncdump.open_run(dumps, output=output) as run:
        first = aiter(run)
        assert [type(event) async for event in first][-1] is RunFinished
        with anyio.fail_after(PATIENCE):
            assert [event async for event in run] == []
            assert [event async for event in first] == []
    with anyio.fail_after(PATIENCE):
        assert [event async for event in run] == []


async def test_two_listeners_of_one_run(dumps, output) -> None:
    refused = []

    async def listen(run: asyncdump.Run) -> None:
        try:
            async for _ in run:
                await anyio.sleep(0)
        except RuntimeError as error:
            refused.append(error)

    with anyio.fail_after(PATIENCE):
        async with asyncdump.open_run(dumps, output=output) as run, anyio.create_task_group() as tasks:
            tasks.start_soon(listen, run)
            tasks.start_soon(listen, run)
    assert len(refused) == 1
    assert run.report.ok


# --- handlers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_handler_that_never_returns(backend, dumps, output, monkeypatch, caplog) -> None:
    monkeypatch.setattr(asyncdump.run.opening, "GRACE", 0.2)
    calls = []

    async def handler(event: Event) -> None:
        calls.append(event)
        if isinstance(event, FileFinished):
            await anyio.sleep_forever()

    async def main() -> asyncdump.Report:
        with anyio.fail_after(PATIENCE):
            return await asyncdump.dump_all(dumps, output=output, on_event=handler)

    assert anyio.run(main, backend=backend).ok
    assert sum(isinstance(event, FileFinished) for event in calls) == 1
    assert [record.msg.split()[0] for record in caplog.records] == ["listener_stuck"]


async def test_a_slow_handler_is_told_all_of_it(dumps, output, monkeypatch) -> None:
    """The grace is that of each event."""
    monkeypatch.setattr(asyncdump.run.opening, "GRACE", 0.5)
    calls = []

    async def handler(event: Event) -> None:
        await anyio.sleep(0.05)
        calls.append(event)

    report = await asyncdump.dump_all(dumps, output=output, on_event=handler)
    assert report.ok
    assert isinstance(calls[-1], RunFinished)
    assert sum(isinstance(event, FileFinished) for event in calls) == len(dumps)


@pytest.mark.parametrize(
    "stumble",
    [
        asyncio.CancelledError,
        RecursionError,
        StopAsyncIteration,
        GeneratorExit,
        MemoryError,
    ],
)
@pytest.mark.parametrize("awaited", [True, False])
async def test_what_a_handler_raises_is_its_own_affair(stumble, awaited, dumps, output, caplog) -> None:
    def handler(event: Event) -> Any:
        error = stumble()
        if not awaited:
            raise error

        async def answer() -> None:
            raise error

        return answer()

    expected = pytest.raises(GeneratorExit) if isinstance(stumble(), GeneratorExit) else anyio.fail_after(PATIENCE)
    with expected:
        assert (await asyncdump.dump_all(dumps, output=output, on_event=handler)).ok
        assert [record.msg.split()[0] for record in caplog.records] == ["listener_failed"]
    assert leftovers(output) == []


async def test_a_handler_that_awaits_a_cancelled_future(dumps, output) -> None:
    async def handler(event: Event) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    assert (await asyncdump.dump_all(dumps, output=output, on_event=handler)).ok
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_ends_the_run_first(error, dumps, output) -> None:
    def handler(event: Event) -> None:
        raise error

    with pytest.raises(error):
        asyncio.run(asyncdump.dump_all(dumps, output=output, on_event=handler))
    assert leftovers(output) == []
    assert not any(thread.name == "asyncdump" for thread in threading.enumerate())


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_cancel_from_another_thread(make, output) -> None:
    source = make("tmpfs", noise(64 * MiB))
    dumps = [asyncdump.Dump(source=source, name=f"dump-{n}") for n in range(64)]
    async with asyncdump.open_run(dumps, output=output) as run:
        thread = threading.Thread(target=run.cancel, args=("another thread says so",))
        thread.start()
    thread.join()
    assert run.report.interrupted == "another thread says so"
    assert not run.report.ok
    assert leftovers(output) == []


async def test_two_runs_into_one_folder(dumps, output) -> None:
    """One of them is refused, and leaves the other alone."""
    outcomes: list[Any] = []

    async def dump() -> None:
        try:
            outcomes.append(await asyncdump.dump_all(dumps, output=output))
        except asyncdump.AsyncdumpError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(dump)
    reports = [each for each in outcomes if isinstance(each, asyncdump.Report)]
    assert len(reports) == 1
    assert reports[0].ok
    assert len(outcomes) == 5
    assert leftovers(output) == []
    assert (await asyncdump.verify_all(output)).ok


async def test_a_journal_of_a_run_that_made_nothing_refuses_nobody(dumps, output) -> None:
    folder = Folder(output)
    Journal(folder, Head(files=8)).close()
    folder.close()
    (await asyncdump.dump_all(dumps, output=output)).raise_for_failures()
    assert not os.path.exists(os.path.join(output, JOURNAL))


async def test_a_journal_of_a_run_that_made_something_does(dumps, output) -> None:
    report = await asyncdump.dump_all(dumps, output=output)
    folder = Folder(output)
    journal = Journal(folder, Head(files=8))
    journal.append(report.files[:1])
    journal.close()
    folder.close()
    for name in os.listdir(output):
        if name != JOURNAL:
            os.unlink(os.path.join(output, name))
    with pytest.raises(asyncdump.ManifestError, match="journal"):
        await asyncdump.dump_all(dumps, output=output)


async def test_a_run_that_never_began_leaves_no_journal(dumps, output, monkeypatch) -> None:
    def refuse(*_: Any) -> None:
        raise DumpError("no thread can be started", operation="clone")

    monkeypatch.setattr("asyncdump.run.run.start", refuse)
    with pytest.raises(DumpError, match="no thread"):
        await asyncdump.dump_all(dumps, output=output)
    assert os.listdir(output) == []
