"""The reading side of a transfer: what is hashed on the way, whichever engine the kernel refuses, and when."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from files import KiB, MiB, digest_of, finish, new_transfer, noise, planned_dump, read, write_pages
from memory import PAGE, child

import asyncdump
from asyncdump import Dump
from asyncdump.engines import ENGINES, Refusal, Refused, Route
from asyncdump.kernel.lane import Lane
from asyncdump.sinks.file import FileSink
from asyncdump.sinks.folder import Folder
from asyncdump.sources import file
from asyncdump.transfer import transfer as transfers
from asyncdump.transfer.reader import Reader
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import Span


class Unwanted:
    """An engine that leaves bytes to the kernel, which refuses."""

    method = "reflink"
    span = MiB
    sees_bytes = False

    def __init__(self, how: type[Exception]) -> None:
        self.how = how
        self.calls: list[Span] = []

    def refuses(self, _route: Any) -> None:
        return None

    def load(self, _route: Any, _span: Span, _lane: Lane) -> None:
        return None

    def store(self, _route: Any, span: Span, _lane: Lane, _data: Any) -> None:
        self.calls.append(span)
        if self.how is Refused:
            raise Refused(Refusal(reason="it doesn't suit"))
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


@pytest.fixture
def unwanted(request, monkeypatch) -> Unwanted:
    """The first engine of every transfer; ``read`` is the second."""
    engine = Unwanted(getattr(request, "param", OSError))
    monkeypatch.setattr(transfers, "candidates", lambda *_, **__: [engine, ENGINES["read"]])
    return engine


@pytest.mark.parametrize("unwanted", [OSError, Refused], indirect=True)
@pytest.mark.parametrize("checksum", ["xxh128", "sha256"])
@pytest.mark.parametrize("hole", [0, 3 * MiB], ids=["data", "hole"])
def test_a_digest_is_right_whenever_the_engine_is_refused(
    unwanted, checksum, hole, lane, folder_on, tmpfs: Path
) -> None:
    """At the first span nothing is lost; after a hole that nobody hashed the sink has to be read back."""
    content = bytes(hole) + noise(2 * MiB + 300 * KiB)
    write_pages(tmpfs / "source", content, holes=True)
    transfer = new_transfer(file.look_at(os.fspath(tmpfs / "source")), checksum=checksum)
    folder: Folder = folder_on("ext4")
    transfer.begin(folder, lane)
    finish(transfer, folder, lane)
    assert len(unwanted.calls) == 1
    assert transfer._reader.hashes is (hole == 0)
    assert transfer.digest == transfer.content_digest == digest_of(content, checksum)
    assert read(Path(folder.path, "dump")) == content


def test_lanes_that_are_refused_at_once_replace_the_engine_once(unwanted, lane, folder_on, tmpfs: Path) -> None:
    content = bytes(2 * MiB) + noise(8 * MiB)
    write_pages(tmpfs / "source", content, holes=True)
    transfer = new_transfer(file.look_at(os.fspath(tmpfs / "source")), checksum="xxh128")
    folder: Folder = folder_on("ext4")
    transfer.begin(folder, lane)  # The hole.
    together = threading.Barrier(3)
    store = unwanted.store

    def at_once(*arguments: Any) -> None:
        together.wait(10)
        store(*arguments)

    unwanted.store = at_once
    lanes = [Lane() for _ in range(2)]
    threads = [threading.Thread(target=transfer.work, args=(each,)) for each in lanes]
    for thread in threads:
        thread.start()
    together.wait(10)
    for thread in threads:
        thread.join()
    for each in lanes:
        each.close()
    finish(transfer, folder, lane)
    assert len(unwanted.calls) == 2
    assert transfer.digest == digest_of(content, "xxh128")
    assert read(Path(folder.path, "dump")) == content


def test_lanes_that_are_refused_without_a_next_engine_both_say_so(lane, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(noise(100))
    reader = Reader(planned_dump(file.look_at(os.fspath(path))), Stop())
    engine: Any = Unwanted(OSError)
    origin = file.open_now(os.fspath(path))
    sink = FileSink(os.open(tmp_path / "sink", os.O_RDWR | os.O_CREAT), "sink")
    route = Route(origin=origin, sink=sink)
    reader.start(route, [engine], iter(()), lane)
    for _ in range(2):
        with pytest.raises(asyncdump.MethodRefusedError):
            reader.fall_back(engine, Refusal(reason="it doesn't suit"), lane, first=False)
    origin.close()
    sink.close()


@pytest.mark.parametrize("filters", [(), (["cat"],)], ids=["plain", "filter"])
async def test_a_way_to_feed_a_compressor_that_is_refused(filters, tmp_path: Path) -> None:
    """Memory of a process has no descriptor to splice from: what was named isn't replaced, it is refused."""
    with child() as owner:
        address = owner.do("map(4096, 0x22)")
        owner.do(f"fill({address}, 4096, 1)")
        dump = Dump(owner.range(address, PAGE), method="splice", compress="zstd", filter=filters)
        (failed,) = (await asyncdump.dump_all(dump, output=tmp_path, allow_filters=True)).files
    assert isinstance(failed.error, asyncdump.MethodRefusedError)
    assert "descriptor" in str(failed.error)
