"""The mailbox: a listener may be as slow as it likes, and is told all that matters in its order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncdump.errors import DumpError
from asyncdump.run.events import Event, FileFailed, FileFinished, FileStarted, Progress, RunFinished, RunStarted
from asyncdump.run.mailbox import Mailbox

RUN_STARTED = RunStarted(at=0, output="/dumps", files=3, bytes=300, concurrency=2)
RUN_FINISHED = RunFinished(at=9, files=3, failed=0, bytes=300, seconds=9, interrupted=None)


def started(name: str) -> FileStarted:
    return FileStarted(at=1, name=name, source=f"/{name}", kind="tmpfs", bytes=100, method="read")


def progress(name: str, done: int) -> Progress:
    return Progress(at=2, name=name, done=done, total=100, phase="move")


def finished(name: str) -> FileFinished:
    return FileFinished(
        at=3, name=name, source=f"/{name}", bytes=100, stored=100, seconds=1, method="read", digest=None
    )


def failed(name: str) -> FileFailed:
    return FileFailed(at=3, name=name, source=f"/{name}", error=DumpError("it broke"), phase="move")


async def drain(mailbox: Mailbox) -> list[Event]:
    return [event async for event in mailbox]


async def test_progress_is_the_latest_of_each_file() -> None:
    mailbox = Mailbox()
    for done in range(100):
        mailbox.put(progress("a", done))
        mailbox.put(progress("b", 2 * done))
    mailbox.close()
    assert await drain(mailbox) == [progress("a", 99), progress("b", 198)]


async def test_the_others_are_kept_in_their_order() -> None:
    mailbox = Mailbox()
    events: list[Event] = [RUN_STARTED, started("a"), started("b"), failed("a"), finished("b"), RUN_FINISHED]
    for event in events:
        mailbox.put(event)
    mailbox.close()
    assert await drain(mailbox) == events


@pytest.mark.parametrize("end", [finished, failed])
async def test_progress_is_forgotten_when_its_file_has_ended(end) -> None:
    mailbox = Mailbox()
    last = end("a")
    for event in (progress("a", 1), progress("b", 1), last):
        mailbox.put(event)
    mailbox.close()
    assert await drain(mailbox) == [last, progress("b", 1)]


async def test_what_waits_grows_with_the_files_only() -> None:
    """Nobody listens to a run of ten files that tells of its progress ten thousand times."""
    names = [str(number) for number in range(10)]
    mailbox = Mailbox()
    for name in names:
        mailbox.put(started(name))
    for done in range(10_000):
        mailbox.put(progress(names[done % 10], done))
    mailbox.close()
    assert len(await drain(mailbox)) == 2 * len(names)


async def test_a_listener_that_stops_may_go_on_later() -> None:
    mailbox = Mailbox()
    events: list[Event] = [RUN_STARTED, started("a"), finished("a")]
    for event in events:
        mailbox.put(event)
    async for heard in mailbox:
        assert heard == RUN_STARTED
        break
    mailbox.close()
    assert await drain(mailbox) == [started("a"), finished("a")]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_listener_that_waits_is_woken_by_each_event(backend) -> None:
    events: list[Event] = [RUN_STARTED, started("a"), progress("a", 1), progress("a", 2), finished("a"), RUN_FINISHED]
    heard: list[Event] = []

    async def main() -> None:
        mailbox = Mailbox()

        async def listen() -> None:
            heard.extend(await drain(mailbox))
            heard_all.set()

        heard_all = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            for event in events:
                await anyio.wait_all_tasks_blocked()  # Now it waits for news.
                mailbox.put(event)
            await anyio.wait_all_tasks_blocked()
            assert not heard_all.is_set()
            mailbox.close()
            with anyio.fail_after(5):
                await heard_all.wait()

    anyio.run(main, backend=backend)
    assert heard == events


# --- any run, any listener -------------------------------------------------------------------------------------------

GET = None


@st.composite
def plays(draw: st.DrawFn) -> list[Event | None]:
    """Draw the events of a run of some files, interleaved, with gets wherever the listener finds the time."""
    lives: list[list[Event]] = []
    for name in "abcd"[: draw(st.integers(1, 4))]:
        steps = draw(st.integers(0, 5))
        end = finished(name) if draw(st.booleans()) else failed(name)
        lives.append([started(name), *(progress(name, done + 1) for done in range(steps)), end])
    play: list[Event | None] = [RUN_STARTED]
    while lives:
        if draw(st.booleans()):
            play.append(GET)
        life = draw(st.sampled_from(lives))
        play.append(life.pop(0))
        if not life:
            lives.remove(life)
    return [*play, RUN_FINISHED]


async def perform(play: list[Event | None]) -> list[Event]:
    """Play puts and gets, and return what was heard; each progress must be the latest when it is."""
    mailbox = Mailbox()
    listener: AsyncIterator[Event] = aiter(mailbox)
    latest: dict[str, Progress] = {}
    files: set[str] = set()
    heard: list[Event] = []
    put = 0

    def hear(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Progress):
            assert event == latest.pop(event.name)

    for event in play:
        if event is GET:
            if put > sum(not isinstance(event, Progress) for event in heard) or latest:
                hear(await anext(listener))
            continue
        mailbox.put(event)
        if isinstance(event, Progress):
            latest[event.name] = event
            continue
        put += 1
        if isinstance(event, FileStarted):
            files.add(event.name)
        if isinstance(event, FileFinished | FileFailed):
            latest.pop(event.name, None)
        assert len(mailbox._events) + len(mailbox._progress) <= 2 + 2 * len(files)
    mailbox.close()
    async for event in listener:
        hear(event)
    assert latest == {}
    return heard


@given(plays())
def test_any_listener_hears_every_life_from_start_to_end(play) -> None:
    heard = anyio.run(perform, play)
    assert [event for event in heard if not isinstance(event, Progress)] == [
        event for event in play if event is not GET and not isinstance(event, Progress)
    ]
    lives: dict[str, list[Event]] = defaultdict(list)
    for event in heard[1:-1]:
        assert not isinstance(event, RunStarted | RunFinished)
        lives[event.name].append(event)
    for first, *between, last in lives.values():
        assert isinstance(first, FileStarted)
        assert isinstance(last, FileFinished | FileFailed)
        done = [event.done for event in between if isinstance(event, Progress)]
        assert len(done) == len(between)
        assert done == sorted(set(done))
