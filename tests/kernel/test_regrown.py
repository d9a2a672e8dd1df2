"""Sources that lose their memory while they are dumped, and have the size again that they had."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from files import MiB, finish, look_at, new_transfer, noise

import asyncdump
from asyncdump import Dump
from asyncdump.run.events import RunStarted

KINDS = ["hugetlbfs", "huge_memfd", "tmpfs", "memfd", "ext4", "xfs"]
RACES = int(os.environ.get("ASYNCDUMP_RACES", "12"))
SIZE = 16 * MiB  # Two steps of the engines that map it: see what `check_kept` says.


def regrow(path: str) -> None:
    size = os.path.getsize(path)
    os.truncate(path, 0)
    os.truncate(path, size)


def refill(path: str, data: bytes) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), len(data)) as mapping:
        mapping[:] = data


def punch(path: str, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDWR)
    try:
        assert libc.fallocate(fd, 3, ctypes.c_long(offset), ctypes.c_long(length)) == 0
    finally:
        os.close(fd)


@pytest.mark.parametrize("checksum", ["xxh128", "none"])
@pytest.mark.parametrize("when", ["planned", "begun", "moved"])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_and_grown_again(kind, when, checksum, make, lane, folder_on) -> None:
    source, folder = make(kind, noise(SIZE)), folder_on("ext4")
    transfer = new_transfer(look_at(source), method="read", checksum=checksum)
    if when == "planned":
        regrow(source)
    transfer.begin(folder, lane)
    if when == "begun":
        regrow(source)
    elif when == "moved":
        transfer.work(lane)
        regrow(source)
    with pytest.raises(asyncdump.SourceChangedError):
        finish(transfer, folder, lane)
    transfer.abort()
    assert os.listdir(folder.path) == []


@pytest.mark.parametrize("kind", ["hugetlbfs", "huge_memfd"])
def test_filled_again_too(kind, make, lane, folder_on) -> None:
    data = noise(SIZE)
    source, folder = make(kind, data), folder_on("ext4")
    time.sleep(0.02)  # The times of files have the grain of the kernel's clock.
    transfer = new_transfer(look_at(source))
    transfer.begin(folder, lane)
    with open(source, "r+b", buffering=0) as file:
        os.ftruncate(file.fileno(), 0)
        os.ftruncate(file.fileno(), len(data))
    refill(source, data)
    with pytest.raises(asyncdump.SourceChangedError):
        finish(transfer, folder, lane)


@pytest.mark.parametrize("kind", KINDS)
def test_pages_punched_out(kind, make, lane, folder_on) -> None:
    source, folder = make(kind, noise(SIZE)), folder_on("ext4")
    transfer = new_transfer(look_at(source))
    transfer.begin(folder, lane)
    punch(source, 4 * MiB, 2 * MiB)
    with pytest.raises(asyncdump.SourceChangedError):
        finish(transfer, folder, lane)


@pytest.mark.sample(24)
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("what", ["stores", "writes", "grows", "is allocated", "mode"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_its_owner_does_to_a_live_source_is_no_error(kind, what, holes, make, lane, folder_on) -> None:
    if what == "writes" and kind in {"hugetlbfs", "huge_memfd"}:
        pytest.skip("hugetlbfs takes no write(2)")
    data = noise(2 * MiB) + bytes(2 * MiB) + noise(4 * MiB)
    source, folder = make(kind, data, holes=holes), folder_on("ext4")
    transfer = new_transfer(look_at(source))

    def live(place: int) -> None:
        if what == "stores":
            with open(source, "r+b") as file, mmap.mmap(file.fileno(), len(data)) as mapping:
                mapping[place : place + 4096] = data[place : place + 4096]
        elif what == "writes":
            with open(source, "r+b", buffering=0) as raw:
                os.pwrite(raw.fileno(), data[place : place + 8192], place)
        elif what == "grows":
            os.truncate(source, os.path.getsize(source) + 2 * MiB)
        elif what == "is allocated":
            with open(source, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(source))
        else:
            os.chmod(source, 0o640)

    live(0)
    transfer.begin(folder, lane)
    live(3 * MiB)
    transfer.work(lane)
    live(7 * MiB)
    finish(transfer, folder, lane)
    assert Path(folder.path, "dump").read_bytes() == data


@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs", "ext4"])
async def test_at_any_moment_of_a_run(kind, make, request, tmp_path: Path) -> None:
    data = noise(SIZE)
    chance = random.Random(6)
    for number in range(RACES):
        source = make(kind, data)
        delay = chance.random() * 0.01

        def regrow_later(source: str = source, delay: float = delay) -> None:
            time.sleep(delay)
            regrow(source)

        thread = threading.Thread(target=regrow_later)

        def begin(event: object) -> None:
            if isinstance(event, RunStarted):
                thread.start()  # noqa: B023

        report = await asyncdump.dump_all(
            [Dump(source=source, name="x", checksum=chance.choice(["xxh128", "none"]))],
            output=tmp_path / f"{number}",
            durable=False,
            on_event=begin,
        )
        thread.join()
        if report.ok:
            assert (tmp_path / f"{number}/x").read_bytes() == data
        shutil.rmtree(tmp_path / f"{number}")
        os.unlink(source)
