"""System calls made by hand: they do what their man pages say, and fail as those say."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from files import PAGE, MiB, noise
from hypothesis import example, given
from hypothesis import strategies as st

from asyncdump.kernel.lane import Buffer, Lane
from asyncdump.kernel.linux import (
    SYNC_FILE_RANGE_WAIT_AFTER,
    SYNC_FILE_RANGE_WRITE,
    filesystem,
    is_zero,
    map_for_kernel,
    rename_new,
    sync_file_range,
    syncfs,
    unmap,
    vmsplice,
)

BUFFER = Buffer(4 * PAGE)
NO_DESCRIPTOR = 2**31 - 1


@pytest.fixture(params=["tmpfs", "ext4"])
def place(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


# --- zeros ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 2 * PAGE // 8), st.integers(0, PAGE), st.integers(0, 2 * PAGE), st.integers(1, 255))
@example(1, 0, 0, 1)
@example(1, 0, 7, 1)
@example(1, 0, 8, 1)
@example(512, 8, 4103, 128)
def test_one_byte_is_enough_not_to_be_zero(words: int, start: int, at: int, value: int) -> None:
    """A byte that isn't zero, before the range, in it, or behind it."""
    start -= start % 8
    view = BUFFER.view
    view[:] = bytes(len(view))
    view[at] = value
    inside = start <= at < start + 8 * words
    assert is_zero(BUFFER.address + start, 8 * words) == (not inside)


@given(st.binary(min_size=8, max_size=64).map(lambda data: data[: len(data) & ~7]) | st.sampled_from([b"\1" * 16]))
def test_bytes_that_repeat_are_not_zeros(data: bytes) -> None:
    BUFFER.view[: len(data)] = data
    assert is_zero(BUFFER.address, len(data)) == (not any(data))


# --- filesystems ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_filesystem_has_its_name_and_block_size(kind, request) -> None:
    path = request.getfixturevalue(kind)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert filesystem(fd) == (kind, os.statvfs(path).f_bsize)
    finally:
        os.close(fd)


def test_an_unknown_filesystem_is_named_by_its_number() -> None:
    reading, writing = os.pipe()
    try:
        assert filesystem(reading)[0] == "0x50495045"
    finally:
        os.close(reading)
        os.close(writing)


def test_every_call_tells_of_a_descriptor_that_is_none() -> None:
    calls = [
        lambda: filesystem(NO_DESCRIPTOR),
        lambda: syncfs(NO_DESCRIPTOR),
        lambda: sync_file_range(NO_DESCRIPTOR, 0, 0, SYNC_FILE_RANGE_WRITE),
        lambda: rename_new(NO_DESCRIPTOR, "a", "b"),
        lambda: map_for_kernel(NO_DESCRIPTOR, PAGE, 0),
        lambda: vmsplice(NO_DESCRIPTOR, BUFFER.address, PAGE),
    ]
    for call in calls:
        with pytest.raises(OSError, match="Bad file descriptor") as failed:
            call()
        assert failed.value.errno == errno.EBADF


def test_syncing_a_filesystem_and_a_range(place: Path) -> None:
    path = place / "synced"
    with path.open("wb", buffering=0) as file:
        file.write(noise(3 * PAGE))
        sync_file_range(file.fileno(), 0, PAGE, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER)
        with pytest.raises(OSError, match="Invalid argument"):
            sync_file_range(file.fileno(), -1, PAGE, SYNC_FILE_RANGE_WRITE)
        with pytest.raises(OSError, match="Invalid argument"):
            sync_file_range(file.fileno(), 0, PAGE, 1 << 10)
    path.unlink()


# --- renaming ---------------------------------------------------------------------------------------------------------


def test_a_name_that_is_free_is_given(folder: int, tmp_path: Path) -> None:
    (tmp_path / "größe").write_bytes(b"x")
    rename_new(folder, "größe", "new")
    assert os.listdir(folder) == ["new"]
    assert (tmp_path / "new").read_bytes() == b"x"


def test_a_name_that_is_taken_is_not(folder: int, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"ours")
    (tmp_path / "new").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("new", "link", "folder"):
        with pytest.raises(FileExistsError):
            rename_new(folder, "old", name)
    assert (tmp_path / "old").read_bytes() == b"ours"
    assert (tmp_path / "new").read_bytes() == b"theirs"
    assert (tmp_path / "link").is_symlink()


def test_what_is_not_there_cannot_be_renamed(folder: int) -> None:
    with pytest.raises(FileNotFoundError):
        rename_new(folder, "old", "new")


# --- pages into a pipe ------------------------------------------------------------------------------------------------


@pytest.fixture
def lane_of_ours() -> Iterator[Lane]:
    lane = Lane()
    yield lane
    lane.close()


@pytest.mark.parametrize(("offset", "skip", "length"), [(0, 0, 4 * PAGE), (PAGE, 100, 2 * PAGE), (3 * PAGE, 4095, 1)])
def test_pages_of_a_file_go_into_a_pipe(place: Path, lane_of_ours: Lane, offset, skip, length) -> None:
    path = place / "spliced"
    data = noise(4 * PAGE)
    path.write_bytes(data)
    out, into = lane_of_ours.pipe
    fd = os.open(path, os.O_RDONLY)
    try:
        size = 4 * PAGE - offset
        address = map_for_kernel(fd, size, offset)
        try:
            assert vmsplice(into, address + skip, length) == length
        finally:
            unmap(address, size)
    finally:
        os.close(fd)
    # The pipe holds the pages by now, mapped or not.
    assert os.read(out, MiB) == data[offset + skip : offset + skip + length]
    path.unlink()


def test_pages_that_are_gone_are_an_error_and_no_signal(place: Path, lane_of_ours: Lane) -> None:
    path = place / "truncated"
    path.write_bytes(noise(2 * PAGE))
    fd = os.open(path, os.O_RDONLY)
    address = map_for_kernel(fd, 2 * PAGE, 0)
    os.close(fd)
    try:
        os.truncate(path, 0)
        with pytest.raises(OSError, match="Bad address") as failed:
            vmsplice(lane_of_ours.pipe[1], address, 2 * PAGE)
        assert failed.value.errno == errno.EFAULT
    finally:
        unmap(address, 2 * PAGE)
    path.unlink()


def test_a_mapping_must_start_on_a_page(place: Path) -> None:
    path = place / "mapped"
    path.write_bytes(noise(2 * PAGE))
    with path.open("rb") as file, pytest.raises(OSError, match="Invalid argument"):
        map_for_kernel(file.fileno(), PAGE, 100)
    path.unlink()


def test_what_is_no_pipe_takes_no_pages(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        vmsplice(file.fileno(), BUFFER.address, PAGE)
