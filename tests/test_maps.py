"""Who has a source mapped: found in /proc, once, and never a reason to fail."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from files import MiB

import asyncdump
from asyncdump import Dump
from asyncdump.kernel import processes
from asyncdump.kernel.processes import boot_id, find_mappings
from asyncdump.run import mappers
from asyncdump.run.mappers import MOST, Mappers
from asyncdump.sources.describe import describe
from asyncdump.vocabulary.values import ProcessMapping, Source

MAPS = """
import mmap, sys
path, name, flags, *places = sys.argv[1:]
open("/proc/self/comm", "wb").write(name.encode("utf-8", "surrogateescape"))
with open(path, "r+b") as file:
    held = [
        mmap.mmap(file.fileno(), length, flags=int(flags), offset=offset)
        for offset, length in (map(int, place.split("+")) for place in places)
    ]
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def owner(path: Path, *places: str, name: str = "owner", flags: int = mmap.MAP_SHARED) -> Iterator[int]:
    """Have a process map ranges of a file, given as ``offset+length``; yield its number."""
    command = [sys.executable, "-c", MAPS, os.fspath(path), name, str(flags), *places]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid


@pytest.fixture(params=["tmpfs", "ext4"])
def source(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param) / "source"
    path.write_bytes(bytes(4 * MiB))
    return path


def found(path: Path) -> list[processes.Mapped]:
    status = path.stat()
    return [mapped for _, mapped in find_mappings([(status.st_dev, status.st_ino)], 60)]


def test_a_mapping_is_found(source: Path) -> None:
    assert found(source) == []
    with owner(source, f"{MiB}+{2 * MiB}") as pid:
        [mapped] = found(source)
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        [line] = [line for line in lines if line.endswith(f"{source}")]
        assert (mapped.pid, mapped.comm, mapped.shared) == (pid, b"owner", True)
        assert (mapped.offset, mapped.length) == (MiB, 2 * MiB)
        assert f"{mapped.address:x}-{mapped.address + mapped.length:x}" == line.split()[0]
        since_boot = mapped.started + psutil.boot_time()
        assert abs(since_boot - psutil.Process(pid).create_time()) < 1
    assert found(source) == []


def test_several_by_several_some_private(source: Path) -> None:
    with (
        owner(source, f"0+{MiB}", f"{2 * MiB}+{MiB}", name="a) R 1 (b") as first,
        owner(source, f"0+{4 * MiB}", flags=mmap.MAP_PRIVATE) as second,
    ):
        mapped = found(source)
    told = {(each.pid, each.comm, each.offset, each.length, each.shared) for each in mapped}
    assert told == {
        (first, b"a) R 1 (b", 0, MiB, True),
        (first, b"a) R 1 (b", 2 * MiB, MiB, True),
        (second, b"owner", 0, 4 * MiB, False),
    }


def test_what_has_been_unlinked_or_renamed_is_found_by_its_inode(source: Path) -> None:
    status = source.stat()
    with owner(source, f"0+{MiB}"):
        source.rename(source.with_name("other (deleted) \n name"))
        assert len(list(find_mappings([(status.st_dev, status.st_ino)], 60))) == 1
        source.with_name("other (deleted) \n name").unlink()
        assert len(list(find_mappings([(status.st_dev, status.st_ino)], 60))) == 1


def test_this_process_is_left_out(source: Path) -> None:
    with source.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        assert found(source) == []


def test_a_file_of_the_same_number_elsewhere_is_another(source: Path) -> None:
    status = source.stat()
    with owner(source, f"0+{MiB}"):
        assert (
            list(find_mappings([(status.st_dev + 1, status.st_ino), (status.st_dev, status.st_ino + (1 << 40))], 60))
            == []
        )


def test_nothing_is_looked_at_for_nothing_or_when_time_is_up(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = source.stat()
    looked: list[int] = []

    def look(pid: int, *_: object) -> tuple[()]:
        looked.append(pid)
        return ()

    monkeypatch.setattr(processes, "_mappings_of", look)
    assert list(find_mappings([], 60)) == []
    with pytest.raises(TimeoutError):
        list(find_mappings([(status.st_dev, status.st_ino)], -1))
    assert list(find_mappings([(status.st_dev, status.st_ino)], 60, lambda: True)) == []
    assert looked == []
    assert list(find_mappings([(status.st_dev, status.st_ino)], 60)) == []
    assert len(looked) > 1
    assert os.getpid() not in looked


def test_this_start_of_the_system_has_a_name() -> None:
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


# --- in a run ---------------------------------------------------------------------------------------------------------


async def test_a_receipt_tells_who_had_a_source_mapped(source: Path, tmp_path: Path) -> None:
    with owner(source, f"{MiB}+{MiB}", name="b\x1b\udcff") as pid:
        report = await asyncdump.dump_all([Dump(source=source)], output=tmp_path / "out")
    [file] = report.files
    [mapped] = file.maps
    assert isinstance(mapped, ProcessMapping)
    assert (mapped.pid, mapped.comm, mapped.offset, mapped.length) == (pid, r"b\x1b\xff", MiB, MiB)
    assert (mapped.inode, mapped.shared, file.maps_left_out) == (source.stat().st_ino, True, 0)
    receipt = json.loads((tmp_path / "out/receipt.json").read_bytes())
    assert receipt["boot_id"] == boot_id()
    assert set(receipt["files"][0]["maps"][0]) == {
        *("pid", "comm", "started", "address", "offset", "length", "inode", "shared")
    }
    again = await asyncdump.dump_all([Dump(source=source)], output=tmp_path / "out", resume=True)
    assert (again.files[0].kept, again.files[0].maps) == (True, file.maps)


async def test_of_many_mappings_the_first_are_told_and_how_many_more(source: Path, tmp_path: Path) -> None:
    with owner(source, *[f"{number * 4096}+4096" for number in range(0, 2 * (MOST + 6), 2)]):
        report = await asyncdump.dump_all([Dump(source=source)], output=tmp_path / "out")
    [file] = report.files
    assert (len(file.maps), file.maps_left_out) == (MOST, 6)


async def test_of_a_source_that_nobody_has_there_are_none(source: Path, tmp_path: Path) -> None:
    other = source.with_name("other")
    other.write_bytes(b"x")
    with owner(source, f"0+{MiB}"):
        report = await asyncdump.dump_all([Dump(source=other)], output=tmp_path / "out")
    assert report.files[0].maps == ()


@pytest.fixture
def described(source: Path) -> Source:
    fd = os.open(source, os.O_RDONLY)
    try:
        return describe(fd, os.fspath(source))
    finally:
        os.close(fd)


def test_the_end_of_a_run_does_not_wait_for_the_look(described: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(files: object, seconds: float, ended: Callable[[], bool]) -> Iterator[tuple[tuple[int, int], object]]:
        begun.set()
        while not ended():
            go_on.wait(0.01)
        yield from ()

    monkeypatch.setattr(mappers, "find_mappings", slow)
    made = Mappers([described])
    made.start()
    assert begun.wait(10)
    made.end()
    assert made.of(described) == ((), 0)
    assert "_look" not in {thread.name for thread in threading.enumerate()}


def test_what_cannot_be_started_is_not_waited_for(described: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise asyncdump.DumpError("no thread")

    monkeypatch.setattr(mappers, "start", refuse)
    made = Mappers([described])
    made.start()
    assert made.of(described) == ((), 0)
    made.end()


def test_a_look_that_fails_is_the_end_of_the_look(described: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Iterator[object]:
        raise MemoryError

    monkeypatch.setattr(mappers, "find_mappings", fail)
    made = Mappers([described])
    made.start()
    began = time.monotonic()
    assert made.of(described) == ((), 0)
    assert time.monotonic() - began < mappers.SECONDS + 5
    made.end()
