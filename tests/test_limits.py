"""What is recorded of a run can be read back, however much it is: writer, reader and plan have one limit."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import file_names

import asyncdump
from asyncdump import Dump
from asyncdump.errors import DumpError, ManifestError
from asyncdump.plan import destination
from asyncdump.records import journal, receipt, record, writer
from asyncdump.records.record import Record, brief, file_of, file_record, room
from asyncdump.records.report import FileReport
from asyncdump.run.mappers import Mappers
from asyncdump.transfer.salvage import MOST_BAD, BadRanges
from asyncdump.vocabulary import marks
from asyncdump.vocabulary.blocks import BLOCK, Blocks
from asyncdump.vocabulary.digest import bare_digest
from asyncdump.vocabulary.marks import Marked, first_damage, grain
from asyncdump.vocabulary.values import BadRange, Identity, ProcessMapping, Stat

MOST = 2**63 - 1


MAPPING = ProcessMapping(
    pid=2**22, comm="\\" * 15, started=1e15 / 7, address=MOST, offset=MOST, length=MOST, inode=MOST, shared=False
)


def report_of(source: str, name: str, **other) -> FileReport:
    """Make a report that takes all the room it may."""
    full = {
        "path": f"/x/{name}",
        "bytes": MOST,
        "stored": MOST,
        "seconds": 1e15 / 7,
        "method": "sendfile",
        "digest": None,
        "error": None,
        "phase": "digest",
        "offset": MOST,
        "size": MOST,
        "identity": Identity(inode=2**64 - 1, size=MOST, mtime_ns=MOST),
        "inode": 2**64 - 1,
        "blocks": Blocks(length=99 * BLOCK, digests=bytes(range(8)) * 99),
        "content_blocks": Blocks(length=MOST, grain=1 << 61, digests=bytes(range(8)) * 4),
        "began": 1e15 / 7,
        "ended": 1e15 / 7,
        "run": "9999-12-31T23:59:59.999999+00:00",
        "lane": 2**31,
        "lanes": 2**31,
        "stat": Stat(mode=2**32 - 1, uid=2**32 - 1, gid=2**32 - 1, mtime_ns=MOST),
        "maps": (MAPPING,) * 64,
        "maps_left_out": MOST - 64,
        "bad": tuple(BadRange(offset=MOST - each, length=MOST, errno=5) for each in range(100)),
        "manifest_sha256": "f" * 64,
    }
    return FileReport(source=source, name=name, **{**full, **other})


raw_names = st.binary(min_size=1, max_size=200).map(lambda name: os.fsdecode(name.replace(b"\0", b"?")))


@given(
    st.one_of(raw_names, file_names), st.one_of(raw_names, file_names), st.lists(file_names, max_size=4), st.booleans()
)
def test_a_brief_record_is_no_larger_than_was_planned_for(source, name, stages, failed) -> None:
    digests = {"digest": f"sha256:{'f' * 64}", "content_digest": f"sha256:{'e' * 64}"}
    error = DumpError('"\\\x1b\udcff"' * 1000, errno=95, hint="ö" * 1000)
    file = report_of(source, name, stages=tuple(stages), **digests, **({"error": error} if failed else {}))
    encoded = msgspec.json.encode(file_record(brief(file)))
    assert len(msgspec.json.format(b'{"files": [' + encoded + b"]}", indent=1)) <= room(source, name, stages)
    assert len(journal.line(file_record(brief(file), earlier=True))) <= room(source, name, stages)


def test_a_brief_record_says_how_much_it_leaves_out() -> None:
    file = report_of(
        "s", "n", bad=(BadRange(offset=0, length=8192, errno=5), BadRange(offset=16384, length=4096, errno=5))
    )
    again = file_of(msgspec.json.decode(msgspec.json.encode(file_record(brief(file))), type=Record), "/x")
    assert (again.bad, again.bad_left_out, again.bad_bytes) == ((), 12288, 12288)


@pytest.fixture
def limit(monkeypatch):
    def set_to(size: int) -> None:
        for module in (record, receipt, writer, journal, destination):
            monkeypatch.setattr(module, "LARGEST", size)

    return set_to


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in range(24):
        (folder / (f"{number}-" + '\\\udcff"' * 60)).write_bytes(random.Random(number).randbytes(5000))
    return folder


async def test_whatever_the_limit_what_is_accepted_can_be_read_back(sources, limit, tmp_path: Path) -> None:
    outcomes = []
    for size in range(60_000, 500_000, 40_000):
        limit(size)
        out = tmp_path / f"{size}"
        dumps = [Dump(source=sources / "*")]
        try:
            report = await asyncdump.dump_all(dumps, output=out, durable=False)
        except ManifestError as error:
            outcomes.append({problem.key for problem in error.problems})
            assert not out.exists()
            continue
        report.raise_for_failures()
        assert (out / "receipt.json").stat().st_size <= size
        assert (await asyncdump.verify_all(out)).ok
        resumed = await asyncdump.dump_all(dumps, output=out, durable=False, resume=True)
        assert all(file.kept for file in resumed.files)
        assert (await asyncdump.verify_all(out)).ok
        outcomes.append(set())
    assert outcomes == [*[{"dumps"}] * outcomes.count({"dumps"}), *[set()] * outcomes.count(set())]
    assert 0 < outcomes.count(set()) < len(outcomes)


async def test_a_receipt_that_would_be_too_large_is_brief(sources, limit, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Mappers, "of", lambda *_: ((MAPPING,) * 64, 1))
    limit(250_000)
    report = await asyncdump.dump_all([Dump(source=sources / "*")], output=tmp_path / "out", durable=False)
    report.raise_for_failures()
    assert (tmp_path / "out/receipt.json").stat().st_size <= 250_000
    assert b'"maps_left_out": 65' in (tmp_path / "out/receipt.json").read_bytes()
    assert (await asyncdump.verify_all(tmp_path / "out")).ok


async def test_a_journal_is_read_back_too(sources, limit, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Mappers, "of", lambda *_: ((MAPPING,) * 64, 1))
    limit(250_000)

    def lost(*_: object) -> None:
        raise DumpError("the receipt is lost")

    with monkeypatch.context() as patch:
        patch.setattr("asyncdump.sinks.folder.Folder.write_small", lost)
        patch.setattr("asyncdump.records.journal.Journal.remove", lambda _: None)
        await asyncdump.dump_all([Dump(source=sources / "*")], output=tmp_path / "out", durable=False)
    size = (tmp_path / "out/.asyncdump-journal").stat().st_size
    assert 100_000 < size <= 500_000
    verified = await asyncdump.verify_all(tmp_path / "out")
    assert verified.ok
    assert len(verified.files) == 24


# --- marks ------------------------------------------------------------------------------------------------------------

SMALL = 64


@given(st.integers(0, 3000), st.randoms(use_true_random=False), st.integers(1, 500))
def test_marks_have_an_end_and_place_damage(size: int, chance: random.Random, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(marks, "BLOCK", SMALL)
        patch.setattr(marks, "MOST_MARKS", 8)

        def marks_of(data: bytes) -> str:
            bare = bare_digest("xxh128")
            assert bare is not None
            hasher = Marked(bare)
            for start in range(0, len(data), step):
                hasher.update(memoryview(data[start : start + step]))
            return hasher.marks.hex()

        data = chance.randbytes(size)
        right = marks_of(data)
        assert len(right) // 8 == size // grain(size) <= 8
        assert grain(size) == SMALL or size // (grain(size) // 2) > 8
        if size:
            place = chance.randrange(size)
            wrong = bytearray(data)
            wrong[place] ^= 1
            assert first_damage(marks_of(bytes(wrong)), right, size) == place // grain(size) * grain(size)
        with pytest.MonkeyPatch.context() as older:
            older.setattr(marks, "MOST_MARKS", 10**9)
            unlimited = marks_of(data)
        assert first_damage(right, unlimited, size) == size // grain(size) * grain(size)


# --- memory that can't be read ----------------------------------------------------------------------------------------


def test_ranges_have_an_end_and_nothing_is_lost() -> None:
    bad = BadRanges()
    for page in range(0, 200_000, 2):
        bad.add([BadRange(offset=page * 4096, length=4096, errno=5)])
    ranges, more = bad.told()
    assert ranges == tuple(BadRange(offset=page * 4096, length=4096, errno=5) for page in range(0, 2 * MOST_BAD, 2))
    assert sum(each.length for each in ranges) + more == 100_000 * 4096
    assert bad.told() == (ranges, more)
    assert len(bad._ranges) <= 2 * MOST_BAD


def test_neighbours_are_one_range() -> None:
    bad = BadRanges()
    for page in range(20_000):
        bad.add([BadRange(offset=page * 4096, length=4096, errno=5)])
    assert bad.told() == ((BadRange(offset=0, length=20_000 * 4096, errno=5),), 0)
