"""Many files: what grows with their number neither holds up the process for long, nor stays in its way."""

from __future__ import annotations

import gc
import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

import asyncdump
from asyncdump.errors import DumpError
from asyncdump.records import receipt as receipts
from asyncdump.records import writer
from asyncdump.records.report import FileReport, Report
from asyncdump.records.writer import digest_lists, receipt
from asyncdump.vocabulary.values import Identity

MANY = 20_000
START = datetime(2024, 2, 29, 12, tzinfo=UTC)


def file(number: int, **changes: Any) -> FileReport:
    done = FileReport(
        source=f"/dev/shm/{number}",
        name=f"{number}",
        path=f"/dumps/{number}",
        bytes=4096,
        stored=4096,
        seconds=0.001,
        method="read",
        digest=f"xxh128:{number:032x}",
        content_digest=f"xxh128:{number:032x}",
        error=None,
        phase="done",
        identity=Identity(inode=number + 1, size=4096, mtime_ns=1 << 60),
        inode=number + 1,
        marks="00000000",
        manifest_sha256="ab" * 32,
    )
    return msgspec.structs.replace(done, **changes)


def report(*files: FileReport, **changes: Any) -> Report:
    values = {"output": "/dumps", "started": START, "ended": START, "interrupted": None, "manifest_sha256": ""}
    return Report(files=files, seconds=1.0, **{**values, **changes})


@pytest.fixture(scope="module")
def many() -> Report:
    return report(*map(file, range(MANY)))


@pytest.mark.parametrize(
    "files",
    [
        (),
        (file(1),),
        (file(1), file(2, name='x[{"', error=DumpError("no [{\n", hint="]}"), digest=None)),
        (file(1, stages=("zstd:3", "]"), bad=(asyncdump.BadRange(offset=1, length=2, errno=5),)), file(3)),
    ],
)
def test_record_by_record_a_receipt_is_what_it_would_be_at_once(files) -> None:
    for earlier in ((), (file(7),), (file(7), file(8))):
        made = receipt(report(*files, earlier=earlier), "1.0")
        assert msgspec.json.format(made, indent=1) + b"\n" == made
        read = json.loads(made)
        assert [each["bytes"] for each in read["files"]] == [4096] * len(files)
        assert [each["name"] for each in read["earlier"]] == [each.name for each in earlier]
        assert list(read)[-2:] == ["files", "earlier"]


def test_no_call_encodes_more_than_a_record(many, monkeypatch) -> None:
    """One call of the encoder keeps all other threads waiting, however long it takes."""
    sizes: list[int] = []
    formatted = writer._formatted

    def watch(content: Any) -> bytes:
        made = formatted(content)
        sizes.append(len(made))
        return made

    monkeypatch.setattr(writer, "_formatted", watch)
    made = receipt(many, "1.0")
    assert max(sizes) < 2000
    assert len(sizes) == MANY + 1
    assert len(json.loads(made)["files"]) == MANY


def test_digest_lists_take_the_time_that_their_lines_do(many) -> None:
    began = time.thread_time()
    lists = digest_lists(many)
    once = time.thread_time() - began
    assert lists["XXH128SUMS"].count(b"\n") == MANY
    eight = report(*(file(number) for number in range(8 * MANY)))
    began = time.thread_time()
    digest_lists(eight)
    assert time.thread_time() - began < 24 * once  # Three times what is linear; it was 64 times before.


def test_the_program_goes_on_while_a_receipt_is_read_and_written(many, tmp_path: Path) -> None:
    from asyncdump.sinks.folder import Folder

    waits: list[float] = []
    over = threading.Event()

    def beat() -> None:
        while not over.is_set():
            began = time.perf_counter()
            time.sleep(0.001)
            waits.append(time.perf_counter() - began)

    folder = Folder(str(tmp_path))
    beating = threading.Thread(target=beat)
    gc.disable()
    try:
        beating.start()
        (tmp_path / "receipt.json").write_bytes(receipt(many, "1.0"))
        read = receipts.read_receipt(folder)
    finally:
        over.set()
        beating.join()
        gc.enable()
        folder.close()
    assert read is not None
    assert len(read.known) == MANY
    assert sorted(waits)[-3] < 0.15  # Threads of other programs may have their turn now and then.


def test_a_receipt_knows_its_dumps_once(many) -> None:
    read = receipts.Receipt(path="r", files=many.files, earlier=(file(MANY),), missing=2)
    assert read.known is read.known
    assert read.ours is read.ours
    assert (len(read.known), len(read.ours), read.unmade) == (MANY + 1, MANY + 1, 2)


async def test_what_is_kept_of_each_file_is_nothing_for_the_garbage_collector(tmp_path: Path) -> None:
    """A collection stops all threads, and takes as long as there are objects to look at."""
    count = 2000
    sources = tmp_path / "sources"
    sources.mkdir()
    for number in range(count):
        (sources / f"f{number}").write_bytes(b"x")
    dumps = [asyncdump.Dump(source=str(sources / "*"))]
    await asyncdump.dump_all([asyncdump.Dump(source=str(sources / "f1"))], output=tmp_path / "first", durable=False)
    gc.collect()
    before = len(gc.get_objects())
    async with asyncdump.open_run(dumps, output=tmp_path / "dumps", durable=False) as run:
        async for _ in run:
            pass
    gc.collect()
    left = len(gc.get_objects()) - before
    assert run.report.ok
    assert left < 1.5 * count
    values = (*run.report.files[:3], *run.plan.dumps[:3])
    assert not any(map(gc.is_tracked, values))
