"""Which thread moves what, how many files at once, and how many may be open."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from files import KiB, MiB, noise, read

import asyncdump
from asyncdump.engines import ENGINES, Engine, Route
from asyncdump.kernel.lane import Lane
from asyncdump.run.limits import default_lanes
from asyncdump.run.queue import SHARED
from asyncdump.vocabulary.values import Span

PATIENCE = 20
"""Seconds after which a thread that waits for another gives up."""


class Watched:
    """An engine under observation: who stores what, in which order, how many at once."""

    def __init__(self, engine: Engine) -> None:
        self.method = engine.method
        self.span = engine.span
        self.sees_bytes = engine.sees_bytes
        self.refuses = engine.refuses
        self.load = engine.load
        self.begun: list[str] = []
        self.threads: dict[str, set[int]] = {}
        self.most_at_once = 0
        self.meet: Callable[[str, Span], object] | None = None
        self._engine = engine
        self._busy: Counter[str] = Counter()
        self._lock = threading.Lock()

    def store(self, route: Route, span: Span, lane: Lane, data: memoryview | None) -> None:
        name = os.path.basename(route.sink.path)
        with self._storing(name):
            if self.meet is not None:
                self.meet(name, span)
            self._engine.store(route, span, lane, data)

    @contextmanager
    def _storing(self, name: str) -> Iterator[None]:
        with self._lock:
            if name not in self.threads:
                self.begun.append(name)
            self.threads.setdefault(name, set()).add(threading.get_ident())
            self._busy[name] += 1
            self.most_at_once = max(self.most_at_once, sum(count > 0 for count in self._busy.values()))
        try:
            yield
        finally:
            with self._lock:
                self._busy[name] -= 1


@pytest.fixture
def watched(monkeypatch) -> Watched:
    """The engine that moves files by ``read`` while the test lasts."""
    engine = Watched(ENGINES["read"])
    monkeypatch.setitem(ENGINES, "read", engine)
    return engine


@pytest.fixture
def parts(make) -> Callable[[list[int]], list[asyncdump.Dump]]:
    """Makes dumps of these sizes, named by their number, out of one source."""

    def parts(sizes: list[int]) -> list[asyncdump.Dump]:
        source = make("tmpfs", noise(max(sizes)))
        return [
            asyncdump.Dump(source=source, name=str(number), length=size, method="read", durable=False)
            for number, size in enumerate(sizes)
        ]

    return parts


# --- how many --------------------------------------------------------------------------------------------------------


def test_a_disk_gets_more_threads_than_memory() -> None:
    cores = len(os.sched_getaffinity(0))
    assert default_lanes("tmpfs") == default_lanes("hugetlbfs") == cores
    assert default_lanes("ext4") == default_lanes("xfs") == max(4, min(2 * cores, 8))


def test_only_the_cores_that_it_may_use_count() -> None:
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from asyncdump.run.limits import default_lanes
print(default_lanes("tmpfs"), default_lanes("ext4"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1", "4"]


async def test_one_at_a_time_is_one_at_a_time(parts, watched: Watched, tmp_path: Path) -> None:
    report = await asyncdump.dump_all(parts([3 * MiB + 5] * 24), output=tmp_path / "dumps", concurrency=1)
    report.raise_for_failures()
    assert len(watched.begun) == 24
    assert watched.most_at_once == 1


@pytest.mark.parametrize("concurrency", [3, 12])
async def test_as_many_as_are_asked_for_are_in_flight(concurrency, parts, watched: Watched, tmp_path: Path) -> None:
    together = threading.Barrier(concurrency)
    first = {str(number) for number in range(concurrency)}
    watched.meet = lambda name, span: name in first and span.offset == 0 and together.wait(PATIENCE)
    sizes = [3 * MiB] * concurrency + [2 * MiB] * 8
    report = await asyncdump.dump_all(parts(sizes), output=tmp_path / "dumps", concurrency=concurrency)
    report.raise_for_failures()
    assert watched.most_at_once == concurrency


# --- which -----------------------------------------------------------------------------------------------------------


async def test_the_largest_goes_first(parts, watched: Watched, tmp_path: Path) -> None:
    sizes = [(number * 7919) % 101 * 20 * KiB + 1 for number in range(60)]
    report = await asyncdump.dump_all(parts(sizes), output=tmp_path / "dumps", concurrency=1)
    report.raise_for_failures()
    begun = [sizes[int(name)] for name in watched.begun]
    assert begun == sorted(sizes, reverse=True)
    assert [file.name for file in report.files] == [str(number) for number in range(60)]


async def test_several_threads_work_on_a_large_file(parts, watched: Watched, tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def meet(name: str, span: Span) -> None:
        """Let two threads that are behind the first step of the large file wait for one another, once."""
        if name == "0" and span.offset in (watched.span, 2 * watched.span):
            together.wait(PATIENCE)

    watched.meet = meet
    sizes = [SHARED + 32 * MiB + 13, *([MiB] * 20)]
    report = await asyncdump.dump_all(parts(sizes), output=tmp_path / "dumps", concurrency=4)
    report.raise_for_failures()
    assert len(watched.threads["0"]) >= 2
    assert all(len(watched.threads[str(number)]) == 1 for number in range(1, 21))
    assert read(tmp_path / "dumps" / "0") == noise(sizes[0])


async def test_a_file_that_is_not_large_stays_with_one_thread(parts, watched: Watched, tmp_path: Path) -> None:
    report = await asyncdump.dump_all(parts([SHARED - 1]), output=tmp_path / "dumps", concurrency=4)
    report.raise_for_failures()
    assert len(watched.threads["0"]) == 1


# --- open files ------------------------------------------------------------------------------------------------------

LIMITED = """
import asyncio, json, os, resource, sys, time
import asyncdump
from asyncdump.sinks.folder import Folder

limit, slow, sources, output, options = json.loads(sys.argv[1])
publish = Folder.publish

def publish_slowly(*args, **options):
    time.sleep(slow)
    return publish(*args, **options)

Folder.publish = publish_slowly
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    report = asyncio.run(asyncdump.dump_all([asyncdump.Dump(source=sources)], output=output, **options))
except asyncdump.DumpError as error:
    answer = {"refused": str(error), "errno": error.errno, "hint": error.hint}
else:
    answer = {"files": len(report.files), "failures": [str(file.error) for file in report.failures]}
print(json.dumps(answer))
"""


def dump_with_limit(limit: int, sources: Path, output: Path, *, slow: float = 0.0, **options: Any) -> dict[str, Any]:
    """Dump in a process that may only have so many files open, and only one core; ``slow`` seconds a sync."""
    arguments = json.dumps([limit, slow, f"{sources}/*", str(output), options])
    command = [sys.executable, "-c", LIMITED, arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03}").write_bytes(noise(5000 + number, number))
    return folder


@pytest.mark.sample(1)
@pytest.mark.parametrize("method", ["auto", "mmap"])
@pytest.mark.parametrize("durable", [True, False])
def test_a_low_limit_is_kept_to(durable, method, sources: Path, tmp_path: Path) -> None:
    answer = dump_with_limit(64, sources, tmp_path / "dumps", method=method, durable=durable)
    assert answer == {"files": 300, "failures": []}
    for source in sources.iterdir():
        assert read(tmp_path / "dumps" / source.name) == read(source)


@pytest.mark.slow
def test_a_low_limit_is_kept_to_while_a_slow_disk_lets_dumps_wait(sources: Path, tmp_path: Path) -> None:
    answer = dump_with_limit(64, sources, tmp_path / "dumps", slow=0.02)
    assert answer == {"files": 300, "failures": []}


def test_a_limit_that_is_too_low_is_told_before_anything_is_dumped(sources: Path, tmp_path: Path) -> None:
    answer = dump_with_limit(20, sources, tmp_path / "dumps")
    assert "20" in answer["refused"]
    assert answer["errno"] == errno.EMFILE
    assert "ulimit -n" in answer["hint"]
    assert os.listdir(tmp_path / "dumps") == []


def test_a_concurrency_that_the_limit_does_not_allow_is_lowered(sources: Path, tmp_path: Path) -> None:
    assert dump_with_limit(128, sources, tmp_path / "dumps", concurrency=64) == {"files": 300, "failures": []}
