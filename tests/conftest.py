"""Fixtures: real files of every kind, on real filesystems. Each fixture releases what it takes from the machine."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from files import (
    HUGE_KINDS,
    HUGE_PAGE,
    Dumper,
    GiB,
    MiB,
    noise,
    transfer_file,
    unavailable,
    write_huge,
    write_pages,
)
from xdist.scheduler.loadscope import LoadScopeScheduling

from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import filesystem
from asyncdump.sinks.folder import Folder

_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_GIGANTIC_POOL = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB")
_HUGE_PAGES = 160
_MFD_HUGE_2MB = 21 << 26

Factory = pytest.TempPathFactory
Maker = Callable[..., str]


def pytest_configure() -> None:
    """Restore signals that nohup and ``&`` ignore: the commands under test would inherit that and ignore them, too."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run tests on two workers, or in this process if they are selected one by one; ``-n N`` overrides that."""
    return 0 if any("::" in argument for argument in config.args) else 2


class _ByModule(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each worker whole modules, and one of them all that take huge pages: the machine has one pool of those."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "huge pages" if _takes_huge_pages(self.config.rootpath / module) else module


@cache
def _takes_huge_pages(module: Path) -> bool:
    return re.search("hugetlbfs|huge_memfd|gigantic", module.read_text()) is not None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByModule(config, log)  # Without a log it prints what it does.


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kernel" in item.path.relative_to(Path(__file__).parent).parts[:-1]:
            item.add_marker(pytest.mark.kernel)
    _leave_a_sample(items)


def _leave_a_sample(items: list[pytest.Item]) -> None:
    """Mark all sets of parameters of a test with ``sample(N)`` as slow, except for N of them."""
    sampled: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sample"):
            sampled[item.nodeid.partition("[")[0]].append(item)
    for each in sampled.values():
        mark = each[0].get_closest_marker("sample")
        assert mark is not None
        # Steps of the golden ratio: spread out, and never in phase with the product of the parameters.
        chosen = {int(len(each) * (number * 0.618034 % 1)) for number in range(mark.args[0])}
        for number, item in enumerate(each):
            if number not in chosen:
                item.add_marker(pytest.mark.slow)


def _is_root() -> bool:
    return os.geteuid() == 0


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        unavailable(f"{' '.join(map(str, command))} says {done.stderr.strip()}")


@contextmanager
def _mounted(point: Path, *command: str | Path) -> Iterator[Path]:
    _run("mount", *command, point)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@contextmanager
def _pages_reserved(pool: Path, wanted: int, *, excusable: bool = False) -> Iterator[None]:
    """Add pages to a pool, and remove as many afterwards: other processes use the pool, too."""
    knob = pool / "nr_hugepages"
    if not knob.exists():
        unavailable(f"the kernel has no {knob}", excusable=excusable)
    before = int(knob.read_text())
    knob.write_text(str(before + wanted))
    granted = int(knob.read_text()) - before
    try:
        if granted < wanted:
            unavailable(f"the kernel grants {granted} of {wanted} pages of {pool.name}", excusable=excusable)
        yield
    finally:
        knob.write_text(str(int(knob.read_text()) - granted))


@contextmanager
def _huge_pages_of_a_user() -> Iterator[Path]:
    """Find a hugetlbfs mount that the current user may write to, with enough free pages in its pool."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "hugetlbfs" and "pagesize=2M" in options and os.access(point, os.W_OK):
            if int((_POOL / "free_hugepages").read_text()) < _HUGE_PAGES:
                unavailable(f"fewer than {_HUGE_PAGES} huge pages are free")
            folder = Path(tempfile.mkdtemp(prefix="asyncdump-tests-", dir=point))
            try:
                yield folder
            finally:
                shutil.rmtree(folder)
            return
    unavailable("not root, and there is no hugetlbfs to write to")


@pytest.fixture(scope="session")
def hugetlbfs(tmp_path_factory: Factory) -> Iterator[Path]:
    """A directory on hugetlbfs with 2 MiB pages, with enough of them reserved."""
    if not _is_root():
        with _huge_pages_of_a_user() as folder:
            yield folder
        return
    options = f"pagesize=2M,size={_HUGE_PAGES * HUGE_PAGE}"
    point = tmp_path_factory.mktemp("hugetlbfs")
    # More than the limit of the mount: huge memfds come from the same pool.
    with _pages_reserved(_POOL, _HUGE_PAGES + 40), _mounted(point, "-t", "hugetlbfs", "-o", options, "none"):
        yield point


@pytest.fixture(scope="session")
def gigantic(tmp_path_factory: Factory) -> Iterator[Path]:
    """A hugetlbfs with one 1 GiB page: the only resource that may be missing even if the kernel tests are required."""
    if not _is_root():
        unavailable("1 GiB pages need root", excusable=True)
    point = tmp_path_factory.mktemp("gigantic")
    with (
        _pages_reserved(_GIGANTIC_POOL, 1, excusable=True),
        _mounted(point, "-t", "hugetlbfs", "-o", "pagesize=1G", "none"),
    ):
        yield point


@pytest.fixture(scope="session")
def tmpfs(tmp_path_factory: Factory) -> Iterator[Path]:
    if _kind_of("/dev/shm") == "tmpfs" and os.access("/dev/shm", os.W_OK):
        folder = Path(tempfile.mkdtemp(prefix="asyncdump-tests-", dir="/dev/shm"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
        return
    if not _is_root():
        unavailable("not root, and /dev/shm is no tmpfs to write to")
    with _mounted(tmp_path_factory.mktemp("tmpfs"), "-t", "tmpfs", "none") as point:
        yield point


def _kind_of(path: str | Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return filesystem(fd)[0]
    finally:
        os.close(fd)


@contextmanager
def _on_loop_device(base: Path, size: int, *mkfs: str) -> Iterator[Path]:
    if not _is_root():
        unavailable(f"{mkfs[0]} on a loop device needs root")
    if shutil.which(mkfs[0]) is None:
        unavailable(f"{mkfs[0]} is not installed")
    image, point = base / "image", base / "mount"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    _run(*mkfs, image)
    try:
        with _mounted(point, "-o", "loop", image):
            yield point
    finally:
        image.unlink()


@pytest.fixture(scope="session")
def ext4(tmp_path_factory: Factory) -> Iterator[Path]:
    """An ext4 with a few GiB of free space: the one with the temporary directory, or a new one."""
    folder = tmp_path_factory.mktemp("ext4")
    if _kind_of(folder) == "ext4":
        yield folder
        shutil.rmtree(folder)
        return
    with _on_loop_device(folder, 6 * GiB, "mkfs.ext4", "-q", "-m", "0") as point:
        yield point


@pytest.fixture(scope="session")
def xfs(tmp_path_factory: Factory) -> Iterator[Path]:
    with _on_loop_device(tmp_path_factory.mktemp("xfs"), 512 * MiB, "mkfs.xfs", "-q", "-m", "reflink=1") as point:
        yield point


@pytest.fixture(scope="session")
def btrfs(tmp_path_factory: Factory) -> Iterator[Path]:
    with _on_loop_device(tmp_path_factory.mktemp("btrfs"), 512 * MiB, "mkfs.btrfs", "-q") as point:
        yield point


@pytest.fixture
def read_only(tmp_path_factory: Factory) -> Iterator[Path]:
    """An empty tmpfs, mounted read-only."""
    if not _is_root():
        unavailable("to mount a filesystem needs root")
    with _mounted(tmp_path_factory.mktemp("read-only"), "-t", "tmpfs", "-o", "ro", "none") as point:
        yield point


@pytest.fixture
def tiny(tmp_path_factory: Factory) -> Iterator[Path]:
    """An ext4 of 32 MiB with 2 MiB of free space."""
    with _on_loop_device(tmp_path_factory.mktemp("tiny"), 32 * MiB, "mkfs.ext4", "-q", "-m", "0") as point:
        status = os.statvfs(point)
        (point / "filler").write_bytes(noise(status.f_bavail * status.f_frsize - 2 * MiB))
        os.sync()
        yield point


@contextmanager
def _memfds(flags: int) -> Iterator[Maker]:
    fds = []

    def make(data: bytes, *, holes: bool = False) -> str:
        fds.append(os.memfd_create("asyncdump-tests", flags | os.MFD_CLOEXEC))
        path = f"/proc/{os.getpid()}/fd/{fds[-1]}"
        write = write_huge if flags & os.MFD_HUGETLB else write_pages
        write(path, data, holes=holes)
        return path

    try:
        yield make
    finally:
        for fd in fds:
            os.close(fd)


@pytest.fixture
def memfd() -> Iterator[Maker]:
    """Makes memfds: files without a name, open only in this process."""
    with _memfds(0) as make:
        yield make


@pytest.fixture
def huge_memfd(hugetlbfs: Path) -> Iterator[Maker]:
    """Makes memfds of 2 MiB pages, from the pool that the hugetlbfs fixture has filled."""
    with _memfds(os.MFD_HUGETLB | _MFD_HUGE_2MB) as make:
        try:
            mmap.mmap(-1, HUGE_PAGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | 0x40000).close()  # MAP_HUGETLB
        except OSError as error:
            unavailable(f"huge pages without a file are refused: {error}")
        yield make


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Maker]:
    """Makes files of any kind for one test: ``make(kind, data, holes=False)`` returns the path."""
    made: list[Path] = []

    def make(kind: str, data: bytes, *, holes: bool = False) -> str:
        place = request.getfixturevalue(kind)
        if callable(place):
            return str(place(data, holes=holes))
        made.append(place / f"source-{len(made)}")
        (write_huge if kind in HUGE_KINDS else write_pages)(made[-1], data, holes=holes)
        return str(made[-1])

    yield make
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def lane() -> Iterator[Lane]:
    lane = Lane()
    yield lane
    lane.close()


@pytest.fixture(scope="session")
def dump(lane: Lane) -> Dumper:
    """Dumps one file with a transfer: ``dump(folder, path, method=..., checksum=...)``."""
    return partial(transfer_file, lane)


@pytest.fixture
def folder_on(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Folder]]:
    """Opens new output directories, on the filesystem of the named fixture, or under a path."""
    made: list[Folder] = []

    def folder(where: str | Path) -> Folder:
        place = request.getfixturevalue(where) if isinstance(where, str) else where
        made.append(Folder(tempfile.mkdtemp(prefix="dumps-", dir=place)))
        return made[-1]

    yield folder
    for each in made:
        each.close()
        shutil.rmtree(each.path, ignore_errors=True)  # A test may have moved it, and what holds it may be gone.


# --- sources for the command line: on the filesystem that memory-mapped files are on ----------------------------------


@pytest.fixture
def shm(tmpfs: Path) -> Iterator[Path]:
    """A directory on tmpfs for one test."""
    folder = Path(tempfile.mkdtemp(dir=tmpfs))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def sources(shm: Path) -> list[Path]:
    """Three files of moderate size on tmpfs."""
    made = []
    for number, size in enumerate((3 * MiB + 1, MiB, 5000)):
        made.append(shm / f"ring{number}")
        made[-1].write_bytes(noise(size, number))
    return made


@pytest.fixture
def endless(shm: Path) -> Path:
    """A file that is one hole: it needs no memory, its dump needs no disk space, but its digest takes an hour."""
    path = shm / "endless"
    with path.open("wb") as file:
        file.truncate(4096 * GiB)
    return path
