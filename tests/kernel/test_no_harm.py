"""What a dump must not do: change its source, take from the host's pool, or die of what the owner does meanwhile."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from files import (
    HUGE_PAGE,
    METHODS,
    PAGE,
    Dumper,
    MiB,
    allocated,
    digest_of,
    finish,
    free_pages,
    leftovers,
    look_at,
    new_transfer,
    noise,
    transfer_file,
    write_huge,
    write_pages,
)

import asyncdump
from asyncdump.engines import ENGINES
from asyncdump.kernel.lane import Lane
from asyncdump.sinks.folder import Folder

HOLEY = noise(2 * MiB, 1) + bytes(4 * MiB) + noise(2 * MiB, 2) + bytes(8 * MiB)
FALLOC_FL_PUNCH_HOLE = 2 | 1  # With FALLOC_FL_KEEP_SIZE, as fallocate(2) demands.


def kind_for(method: str) -> str:
    """Return a kind of source on which the kernel accepts a method, with ext4 as its destination."""
    return "ext4" if method == "reflink" else "tmpfs"


def punch_hole(path: str, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDWR)
    try:
        failed = libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length))
        assert failed == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(fd)


# --- holes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checksum", ["none", "xxh128"])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("method", ["auto", "read"])
def test_holes_in_huge_pages_stay_holes(method, sparse, checksum, make, hugetlbfs, dump: Dumper, folder_on) -> None:
    source = make("hugetlbfs", HOLEY, holes=True)
    held, free = allocated(source), free_pages(hugetlbfs)
    assert held == 4 * MiB
    folder = folder_on("ext4")
    transfer = dump(folder, source, method=method, checksum=checksum, sparse=sparse)
    assert (allocated(source), free_pages(hugetlbfs)) == (held, free)
    assert Path(folder.path, "dump").read_bytes() == HOLEY
    assert transfer.digest == digest_of(HOLEY, checksum)


@pytest.mark.parametrize("method", ["direct", "mmap"])
def test_a_method_that_would_fill_holes_is_refused(method, make, hugetlbfs, dump: Dumper, folder_on) -> None:
    source = make("hugetlbfs", HOLEY, holes=True)
    held, free = allocated(source), free_pages(hugetlbfs)
    folder = folder_on("ext4")
    with pytest.raises(asyncdump.MethodRefusedError, match="holes") as refused:
        dump(folder, source, method=method)
    assert "read" in refused.value.hint
    assert "mmap" not in refused.value.hint
    assert (allocated(source), free_pages(hugetlbfs)) == (held, free)
    assert os.listdir(folder.path) == []


async def test_a_whole_run_takes_no_pages(make, hugetlbfs, folder_on) -> None:
    sources = [make("hugetlbfs", HOLEY, holes=True) for _ in range(3)]
    free = free_pages(hugetlbfs)
    folder = folder_on("ext4")
    report = await asyncdump.dump_all(
        [asyncdump.Dump(source=source) for source in sources], output=folder.path, checksum="none"
    )
    report.raise_for_failures()
    assert free_pages(hugetlbfs) == free
    assert [allocated(source) for source in sources] == [4 * MiB] * 3


def test_an_empty_pool_does_not_matter(make, hugetlbfs, dump: Dumper, folder_on) -> None:
    source = make("hugetlbfs", HOLEY, holes=True)
    hoard = hugetlbfs / "hoard"
    try:
        write_huge(hoard, b"x" * (free_pages(hugetlbfs) * HUGE_PAGE))
        folder = folder_on("ext4")
        dump(folder, source, checksum="xxh128")
    finally:
        hoard.unlink()
    assert Path(folder.path, "dump").read_bytes() == HOLEY


@pytest.mark.parametrize("method", ["auto", "direct", "mmap"])
def test_a_hole_that_appears_under_way_is_told_and_stays_one(method, make, hugetlbfs, lane: Lane, folder_on) -> None:
    data = noise(20 * MiB)
    source = make("hugetlbfs", data)
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(source), method=method)
    transfer.begin(folder, lane)
    punch_hole(source, 16 * MiB, 2 * MiB)
    free = free_pages(hugetlbfs)
    with pytest.raises(asyncdump.SourceChangedError if method == "auto" else asyncdump.MethodRefusedError):
        finish(transfer, folder, lane)
    assert os.listdir(folder.path) == []
    assert (allocated(source), free_pages(hugetlbfs)) == (18 * MiB, free)


@pytest.mark.sample(7)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_holes_in_ordinary_pages_stay_holes(method, sparse, make, dump: Dumper, folder_on) -> None:
    source = make(kind_for(method), HOLEY, holes=True)
    held = allocated(source)
    assert held == 4 * MiB
    folder = folder_on("ext4")
    dump(folder, source, method=method, sparse=sparse, checksum="xxh128")
    path = Path(folder.path, "dump")
    assert allocated(source) == held
    assert path.read_bytes() == HOLEY
    assert allocated(path) <= held + PAGE * 16 if sparse else allocated(path) >= len(HOLEY)


# --- the source stays as it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        *((method, "ext4") for method in METHODS),
        *((method, "tmpfs") for method in METHODS if method != "reflink"),
        *((method, "hugetlbfs") for method in ("direct", "mmap", "read", "auto")),
    ],
)
def test_the_source_keeps_its_times(method, kind, make, dump: Dumper, folder_on) -> None:
    source = make(kind, noise(2 * MiB))
    # An access time before the last change is what relatime updates.
    os.utime(source, ns=(10**18, 2 * 10**18))
    before = os.stat(source)
    dump(folder_on("ext4"), source, method=method, checksum="xxh128")
    after = os.stat(source)
    assert (after.st_atime_ns, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_atime_ns,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


# --- the owner is alive ----------------------------------------------------------------------------------------------

OWNED = [
    *((method, kind_for(method)) for method in (*METHODS, "auto")),
    *((method, "hugetlbfs") for method in ("direct", "mmap", "read", "auto")),
]


def longer_than_a_step(method: str) -> bytes:
    """Return content that the first step of a method doesn't finish."""
    steps = [engine.span for name, engine in ENGINES.items() if method in (name, "auto") and name != "reflink"]
    return noise(max(steps, default=ENGINES["reflink"].span) + 4 * MiB)


@pytest.mark.parametrize("checksum", ["none", "xxh128"])
@pytest.mark.parametrize(("method", "kind"), OWNED)
def test_truncated_after_the_first_step(method, kind, checksum, make, lane: Lane, folder_on) -> None:
    data = longer_than_a_step(method)
    source = make(kind, data)
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(source), method=method, checksum=checksum)
    transfer.begin(folder, lane)
    os.truncate(source, HUGE_PAGE)
    with pytest.raises(asyncdump.SourceChangedError, match=r"\d"):
        finish(transfer, folder, lane)
    assert os.listdir(folder.path) == []


@pytest.mark.parametrize(("method", "kind"), OWNED)
def test_truncated_after_the_last_step(method, kind, make, lane: Lane, folder_on) -> None:
    source = make(kind, noise(2 * MiB))
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(source), method=method)
    transfer.begin(folder, lane)
    transfer.work(lane)
    os.truncate(source, 0)
    with pytest.raises(asyncdump.SourceChangedError, match=r"\d"):
        finish(transfer, folder, lane)
    assert os.listdir(folder.path) == []


@pytest.mark.parametrize(("method", "kind"), OWNED)
def test_truncated_before_it_is_opened(method, kind, make, lane: Lane, folder_on) -> None:
    source = make(kind, noise(4 * MiB))
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(source), method=method)
    os.truncate(source, 2 * MiB)
    with pytest.raises(asyncdump.SourceChangedError):
        transfer.begin(folder, lane)
    transfer.abort()
    assert os.listdir(folder.path) == []


ROUNDS = 16


def truncate_in(seconds: float, path: str) -> int:
    """Truncate a file later, and return the process that will: a thread would have to wait for the GIL."""
    process = os.fork()
    if process == 0:
        time.sleep(seconds)
        os.truncate(path, 0)
        os._exit(0)
    return process


def survive_truncation(method: str, kind: str, path: str, folder: str) -> None:
    """Dump a file again and again while it is truncated; runs in a process that a SIGBUS may kill."""
    sink, lane, data, chance = Folder(folder), Lane(), longer_than_a_step(method), random.Random(3)
    write = write_huge if kind == "hugetlbfs" else write_pages
    changed, duration = 0, 0.0
    for number in range(ROUNDS):
        write(path, data)
        # The first two dumps are left alone: they tell how long one takes.
        truncating = truncate_in(chance.uniform(0.1, 1) * duration, path) if duration and number > 1 else None
        began = time.perf_counter()
        try:
            transfer_file(lane, sink, path, method=method)
        except asyncdump.SourceChangedError:
            changed += 1
        else:
            if truncating is None:
                duration = time.perf_counter() - began
            # A file that was emptied before it was looked at is a dump of nothing.
            assert Path(folder, "dump").read_bytes() in (data, b"")
        if truncating is not None:
            os.waitpid(truncating, 0)
    assert changed, "no truncation came in time"


@pytest.mark.sample(1)
@pytest.mark.parametrize(("method", "kind"), OWNED)
def test_no_signal_when_it_is_truncated_at_any_moment(method, kind, request, folder_on) -> None:
    source = request.getfixturevalue(kind) / f"owned-{method}"
    folder = folder_on("ext4")
    arguments = (method, kind, str(source), folder.path)
    script = f"import test_no_harm; test_no_harm.survive_truncation(*{arguments!r})"
    here = Path(__file__).parent
    path = os.pathsep.join(filter(None, [str(here), str(here.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    source.unlink()
    assert done.returncode == 0, done.stderr
    assert leftovers(folder.path) == []


@pytest.mark.parametrize(("method", "kind"), OWNED)
def test_replaced_by_another_file(method, kind, make, lane: Lane, folder_on) -> None:
    source, other = (make(kind, noise(2 * MiB, start)) for start in (1, 2))
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(source), method=method)
    os.replace(other, source)
    with pytest.raises(asyncdump.SourceChangedError):
        transfer.begin(folder, lane)
    transfer.abort()
    assert os.listdir(folder.path) == []


def grow(path: str, kind: str, data: bytes) -> None:
    os.truncate(path, len(data) + HUGE_PAGE)
    if kind != "hugetlbfs":
        with open(path, "r+b") as file:
            os.pwrite(file.fileno(), noise(HUGE_PAGE), len(data))
    else:
        write_huge(path, data + noise(HUGE_PAGE))


@pytest.mark.sample(9)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(("method", "kind"), OWNED)
def test_grown_meanwhile(method, kind, begun, make, lane: Lane, folder_on) -> None:
    data = longer_than_a_step(method)
    source = make(kind, data)
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(source), method=method, checksum="xxh128")
    steps: list[Callable[[], object]] = [lambda: grow(source, kind, data), lambda: transfer.begin(folder, lane)]
    for step in reversed(steps) if begun else steps:
        step()
    finish(transfer, folder, lane)
    assert Path(folder.path, "dump").read_bytes() == data
    assert transfer.digest == digest_of(data, "xxh128")
