"""A service for `test_hostile_host`: it dumps, has its own pipes, and is shut down at random times.

``python service.py FOLDER COUNT`` prints each observation that must not occur as a line of JSON on stderr.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop

import asyncdump
from asyncdump.sinks.folder import Folder

MiB = 1 << 20
PACKAGE = os.path.join(os.path.dirname(asyncdump.__file__), "")
FILES = 6
MESSAGE = b"a message of the service itself: " + bytes(range(256)) * 8
WAYS: dict[str, dict[str, Any]] = {
    "splice": {"method": "splice", "durable": False},
    "read": {"method": "read"},
    "zstd": {"compress": "zstd"},
    "filter": {"allow_filters": True},
    "standard output": {"output": "-", "allow_filters": True},
    "verify": {},
    "restore": {},
}


class Chat:
    """Threads that write into a pipe, read it back, and close the pipe, again and again."""

    def __init__(self) -> None:
        self.wrong = 0
        self.heard = 0
        self._ended = False
        self._threads = [threading.Thread(target=self._talk) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def _talk(self) -> None:
        while not self._ended:
            reading, writing = os.pipe()
            os.set_blocking(reading, False)
            os.write(writing, MESSAGE)
            try:
                self.wrong += os.read(reading, 1 << 16) != MESSAGE
            except BlockingIOError:
                self.wrong += 1
            self.heard += 1
            os.close(reading)
            os.close(writing)

    def end(self) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join()


@contextmanager
def emptied_standard_output() -> Iterator[None]:
    """Replace standard output by a pipe with a reader."""
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)

    def read() -> None:
        while os.read(reading, MiB):
            pass

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 1)
        thread.join()
        os.close(reading)


async def shut_down(dumps: list[asyncdump.Dump], options: dict[str, Any], delay: float, *, again: int) -> None:
    """Start a dump and shut down as services do: by cancelling all tasks, some of them more than once."""
    listening = random.random() < 0.5

    async def serve() -> None:
        if "what" in options:
            await (asyncdump.restore_all if "to" in options else asyncdump.verify_all)(**options)
            return
        async with asyncdump.open_run(dumps, **options) as run:
            if listening:
                async for _ in run:
                    pass

    others = [asyncio.ensure_future(serve()), asyncio.ensure_future(asyncio.sleep(60))]
    await asyncio.sleep(delay)
    me = asyncio.current_task()
    for _ in range(1 + again):
        for task in asyncio.all_tasks():
            if task is not me:
                task.cancel()
        await asyncio.sleep(0.001)
    await asyncio.gather(*others, return_exceptions=True)  # noqa: TID251 (as services do)


def descriptors() -> dict[str, str]:
    return {
        fd: os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


def busy_threads() -> int:
    stacks = (traceback.extract_stack(frame) for frame in sys._current_frames().values())
    return sum(any(call.filename.startswith(PACKAGE) for call in stack) for stack in stacks)


def look_around(output: Path, content: bytes, way: str) -> Iterator[str]:
    """Yield everything that is wrong after a run."""
    if busy_threads():
        yield "threads go on"
    if not output.exists():
        return
    left = {name for name in os.listdir(output) if name.startswith(".asyncdump")}
    if left:
        yield f"left behind: {sorted(left)}"
    try:
        folder = Folder(str(output))
        try:
            folder.lock()
        finally:
            folder.close()
    except asyncdump.DumpError:
        yield "the folder is locked"
    names = {name for name in os.listdir(output) if name.startswith("dump")}
    if way == "restore":
        if any((output / name).read_bytes() != content for name in names):
            yield "other bytes"
        return
    try:
        files = json.loads((output / "receipt.json").read_text())["files"]
    except FileNotFoundError:
        if names:
            yield "dumps without a receipt"
        return
    if {file["name"] for file in files if file["error"] is None} != names:
        yield "the receipt tells of others"
    if way != "zstd" and any((output / name).read_bytes() != content for name in names):
        yield "other bytes"


def main(base: Path, count: int) -> Counter[str]:
    content = random.Random(1).randbytes(3 * MiB + 5)
    source = base / "source"
    source.write_bytes(content)
    seen: Counter[str] = Counter()
    made = base / "made"
    dumps = [asyncdump.Dump(source=str(source), name=f"dump-{n}") for n in range(FILES)]
    asyncio.run(asyncdump.dump_all(dumps, output=made)).raise_for_failures()
    chat = Chat()
    with emptied_standard_output():
        for number in range(count):
            way = list(WAYS)[number % len(WAYS)]
            output = base / f"dumps-{number}"
            options = {"output": output, **WAYS[way]}
            if way in {"verify", "restore"}:
                options = {"what": made, **({"to": output} if way == "restore" else {})}
            through: dict[str, Any] = {"filter": [["cat"]]} if way in {"filter", "standard output"} else {}
            files = 1 if way == "standard output" else FILES
            dumps = [asyncdump.Dump(source=str(source), name=f"dump-{n}", **through) for n in range(files)]
            loop = random.choice([asyncio.new_event_loop, uvloop.new_event_loop])
            with asyncio.Runner(loop_factory=loop) as runner:
                runner.run(shut_down(dumps, options, random.random() * 0.06, again=random.randrange(3)))
            seen.update(f"{way}: {sight}" for sight in look_around(output, content, way))
            seen.update(f"{way}: {sight}" for sight in look_around(made, content, way) if way == "verify")
    chat.end()
    if chat.wrong:
        seen["messages lost or others"] = chat.wrong
    if not chat.heard:
        seen["nothing was said"] = 1
    return seen


if __name__ == "__main__":
    uvloop.run(asyncio.sleep(0))  # uvloop keeps a pipe open for the life of the process.
    before = descriptors()
    seen = main(Path(sys.argv[1]), int(sys.argv[2]))
    after = descriptors()
    if len(after) > len(before):
        seen["descriptors stay open"] = len(after) - len(before)
    print(json.dumps(seen), file=sys.stderr)
