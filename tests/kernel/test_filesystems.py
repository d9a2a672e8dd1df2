"""What the table says of filesystems, held against those that can be mounted here."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from files import HUGE_PAGE, MiB, noise, write_huge

from asyncdump.kernel.filesystems import NAMES, Traits, traits
from asyncdump.kernel.linux import filesystem, syncfs

KINDS = ["ext4", "xfs", "btrfs", "tmpfs", "hugetlbfs"]


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def file(folder: Path) -> Iterator[Path]:
    """A file of one huge page."""
    path = folder / "traits"
    if known(folder).huge_pages:
        write_huge(path, noise(HUGE_PAGE))
    else:
        path.write_bytes(noise(HUGE_PAGE))
        with opened(path) as fd:
            os.fsync(fd)
    yield path
    path.unlink()


def known(folder: Path) -> Traits:
    with opened(folder) as fd:
        return traits(filesystem(fd)[0])


def test_its_name(folder: Path, request: pytest.FixtureRequest) -> None:
    with opened(folder) as fd:
        assert filesystem(fd)[0] == request.node.callspec.params["folder"]


def test_reads_end_at_the_size(file: Path, folder: Path) -> None:
    assert known(folder).true_size
    assert not known(folder).generated
    with opened(file) as fd:
        assert os.pread(fd, 2, HUGE_PAGE - 1) == noise(HUGE_PAGE)[-1:]


def test_only_a_mapping_fills_huge_pages(file: Path, folder: Path) -> None:
    with opened(file, os.O_RDWR) as fd:
        if not known(folder).huge_pages:
            assert os.pwrite(fd, b"x", 0) == 1
            return
        with pytest.raises(OSError, match="Invalid argument") as refused:
            os.pwrite(fd, b"x", 0)
        assert refused.value.errno == errno.EINVAL
        assert filesystem(fd)[1] == HUGE_PAGE
        with mmap.mmap(fd, HUGE_PAGE) as mapping:
            mapping[0:1] = b"x"
        assert os.pread(fd, 1, 0) == b"x"


def test_huge_pages_list_no_holes(folder: Path) -> None:
    path = folder / "holey"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 2 * HUGE_PAGE)
        finds_none = os.lseek(fd, 0, os.SEEK_HOLE) == 2 * HUGE_PAGE
    path.unlink()
    assert finds_none is known(folder).huge_pages


def test_clones_share_blocks(file: Path, folder: Path) -> None:
    """Where a clone is free, what it clones takes no room; elsewhere it is a copy, or refused."""
    clone = folder / "clone"
    with opened(file) as source, opened(clone, os.O_RDWR | os.O_CREAT) as target:
        copied = 0
        with suppress(OSError):  # tmpfs and hugetlbfs refuse, one way or another.
            copied = os.copy_file_range(source, target, HUGE_PAGE, 0, 0)
        os.fsync(target)
        shared = copied == HUGE_PAGE and _extents(source) == _extents(target) != []
    clone.unlink()
    if known(folder).clones_are_free:
        assert known(folder).clones
        assert shared
    else:
        assert not shared


def _extents(fd: int) -> list[int]:
    """Return where the blocks of a file lie (ioctl_fiemap: FS_IOC_FIEMAP); nothing where the filesystem doesn't say."""
    request = bytearray(struct.pack("=QQLLLL", 0, HUGE_PAGE, 1, 0, 64, 0) + bytes(64 * 56))
    try:
        fcntl.ioctl(fd, 0xC020660B, request)
    except OSError:
        return []
    (count,) = struct.unpack_from("=L", request, 20)
    return [struct.unpack_from("=QQQ", request, 32 + 56 * number)[1] for number in range(count)]


def test_memory_is_no_disk(folder: Path) -> None:
    """What is in memory is on no block device: its major number is 0, and /sys lists none for it."""
    device = os.stat(folder).st_dev
    on_disk = os.path.exists(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if known(folder).in_memory:
        assert not on_disk
    else:
        assert on_disk or known(folder).compresses  # btrfs has devices of its own numbers, one a subvolume.


@pytest.mark.parametrize("folder", ["ext4", "xfs"], indirect=True)
def test_punched_blocks_are_missed(file: Path, folder: Path) -> None:
    """Content that is gone from the middle shows in st_blocks, where the table says so."""
    assert known(folder).keeps_blocks
    before = os.stat(file).st_blocks
    with opened(file, os.O_RDWR) as fd:
        libc = ctypes.CDLL(None, use_errno=True)
        punch = ctypes.c_int64(MiB), ctypes.c_int64(MiB // 2)
        assert libc.fallocate(fd, 0x1 | 0x2, *punch) == 0, os.strerror(ctypes.get_errno())
        os.fsync(fd)
    assert os.stat(file).st_blocks == before - MiB // 2 // 512


def test_syncfs_writes_all_of_it_back(file: Path, folder: Path) -> None:
    with opened(folder) as fd:
        syncfs(fd)


@pytest.mark.parametrize("folder", ["btrfs"], indirect=True)
def test_what_compresses(folder: Path) -> None:
    """btrfs does when it is asked, for one file, by the property that its tool sets (btrfs-property(8))."""
    assert known(folder).compresses
    path = folder / "compressed"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.setxattr(fd, "btrfs.compression", b"zstd")
        os.pwrite(fd, b"x" * MiB, 0)
        os.fsync(fd)
        assert len(set(_extents(fd))) > 1  # Compressed extents have at most 128 KiB.
    path.unlink()


@pytest.mark.parametrize("path", ["/proc/self/status", "/sys/kernel/mm/hugepages", "/sys/fs/cgroup"])
def test_what_is_made_up_when_it_is_read(path: str) -> None:
    if not os.path.exists(path):
        pytest.skip(f"there is no {path}")
    with opened(Path(path)) as fd:
        name = filesystem(fd)[0]
    assert name in NAMES.values()
    assert traits(name).generated or traits(name).in_memory  # /sys/fs/cgroup is a tmpfs with cgroups of version 1.


def test_an_unknown_one_promises_nothing() -> None:
    assert traits("0x12345") == traits("") == Traits()
