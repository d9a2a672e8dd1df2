"""Whatever is closed is closed once: a number that was closed may be somebody else's a moment later (close(2))."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from files import MiB, look_at, new_transfer, noise

from asyncdump.codecs.content import StreamedContent
from asyncdump.codecs.zstd import ZSTD
from asyncdump.errors import DumpError
from asyncdump.kernel.lane import Buffers, Lane
from asyncdump.records.journal import Head, Journal
from asyncdump.sinks.comparing import ComparingSink
from asyncdump.sinks.file import FileSink
from asyncdump.sinks.folder import Folder
from asyncdump.transfer.unpack import DirectRead


def of_lane(place: Path) -> Callable[[], None]:
    lane = Lane()
    assert lane.pipe
    return lane.close


def of_folder(place: Path) -> Callable[[], None]:
    folder = Folder(str(place))
    folder.lock()
    return folder.close


def of_journal(place: Path) -> Callable[[], None]:
    return Journal(Folder(str(place)), Head()).close


def of_sink(place: Path) -> Callable[[], None]:
    return FileSink(os.open(place / "file", os.O_RDWR), str(place / "file")).close


def of_draft(place: Path) -> Callable[[], None]:
    return Folder(str(place)).create("draft").abort


def of_transfer(place: Path) -> Callable[[], None]:
    transfer = new_transfer(look_at(place / "file"))
    lane = Lane()
    transfer.begin(Folder(str(place)), lane)
    return transfer.abort


def of_content(place: Path) -> Callable[[], None]:
    return StreamedContent(os.open(place / "file", os.O_RDONLY), str(place / "file"), ZSTD).close


def of_direct(place: Path) -> Callable[[], None]:
    fd = os.open(place / "file", os.O_RDONLY)
    return DirectRead(fd).close


def of_mirror(place: Path) -> Callable[[], None]:
    path = str(place / "file")
    return ComparingSink(os.open(path, os.O_RDONLY), path, Buffers(), codec=None).close


ALL = [of_lane, of_folder, of_journal, of_sink, of_draft, of_transfer, of_content, of_direct, of_mirror]


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[int]]:
    """Count what is closed; each close fails, as one that a signal interrupts does, and has closed all the same."""
    counts: Counter[int] = Counter()
    close = os.close

    def close_badly(fd: int) -> None:
        counts[fd] += 1
        close(fd)
        raise InterruptedError(4, "EINTR")

    monkeypatch.setattr(os, "close", close_badly)
    yield counts
    monkeypatch.undo()


@pytest.mark.parametrize("make", ALL)
def test_once_and_for_all(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request) -> None:
    (tmp_path / "file").write_bytes(noise(MiB))
    shut = make(tmp_path)
    counts = request.getfixturevalue("closed")
    for _ in range(3):
        shut()
    assert counts
    assert set(counts.values()) == {1}


def test_a_folder_that_can_not_be_locked_is_closed(tmp_path: Path) -> None:
    held, other = Folder(str(tmp_path)), Folder(str(tmp_path))
    held.lock()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DumpError):
        other.lock()
    assert len(os.listdir("/proc/self/fd")) == before
    other.close()
    held.close()
    assert os.listdir(tmp_path) == []
