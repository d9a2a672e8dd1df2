"""A record of version 2 comes back as it was written, brief or in full, and is refused where it can't be one."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import text as any_text
from test_bombs import MOST, SOON, holding, receipt, record, repeated, spent
from test_journal import plain, reports

from asyncdump.records.journal import Head, line, read_journal
from asyncdump.records.record import Record, brief, file_of, file_record
from asyncdump.records.report import FileReport
from asyncdump.text import text as shown
from asyncdump.vocabulary.blocks import BLOCK, WIDTH, Blocks
from asyncdump.vocabulary.values import ProcessMapping, Stat

unsigned = st.integers(0, 2**63 - 1)
seconds = st.none() | st.integers(0, 10**12).map(lambda microseconds: microseconds / 10**6)


@st.composite
def block_rows(draw: st.DrawFn) -> Blocks:
    grain = BLOCK << draw(st.integers(0, 20))
    count = draw(st.integers(0, 9))
    length = 0 if count == 0 else draw(st.integers((count - 1) * grain + 1, count * grain))
    return Blocks(length=length, grain=grain, digests=draw(st.binary(min_size=count * WIDTH, max_size=count * WIDTH)))


mappings = st.builds(
    ProcessMapping,
    pid=st.integers(1, 2**22),
    comm=any_text.map(shown),
    started=st.integers(0, 10**9).map(lambda ticks: ticks / 100),
    address=unsigned,
    offset=unsigned,
    length=unsigned,
    inode=st.integers(0, 2**64 - 1),
    shared=st.booleans(),
)
stats = st.builds(
    Stat,
    mode=st.integers(0, 2**32 - 1),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    mtime_ns=st.integers(-(2**63), 2**64 - 1),
)


@st.composite
def full(draw: st.DrawFn) -> FileReport:
    file = draw(reports)
    blocks = draw(st.none() | block_rows())
    return msgspec.structs.replace(
        file,
        blocks=blocks,
        content_blocks=draw(st.none() | block_rows()) if file.stages else blocks,
        began=draw(seconds),
        ended=draw(seconds),
        lane=draw(st.none() | st.integers(0, 1000)),
        lanes=draw(st.integers(0, 8)),
        stat=draw(st.none() | stats),
        maps=tuple(draw(st.lists(mappings, max_size=3))),
        maps_left_out=draw(st.integers(0, 10**6)),
    )


def read(encoded: bytes, run: str = "") -> FileReport:
    return file_of(msgspec.json.decode(encoded, type=Record), "/dumps", run)


@given(full(), any_text)
def test_all_of_it_comes_back(file: FileReport, run: str) -> None:
    again = read(msgspec.json.encode(file_record(file)), run)
    assert plain(again) == plain(file)
    assert again.run == run
    old = msgspec.structs.replace(file, run="2026-11-25T17:21:08+00:00")
    assert read(msgspec.json.encode(file_record(old)), run).run == old.run


@given(full())
def test_a_brief_one_comes_back_too_and_its_blocks_can_be_compared(file: FileReport) -> None:
    file = msgspec.structs.replace(file, error=None)
    again = read(msgspec.json.encode(file_record(brief(file))))
    assert (again.maps, again.maps_left_out) == ((), file.maps_left_out + len(file.maps))
    for few, all_of_them in ((again.blocks, file.blocks), (again.content_blocks, file.content_blocks)):
        assert (few is None) == (all_of_them is None)
        if few is not None and all_of_them is not None:
            assert few.count <= 4
            assert few.changed(all_of_them) == all_of_them.changed(few) == ()


@pytest.mark.parametrize("earlier", [False, True])
@given(files=st.lists(full(), max_size=3, unique_by=lambda file: file.name))
def test_and_a_journal_of_them(files: list[FileReport], *, earlier: bool) -> None:
    lines = [line(Head(started="then")), *(line(file_record(file, earlier=earlier)) for file in files)]
    told = read_journal(b"".join(lines), "/dumps")
    assert told is not None
    assert list(map(plain, told.earlier if earlier else told.files)) == list(map(plain, files))
    assert {file.run for file in (*told.files, *told.earlier)} <= {"then"}


A_MAPPING = {"pid": 1, "comm": "a", "started": 1.5, "address": 1, "offset": 0, "length": 1, "inode": 1, "shared": True}


@pytest.mark.parametrize(
    "wrong",
    [
        {"blocks": {"length": BLOCK, "grain": BLOCK, "xxh3_64": ""}},
        {"blocks": {"length": BLOCK, "grain": BLOCK, "xxh3_64": "AAAAAAAAAAA"}},
        {"blocks": {"length": BLOCK, "grain": BLOCK, "xxh3_64": "AAAAAAAAAA!="}},
        {"blocks": {"length": BLOCK, "grain": BLOCK}},
        {"blocks": {"length": 1 << 62, "grain": BLOCK, "xxh3_64": "AAAAAAAAAAA="}},
        {"blocks": {"length": BLOCK, "grain": BLOCK + 1, "xxh3_64": "AAAAAAAAAAA="}},
        {"blocks": []},
        {"blocks": "AAAA"},
        {"content_blocks": None},
        {"content_blocks": {"length": -1, "grain": BLOCK, "xxh3_64": ""}},
        {"maps": [{**A_MAPPING, "pid": "1"}]},
        {"maps": [{key: value for key, value in A_MAPPING.items() if key != "shared"}]},
        {"maps": [1]},
        {"maps": {}},
        {"stat": {"mode": 1, "uid": 1, "gid": 1}},
        {"stat": "root"},
        {"began": "now"},
        {"ended": []},
        {"lane": 0.5},
        {"run": 7},
        {"maps_left_out": -1},
    ],
    ids=str,
)
def test_what_can_be_no_record(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read(record(**wrong))


@pytest.mark.parametrize(
    "content",
    [
        receipt(holding("maps", repeated(msgspec.json.encode(A_MAPPING) + b","))),
        receipt(holding("maps", repeated(b"{},"))),
        receipt(record(blocks={"length": 1, "grain": BLOCK, "xxh3_64": "A" * 4_000_000})),
        receipt(record(blocks={"length": 375_000 * BLOCK, "grain": BLOCK, "xxh3_64": "A" * 4_000_000})),
    ],
    ids=["mappings", "mappings of nothing", "blocks that don't fit", "blocks"],
)
def test_what_is_large_takes_some_times_its_size(content: bytes, tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "receipt.json"), "wb") as file:
        file.write(content)
    memory, taken, answer = spent(f"asyncio.run(asyncdump.verify_all({str(tmp_path)!r}))")
    assert memory < MOST * len(content) + (16 << 20)
    assert taken < SOON
    assert answer in {"ReceiptError", "done"}
