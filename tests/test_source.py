"""Sources on real filesystems: what they are, where their holes are, and what is refused without a wait."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from files import PAGE, MiB, look_at, noise
from hypothesis import given
from hypothesis import strategies as st

from asyncdump.errors import DumpError, SourceChangedError
from asyncdump.sources.describe import describe
from asyncdump.sources.extents import find_spans
from asyncdump.sources.file import open_source, reopen
from asyncdump.vocabulary.values import Source, Span, Stat


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def place(request: pytest.FixtureRequest) -> Path:
    """A folder on each kind of filesystem that tells of its holes."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture
def no_leak() -> Iterator[None]:
    """Fails the test if it leaves a descriptor open."""
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


# --- spans ------------------------------------------------------------------------------------------------------------

Layout = list[tuple[int, bool]]
"""Runs of a file: how many pages, and whether they are a hole."""

layouts = st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=8)


def lay_out(path: Path, layout: Layout, tail: int) -> list[bool]:
    """Write a file with holes, ``tail`` bytes longer than its pages; return for each page whether it is a hole."""
    holes = [hole for count, hole in layout for _ in range(count)]
    with path.open("wb", buffering=0) as file:
        for page, hole in enumerate(holes):
            if not hole:
                os.pwrite(file.fileno(), noise(PAGE, page), page * PAGE)
        file.truncate(len(holes) * PAGE + tail)
    return [*holes, True] if tail else holes


def spans_of(path: Path, start: int, end: int, shortest_hole: int = 1) -> list[Span]:
    fd = open_source(os.fspath(path))
    try:
        return list(find_spans(fd, describe(fd, os.fspath(path)), start, end, shortest_hole=shortest_hole))
    finally:
        os.close(fd)


def expected_spans(holes: list[bool], start: int, end: int, shortest_hole: int) -> list[tuple[int, int, bool]]:
    """Say the same as `find_spans` by looking at each page."""
    runs: list[tuple[int, int, bool]] = []
    for page, hole in enumerate(holes):
        low, high = max(start, page * PAGE), min(end, (page + 1) * PAGE)
        if low < high:
            runs.append((low, high, hole))
    for least in (1, shortest_hole):
        merged: list[tuple[int, int, bool]] = []
        for low, high, hole in runs:
            kind = hole and high - low >= least
            if merged and merged[-1][2] == kind:
                merged[-1] = (merged[-1][0], high, kind)
            else:
                merged.append((low, high, kind))
        runs = merged
    return runs


@given(layouts, st.integers(0, PAGE - 1), st.data())
def test_spans_are_what_the_file_is_made_of(place: Path, layout: Layout, tail: int, data: st.DataObject) -> None:
    path = place / "holey"
    holes = lay_out(path, layout, tail)
    size = path.stat().st_size
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    shortest_hole = data.draw(st.sampled_from([1, 2, PAGE, PAGE + 1, 2 * PAGE, 5 * PAGE]))
    spans = spans_of(path, start, end, shortest_hole)
    # In order, without a gap, exactly this range: what isn't covered would be lost from the dump.
    assert [span.offset for span in spans] == [start, *(span.end for span in spans[:-1])][: len(spans)]
    assert sum(span.length for span in spans) == end - start
    assert all(span.length > 0 for span in spans)
    content = path.read_bytes()
    assert not any(any(content[span.offset : span.end]) for span in spans if span.hole)
    assert [(span.offset, span.end, span.hole) for span in spans] == expected_spans(holes, start, end, shortest_hole)


@pytest.mark.parametrize("size", [1, PAGE, 3 * PAGE + 1])
def test_a_file_that_is_nothing_but_a_hole(place: Path, size) -> None:
    path = place / "hole"
    path.touch()
    os.truncate(path, size)
    assert spans_of(path, 0, size) == [Span(offset=0, length=size, hole=True)]


def test_an_empty_range_has_no_spans(place: Path) -> None:
    path = place / "some"
    path.write_bytes(noise(2 * PAGE))
    for at in (0, PAGE, 2 * PAGE):
        assert spans_of(path, at, at) == []


def test_a_file_that_shrinks_meanwhile_still_ends(place: Path) -> None:
    path = place / "shrinking"
    lay_out(path, [(2, False), (2, True)] * 4, 0)
    size = path.stat().st_size
    fd = open_source(os.fspath(path))
    try:
        spans = find_spans(fd, describe(fd, os.fspath(path)), 0, size)
        first = next(spans)
        os.truncate(path, 0)
        rest = list(spans)
    finally:
        os.close(fd)
    assert sum(span.length for span in (first, *rest)) == size


def test_a_whole_file_is_one_span(place: Path) -> None:
    path = place / "whole"
    path.write_bytes(noise(MiB + 1))
    assert spans_of(path, 5, MiB) == [Span(offset=5, length=MiB - 5)]


# --- what is refused --------------------------------------------------------------------------------------------------


def special(folder: Path, kind: str) -> str:
    """Make something that is no file."""
    path = folder / "special"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "socket":
            fd = os.open(folder, os.O_RDONLY)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"/proc/self/fd/{fd}/special")
            os.close(fd)
        case "character device":
            return "/dev/zero"
    return os.fspath(path)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "character device"])
@pytest.mark.usefixtures("no_leak")
def test_what_is_no_file_is_refused_at_once(kind, tmp_path: Path) -> None:
    path = special(tmp_path, kind)
    with pytest.raises(DumpError) as refused:
        open_source(path)
    assert (refused.value.path, refused.value.operation, refused.value.errno) == (path, "open", None)
    assert refused.value.hint


SWAP = """
import ctypes, sys
first, second = (path.encode() for path in sys.argv[1:])
swap = ctypes.CDLL(None).renameat2
while True:
    swap(-100, first, -100, second, 2)  # AT_FDCWD, RENAME_EXCHANGE
"""


@pytest.mark.sample(1)
@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["folder", "fifo"])
@pytest.mark.usefixtures("no_leak")
def test_nor_does_it_wait_for_what_took_the_place_of_a_file(kind, tmp_path: Path) -> None:
    path = special(tmp_path, kind)
    (tmp_path / "file").touch()
    outcomes = set()
    with subprocess.Popen([sys.executable, "-c", SWAP, path, tmp_path / "file"]) as swapping:
        try:
            for _ in range(30_000):  # About one in 3000 is swapped after it was looked at, and before it is opened.
                try:
                    fd = open_source(path)
                except DumpError as error:
                    outcomes.add(error.errno)
                else:
                    outcomes.add(stat.S_ISREG(os.fstat(fd).st_mode))
                    os.close(fd)
        finally:
            swapping.kill()
    assert outcomes == {None, True}


@pytest.mark.usefixtures("no_leak")
def test_what_is_not_there(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "missing")
    with pytest.raises(DumpError) as failed:
        open_source(path)
    assert (failed.value.path, failed.value.operation, failed.value.errno) == (path, "open", errno.ENOENT)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_file_of_another_user_is_read_without_noatime(tmp_path: Path) -> None:
    fd = open_source("/etc/passwd")
    try:
        assert os.read(fd, 5) == b"root:"
    finally:
        os.close(fd)
    path = tmp_path / "secret"
    path.touch(0)
    with pytest.raises(DumpError, match="EACCES"):
        open_source(os.fspath(path))


def test_the_descriptor_is_for_reading_and_for_this_process(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"x")
    fd = open_source(os.fspath(path))
    try:
        assert not os.get_inheritable(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"y")
    finally:
        os.close(fd)


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_file_is_described(kind, request) -> None:
    path = request.getfixturevalue(kind) / "described"
    lay_out(path, [(1, False), (3, True)], 7)
    status = path.stat()
    assert look_at(path) == Source(
        path=os.fspath(path),
        filesystem=kind,
        page=PAGE,
        size=4 * PAGE + 7,
        allocated=PAGE,
        device=status.st_dev,
        inode=status.st_ino,
        mtime_ns=status.st_mtime_ns,
        memfd=False,
        stat=Stat(mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns),
    )
    assert look_at(path).kind == kind
    assert look_at(path).has_holes
    assert look_at(path).in_memory == (kind == "tmpfs")


def test_a_file_without_holes_has_none(place: Path) -> None:
    path = place / "full"
    path.write_bytes(noise(3 * PAGE + 1))
    assert not look_at(path).has_holes


def test_a_memfd_is_told_from_a_file_in_memory(memfd: Callable[..., str], tmpfs: Path) -> None:
    source = look_at(memfd(b"x" * 10))
    assert (source.kind, source.filesystem, source.size, source.in_memory) == ("memfd", "tmpfs", 10, True)
    path = tmpfs / "open"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        assert look_at(f"/proc/{os.getpid()}/fd/{file.fileno()}").kind == "tmpfs"


@pytest.mark.parametrize(
    ("filesystem", "page", "memfd", "expected"),
    [
        ("hugetlbfs", 2 << 20, False, "hugetlbfs 2 MiB"),
        ("hugetlbfs", 1 << 30, False, "hugetlbfs 1 GiB"),
        ("hugetlbfs", 2 << 20, True, "memfd 2 MiB"),
        ("hugetlbfs", 16 << 30, True, "memfd 16 GiB"),
        ("tmpfs", 4096, True, "memfd"),
        ("block device", 4096, False, "block device"),
    ],
)
def test_the_kind_for_people(filesystem, page, memfd, expected) -> None:
    source = Source(
        path="/x", filesystem=filesystem, page=page, size=0, allocated=0, device=0, inode=0, mtime_ns=0, memfd=memfd
    )
    assert source.kind == expected


# --- opened again -----------------------------------------------------------------------------------------------------


@pytest.fixture
def planned(tmp_path: Path) -> Source:
    path = tmp_path / "planned"
    path.write_bytes(noise(1000))
    return look_at(path)


@pytest.mark.usefixtures("no_leak")
def test_what_has_grown_is_still_the_same(planned: Source) -> None:
    os.truncate(planned.path, 2000)
    source = reopen(planned)
    try:
        assert (source.described.inode, source.described.size) == (planned.inode, 2000)
        assert os.fstat(source.fd).st_ino == planned.inode
    finally:
        source.close()


@pytest.mark.usefixtures("no_leak")
def test_what_has_shrunk_is_not(planned: Source) -> None:
    os.truncate(planned.path, 999)
    with pytest.raises(SourceChangedError, match=r"999\b.*\b1000"):
        reopen(planned)


@pytest.mark.usefixtures("no_leak")
def test_what_was_replaced_is_not(planned: Source, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(noise(1000))
    os.replace(other, planned.path)
    with pytest.raises(SourceChangedError, match=r"/planned\b"):
        reopen(planned)


@pytest.mark.timeout(10)
@pytest.mark.usefixtures("no_leak")
def test_what_became_a_fifo_is_refused(planned: Source) -> None:
    os.unlink(planned.path)
    os.mkfifo(planned.path)
    with pytest.raises(DumpError, match="fifo"):
        reopen(planned)
