"""Listeners of one's own: a tally that draws, handlers that are functions, objects and coroutines."""

import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import trio

import asyncdump


class Display(asyncdump.Tally):
    """Counts, and draws a line at each file that ends."""

    def __init__(self, draw: Callable[[str], None]) -> None:
        super().__init__()
        self.draw = draw

    def tell(self, event: asyncdump.Event) -> None:
        super().tell(event)
        if isinstance(event, asyncdump.FileFinished | asyncdump.FileKept | asyncdump.FileFailed):
            share = self.moved / max(self.total, 1)
            self.draw(f"{share:4.0%} {self.finished}/{self.files} {self.rate:.0f} B/s {len(self.flying)} in flight")


class Queue:
    """An object that is called."""

    def __init__(self) -> None:
        self.events: list[asyncdump.Event] = []

    async def __call__(self, event: asyncdump.Event) -> None:
        await anyio.sleep(0)
        self.events.append(event)


async def main(folder: Path) -> None:
    lines: list[str] = []
    display, queue = Display(lines.append), Queue()
    (await asyncdump.dump_all([folder / "sources" / "*"], output=folder / "dumps", on_event=display.tell)).to_dict()
    assert len(lines) == display.finished == 3
    await asyncdump.verify_all(folder / "dumps", on_event=queue)
    assert isinstance(queue.events[-1], asyncdump.RunFinished)
    async with asyncdump.open_verify(folder / "dumps") as verifier:
        async for event in verifier:
            display.tell(event)
    assert verifier.outcome.ok
    async with asyncdump.open_restore(folder / "dumps", folder / "back") as restorer:
        names = {event.name async for event in restorer if isinstance(event, asyncdump.FileFinished)}
    assert names == {file.name for file in restorer.report.files}


trio.run(main, Path(sys.argv[1]))
