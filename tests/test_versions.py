"""Records of version 1 are verified, restored, resumed and completed; those of a version to come are left alone."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from files import MiB

import asyncdump
from asyncdump import Dump, ManifestError, ReceiptError, restore_all, verify_all
from asyncdump.records.receipt import read_receipt
from asyncdump.records.record import Record, file_of, file_record
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.names import JOURNAL, RECEIPT

DATA = Path(__file__).parent / "data/v1"
FOLDERS = ("raw", "sha256", "zstd", "filters", "bad", "resumed", "killed", "killed-again")
SMALL = b"a small source\n" * 7
SIZE = 5 * MiB + 5


def ring(first: int) -> bytes:
    return b"".join(bytes([first + number]) + bytes(range(256)) * 4096 for number in range(5))[:SIZE]


SOURCES = {"ring0": ring(0), "ring1": ring(10), "small": SMALL, "empty": b""}


def signed(encoded: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(encoded), encoded)


class Old:
    """A folder that version 1 has left, and its sources as they were then."""

    def __init__(self, name: str, place: Path) -> None:
        self.folder = place / name
        self.memory = place / "memory"
        self.memory.mkdir()
        for source, held in SOURCES.items():
            (self.memory / source).write_bytes(held)
        shutil.copytree(DATA / name, self.folder)
        self.change(self._moved)
        for file in self.records:
            raw = not file["stages"]
            if raw and file["name"] in {"ring0", "ring1"} and not (self.folder / file["name"]).exists():
                content = bytearray(SOURCES[file["name"]])
                for bad in file["bad"]:
                    content[bad["offset"] : bad["offset"] + bad["length"]] = bytes(bad["length"])
                (self.folder / file["name"]).write_bytes(content)

    def _moved(self, file: dict[str, Any]) -> None:
        """Have a record tell of the sources as they are here."""
        file["source"] = file["source"].replace("/srv/memory", os.fspath(self.memory))
        status = os.stat(file["source"])
        file["identity"] |= {"inode": status.st_ino, "mtime_ns": status.st_mtime_ns}

    @property
    def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        self.change(found.append)
        return found

    def change(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change each record in the receipt and the journal, as version 1 would have written them."""
        if (path := self.folder / RECEIPT).exists():
            receipt = json.loads(path.read_bytes())
            assert receipt["receipt"] == 1
            for file in (*receipt["files"], *receipt["earlier"]):
                change(file)
            path.write_text(json.dumps(receipt))
        if (path := self.folder / JOURNAL).exists():
            head, *lines = (json.loads(line[9:]) for line in path.read_bytes().splitlines())
            assert head["journal"] == 1
            for file in lines:
                change(file)
            path.write_bytes(b"".join(signed(json.dumps(each).encode()) for each in (head, *lines)))

    def dumps(self) -> list[Dump]:
        return [Dump(source=self.memory / name) for name in SOURCES]


@pytest.fixture
def old(tmp_path: Path) -> Callable[[str], Old]:
    return lambda name: Old(name, tmp_path)


@pytest.mark.parametrize("name", FOLDERS)
async def test_what_version_1_has_made_verifies(name, old) -> None:
    outcome = await verify_all(old(name).folder)
    assert {file.verdict for file in outcome.files} == {"ok"}
    assert outcome.ok


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "filters"])
async def test_and_is_restored(name, old, tmp_path: Path) -> None:
    made = old(name)
    (await restore_all(made.folder, tmp_path / "back")).raise_for_failures()
    for file in made.records:
        back = (tmp_path / "back" / file["name"].removesuffix(".zst")).read_bytes()
        assert len(back) == file["bytes"]
        if name != "bad":
            assert back == SOURCES[file["name"].removesuffix(".zst")]


@pytest.mark.parametrize("name", ["raw", "sha256", "killed", "killed-again", "resumed"])
@pytest.mark.parametrize("place", [0, MiB, 2 * MiB - 1, 2 * MiB, 4 * MiB - 1, 4 * MiB, SIZE - 1])
async def test_marks_place_damage(name, place, old) -> None:
    made = old(name)
    content = bytearray((made.folder / "ring0").read_bytes())
    content[place] ^= 0x40
    (made.folder / "ring0").write_bytes(content)
    [failed] = (await verify_all(made.folder)).failures
    assert (failed.name, failed.verdict, failed.offset) == ("ring0", "corrupt", place // (2 * MiB) * 2 * MiB)


async def test_of_what_went_through_programs_too(old) -> None:
    made = old("filters")
    content = bytearray((made.folder / "small.gz").read_bytes())
    content[-1] ^= 1
    (made.folder / "small.gz").write_bytes(content)
    [failed] = (await verify_all(made.folder)).failures
    assert (failed.name, failed.verdict, failed.offset) == ("small.gz", "corrupt", 0)


@pytest.mark.parametrize("name", ["raw", "killed", "killed-again", "resumed"])
async def test_a_run_is_completed_and_its_dumps_have_blocks_then(name, old) -> None:
    made = old(name)
    known = {file["name"] for file in made.records}
    report = await asyncdump.dump_all(made.dumps(), output=made.folder, resume=True)
    report.raise_for_failures()
    assert {file.name for file in report.files if file.kept} == known
    assert {file.name: bool(file.run) for file in report.files} == {name: name in known for name in SOURCES}
    fresh = await asyncdump.dump_all(made.dumps(), output=made.folder.parent / "fresh")
    for kept, new in zip(report.files, fresh.files, strict=True):
        assert kept.blocks == new.blocks
        assert kept.content_blocks == new.content_blocks
        assert kept.changed_blocks(new) == ()
        assert not kept.marks
    receipt = json.loads((made.folder / RECEIPT).read_bytes())
    assert receipt["receipt"] == 2
    assert not any("marks" in file or "stage" in file for file in receipt["files"])
    assert (await verify_all(made.folder)).ok
    for dump, content in SOURCES.items():
        assert (made.folder / dump).read_bytes() == content


async def test_a_compressed_one_is_kept_too(old) -> None:
    made = old("zstd")
    report = await asyncdump.dump_all(
        made.dumps(), output=made.folder, resume=True, compress=asyncdump.Zstd(level=3, frame="1MiB")
    )
    assert all(file.kept for file in report.files)
    ring0 = report.files[0]
    assert ring0.blocks is not None
    assert ring0.content_blocks is not None
    assert (ring0.blocks.length, ring0.content_blocks.length) == (ring0.size, SIZE)
    assert (await verify_all(made.folder)).ok


async def test_what_is_not_asked_for_again_stays_recorded(old) -> None:
    made = old("resumed")
    await asyncdump.dump_all([Dump(source=made.memory / "empty")], output=made.folder, resume=True)
    receipt = json.loads((made.folder / RECEIPT).read_bytes())
    assert {file["name"] for file in receipt["earlier"]} == {"ring0", "small"}
    [ring0] = [file for file in receipt["earlier"] if file["name"] == "ring0"]
    assert ring0["marks"]  # It was not read: there is nothing else to place damage by.
    outcome = await verify_all(made.folder)
    assert (outcome.ok, len(outcome.files)) == (True, 3)
    content = bytearray((made.folder / "ring0").read_bytes())
    content[3 * MiB] ^= 1
    (made.folder / "ring0").write_bytes(content)
    assert [file.offset for file in (await verify_all(made.folder)).failures] == [2 * MiB]


def test_its_stage_is_the_phase() -> None:
    old = b'{"source":"/s","name":"n","bytes":0,"stage":"sync","inode":7,"error":{"message":"EIO"}}'
    file = file_of(msgspec.json.decode(old, type=Record), "/dumps")
    assert (file.phase, file.stages) == ("sync", ())
    assert msgspec.json.decode(msgspec.json.encode(file_record(file)))["phase"] == "sync"


# --- versions to come -------------------------------------------------------------------------------------------------


async def test_a_newer_receipt_is_refused(tmp_path: Path) -> None:
    (tmp_path / RECEIPT).write_text('{"receipt": 3, "files": "elsewhere"}')
    for call in (verify_all(tmp_path), restore_all(tmp_path, tmp_path / "back")):
        with pytest.raises(ReceiptError) as refused:
            await call
        assert "version 3" in str(refused.value)
        assert "reads versions 1 and 2" in str(refused.value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(SMALL)
    return path


@pytest.mark.parametrize("options", [{}, {"resume": True}])
@pytest.mark.parametrize("head", [b'{"journal":3,"files":1}', b'{"journal":3,"files":"many"}'])
async def test_nor_is_a_newer_journal_replaced(head, options, source, tmp_path: Path) -> None:
    """An older receipt beside it says nothing of what its run has done."""
    out = tmp_path / "out"
    await asyncdump.dump_all([Dump(source=source)], output=out)
    (out / RECEIPT).unlink()
    (out / "XXH128SUMS").unlink()
    (out / "source").unlink()
    (out / JOURNAL).write_bytes(signed(head))
    with pytest.raises(ManifestError) as refused:
        await asyncdump.dump_all([Dump(source=source)], output=out, **options)
    assert "journal" in str(refused.value)
    assert (out / JOURNAL).read_bytes() == signed(head)
    if options:
        assert "version 3" in str(refused.value)


async def test_with_overwrite_it_is(source, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_bytes(signed(b'{"journal":3}'))
    (await asyncdump.dump_all([Dump(source=source)], output=tmp_path / "out", overwrite=True)).raise_for_failures()


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 30, -1])
async def test_a_journal_that_was_cut_in_its_head_is_in_nobody_s_way(cut, source, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / JOURNAL).write_bytes(signed(b'{"journal":2,"files":1,"started":"","manifest_sha256":""}')[:cut])
    (await asyncdump.dump_all([Dump(source=source)], output=out)).raise_for_failures()
    assert not (out / JOURNAL).exists()
    assert (await verify_all(out)).ok


async def test_one_whose_head_is_damaged_is(source, tmp_path: Path) -> None:
    """Who knows what it told of."""
    out = tmp_path / "out"
    out.mkdir()
    (out / JOURNAL).write_bytes(b"00000000" + signed(b'{"journal":2,"files":1}')[8:])
    with pytest.raises(ManifestError):
        await asyncdump.dump_all([Dump(source=source)], output=out)


def test_the_run_of_a_record_is_the_one_that_has_made_it(old) -> None:
    made = old("killed-again")
    folder = Folder(os.fspath(made.folder), make=False)
    try:
        found = read_receipt(folder)
    finally:
        folder.close()
    assert found is not None
    assert {file.run[:10] for file in found.known.values()} == {"2026-11-25"}
