"""The lock of a folder: a file of our own in it, that its last user takes away."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import seccomp
from files import busy

from asyncdump.errors import DumpError
from asyncdump.sinks.lock import Lock
from asyncdump.vocabulary.names import LOCK


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_one_at_a_time(folder: int, tmp_path: Path) -> None:
    lock = Lock(folder, str(tmp_path))
    assert stat.S_IMODE((tmp_path / LOCK).stat().st_mode) == 0o600
    for shared in (False, True):
        with pytest.raises(DumpError, check=busy):
            Lock(folder, str(tmp_path), shared=shared)
    lock.release()
    lock.release()
    assert os.listdir(tmp_path) == []
    Lock(folder, str(tmp_path)).release()


def test_readers_keep_writers_out_and_the_last_of_them_cleans_up(folder: int, tmp_path: Path) -> None:
    first, second = (Lock(folder, str(tmp_path), shared=True) for _ in range(2))
    with pytest.raises(DumpError, check=busy):
        Lock(folder, str(tmp_path))
    first.release()
    with pytest.raises(DumpError, check=busy):
        Lock(folder, str(tmp_path))
    second.release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("removable", [True, False])
def test_a_child_that_has_the_same_open_file_keeps_no_lock(removable, folder: int, tmp_path: Path) -> None:
    def lock_and_release() -> None:
        for shared in (True, False):
            first = Lock(folder, str(tmp_path), shared=shared)
            child = os.dup(first._fd)  # What fork(2) leaves with a child.
            first.release()
            Lock(folder, str(tmp_path)).release()
            os.close(child)

    if removable:
        lock_and_release()
    else:
        seccomp.without(["unlinkat=EPERM"], lock_and_release)
    assert os.listdir(tmp_path) == ([] if removable else [LOCK])


def test_what_a_killed_run_left_locks_nothing(folder: int, tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    Lock(folder, str(tmp_path)).release()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_something_else_of_that_name(kind: str, folder: int, tmp_path: Path) -> None:
    place = tmp_path / LOCK
    match kind:
        case "link":
            (tmp_path / "elsewhere").write_bytes(b"kept")
            place.symlink_to(tmp_path / "elsewhere")
        case "fifo":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
    with pytest.raises(DumpError):
        Lock(folder, str(tmp_path))
    Lock(folder, str(tmp_path), shared=True).release()  # Who only reads does without.
    assert os.path.lexists(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of others")
def test_a_file_of_somebody_else(folder: int, tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    os.chown(tmp_path / LOCK, 65534, 65534)
    with pytest.raises(DumpError) as refused:
        Lock(folder, str(tmp_path))
    assert refused.value.hint
    assert (tmp_path / LOCK).exists()
    os.chown(tmp_path, 65534, 65534)  # It is that of the folder's owner now, as a run of theirs left it.
    Lock(folder, str(tmp_path)).release()
    reader = Lock(folder, str(tmp_path), shared=True)  # In a folder of others nothing is made by who only reads.
    assert os.listdir(tmp_path) == []
    reader.release()


def test_one_that_somebody_removes(folder: int, tmp_path: Path) -> None:
    lock = Lock(folder, str(tmp_path))
    (tmp_path / LOCK).unlink()
    later = Lock(folder, str(tmp_path))
    lock.release()  # Not the file of the other.
    assert os.listdir(tmp_path) == [LOCK]
    later.release()


def test_locks_that_come_and_go_at_once(tmp_path: Path) -> None:
    """Whoever opened a file that its user removes locks it in vain: two never hold it together."""
    holders = 0
    wrong = []
    taken = []
    turn = threading.Lock()

    def contend() -> None:
        nonlocal holders
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(300):
            try:
                lock = Lock(fd, str(tmp_path))
            except DumpError:
                continue
            with turn:
                holders += 1
                wrong.append(holders > 1)
            with turn:
                holders -= 1
            taken.append(True)
            lock.release()
        os.close(fd)

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken
    assert not any(wrong)
    assert os.listdir(tmp_path) == []


def test_a_filesystem_without_locks(folder: int, tmp_path: Path) -> None:
    seccomp.without(["flock=ENOLCK"], lambda: Lock(folder, str(tmp_path)).release())
    assert os.listdir(tmp_path) == []
