"""Dumps proved: what is whole, what is damaged and where, what nobody can tell."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from files import KiB, MiB, content, mentions, noise, read

import asyncdump
from asyncdump import Dump, Zstd, verify_all
from asyncdump.records.journal import Head, Journal
from asyncdump.records.receipt import read_receipt
from asyncdump.run.events import Event, FileFailed, FileFinished, Progress, RunFinished, RunStarted
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.names import JOURNAL

BLOCK = 2 * MiB
SIZES = {"even": 6 * MiB, "odd": 5 * MiB + 777, "tiny": 13, "empty": 0}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name, size in SIZES.items():
        made[name] = tmp_path / name
        made[name].write_bytes(content(size))
    return made


async def dump(output: Path, sources: dict[str, Path], **options: Any) -> None:
    report = await asyncdump.dump_all([Dump(source=str(path)) for path in sources.values()], output=output, **options)
    report.raise_for_failures()


def spoil(path: Path, offset: int, data: bytes = b"\xa5\x5a") -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        held = file.read(len(data))
        file.seek(offset)
        file.write(bytes(a ^ 0xFF for a in held))


def verdicts(outcome: asyncdump.Verification) -> dict[str, str]:
    return {file.name: file.verdict for file in outcome.files}


@pytest.mark.parametrize("checksum", ["xxh128", "blake3", "sha256"])
@pytest.mark.parametrize("compress", ["none", "zstd", Zstd(frame="64KiB", checksum=False)])
async def test_what_is_whole_is_ok(compress, checksum, output, sources) -> None:
    await dump(output, sources, checksum=checksum, compress=compress)
    for what in (output, output / "receipt.json"):
        outcome = await verify_all(what)
        assert outcome.ok
        assert set(verdicts(outcome).values()) == {"ok"}
        assert outcome.bytes == sum(SIZES.values())
        outcome.raise_for_failures()


@pytest.mark.parametrize("offset", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5, 5 * MiB + 775])
async def test_the_first_bad_block_is_named(offset, output, sources) -> None:
    await dump(output, sources)
    spoil(output / "odd", 5 * MiB + 776, b"x")
    spoil(output / "odd", offset)
    outcome = await verify_all(output)
    assert verdicts(outcome) == {"even": "ok", "odd": "corrupt", "tiny": "ok", "empty": "ok"}
    [failed] = outcome.failures
    assert failed.offset == offset // BLOCK * BLOCK
    assert str(failed.offset) in failed.message
    with pytest.raises(ExceptionGroup) as raised:
        outcome.raise_for_failures()
    [error] = raised.value.exceptions
    assert isinstance(error, asyncdump.DamagedError)
    assert (error.verdict, error.offset, error.path) == ("corrupt", failed.offset, str(output / "odd"))


@pytest.mark.parametrize("checksum", [True, False])
async def test_the_first_bad_frame_is_named(checksum, output, sources) -> None:
    await dump(output, sources, compress=Zstd(frame="1MiB", checksum=checksum))
    frames = 3
    with open(output / "odd.zst", "rb") as file:
        from asyncdump.codecs.seekable import read_seek_table

        table = read_seek_table(file.fileno(), "odd.zst")
    assert table is not None
    spoil(output / "odd.zst", table[frames].stored_offset + table[frames].stored // 2)
    outcome = await verify_all(output)
    [failed] = outcome.failures
    assert (failed.name, failed.verdict) == ("odd.zst", "corrupt")
    if checksum:
        assert (failed.frame, failed.offset) == (frames, table[frames].stored_offset)
    else:  # Told by the digest at the latest.
        assert failed.frame in {frames, None}


async def test_a_seek_table_that_is_damaged(output, sources) -> None:
    await dump(output, sources, compress="zstd")
    size = (output / "odd.zst").stat().st_size
    spoil(output / "odd.zst", size - 20)
    outcome = await verify_all(output)
    [failed] = outcome.failures
    assert (failed.name, failed.verdict) == ("odd.zst", "corrupt")


async def test_what_is_short_missing_longer_or_no_file(output, sources) -> None:
    await dump(output, sources)
    os.truncate(output / "even", 4 * MiB + 1)
    (output / "odd").unlink()
    with (output / "tiny").open("ab") as file:
        file.write(b"more")
    (output / "empty").unlink()
    os.mkfifo(output / "empty")
    outcome = await verify_all(output)
    assert verdicts(outcome) == {"even": "short", "odd": "missing", "tiny": "corrupt", "empty": "missing"}
    places = {file.name: file.offset for file in outcome.files}
    assert (places["even"], places["tiny"]) == (4 * MiB + 1, 13)


async def test_a_link_is_no_dump(output, sources) -> None:
    await dump(output, sources)
    (output / "odd").unlink()
    (output / "odd").symlink_to(sources["odd"])
    [failed] = (await verify_all(output)).failures
    assert (failed.name, failed.verdict) == ("odd", "missing")


async def test_what_was_never_dumped_is_missing(output, sources) -> None:
    dumps = [Dump(source=str(sources["odd"])), Dump(source=str(sources["even"]), filter=[["false"]])]
    report = await asyncdump.dump_all(dumps, output=output, allow_filters=True)
    assert [file.ok for file in report.files] == [True, False]
    outcome = await verify_all(output)
    assert verdicts(outcome) == {"odd": "ok", "even": "missing"}
    assert mentions(outcome.failures[0].message, "even", "false")


async def test_without_a_digest_nobody_can_tell(output, sources) -> None:
    await dump(output, sources, checksum="none")
    outcome = await verify_all(output)
    assert set(verdicts(outcome).values()) == {"unknown"}
    assert not outcome.ok
    assert "against_source=True" in outcome.failures[0].hint
    os.truncate(output / "odd", 3)
    assert verdicts(await verify_all(output))["odd"] == "short"


@pytest.mark.parametrize("compress", ["none", Zstd(frame="512KiB")])
@pytest.mark.parametrize("checksum", ["xxh128", "none"])
async def test_against_the_source(checksum, compress, output, sources) -> None:
    await dump(output, sources, compress=compress, checksum=checksum)
    assert (await verify_all(output, against_source=True)).ok
    spoil(sources["odd"], 3 * MiB + 9, b"x")
    os.truncate(sources["even"], MiB)
    sources["tiny"].unlink()
    outcome = await verify_all(output, against_source=True)
    assert [file.verdict for file in outcome.files] == ["differs", "differs", "unknown", "ok"]
    assert outcome.files[1].offset == 3 * MiB + 9
    assert str(3 * MiB + 9) in outcome.files[1].message


async def test_against_the_source_of_a_part(output, sources) -> None:
    dumps = [Dump(source=str(sources["odd"]), offset=100 * KiB + 3, length=3 * MiB)]
    (await asyncdump.dump_all(dumps, output=output)).raise_for_failures()
    spoil(sources["odd"], 0)
    assert (await verify_all(output, against_source=True)).ok
    spoil(sources["odd"], 100 * KiB + 3, b"x")
    assert (await verify_all(output, against_source=True)).files[0].offset == 0


async def test_what_a_program_made_is_proved_by_its_digest_only(output, sources) -> None:
    some = {name: sources[name] for name in ("odd", "tiny")}
    dumps = [Dump(source=str(path), filter=[["tr", "a-z", "A-Z"]]) for path in some.values()]
    (await asyncdump.dump_all(dumps, output=output, allow_filters=True)).raise_for_failures()
    assert (await verify_all(output)).ok
    outcome = await verify_all(output, against_source=True)
    assert set(verdicts(outcome).values()) == {"unknown"}
    spoil(output / "odd", 2 * BLOCK + 1)
    assert (await verify_all(output)).failures[0].offset == 2 * BLOCK


@pytest.mark.parametrize("first", ["filter", "compress"])
async def test_programs_before_and_after_compression(first, output, sources) -> None:
    dumps = [
        Dump(source=str(sources["odd"]), filter=[["cat"], ["tr", "a-z", "A-Z"]], compress="zstd", first=first, name="d")
    ]
    (await asyncdump.dump_all(dumps, output=output, allow_filters=True)).raise_for_failures()
    assert (await verify_all(output)).ok
    spoil(output / "d", 1 * MiB)
    assert not (await verify_all(output)).ok


async def test_strays_are_told_and_no_failure(output, sources) -> None:
    await dump(output, sources)
    (output / "notes").touch()
    outcome = await verify_all(output)
    assert outcome.strays == ("notes",)
    assert outcome.ok


async def test_events_and_cancelling(output, sources) -> None:
    await dump(output, sources)
    events: list[Event] = []
    await verify_all(output, on_event=events.append)
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)
    assert sum(isinstance(event, FileFinished) for event in events) == len(sources)
    assert not [event for event in events if isinstance(event, FileFailed)]
    with anyio.CancelScope() as scope:
        scope.cancel()
        await verify_all(output)
    assert scope.cancelled_caught


async def test_the_journal_stands_in_for_a_receipt(output, sources) -> None:
    await dump(output, sources)
    folder = Folder(str(output))
    receipt = read_receipt(folder)
    assert receipt is not None
    (output / "receipt.json").unlink()
    journal = Journal(folder, Head(files=6))
    journal.append(receipt.files[:3])
    journal.close()
    folder.close()
    outcome = await verify_all(output)
    assert len(outcome.files) == 3
    assert not outcome.failures
    assert outcome.unrecorded == 3
    assert not outcome.ok
    assert outcome.receipt.endswith(JOURNAL)
    with pytest.raises(ExceptionGroup, match=r"3 .* 6") as raised:
        outcome.raise_for_failures()
    assert mentions(raised.value.exceptions[0], 3)


@pytest.mark.parametrize(
    "spoiler",
    [
        lambda folder: (folder / "receipt.json").unlink(),
        lambda folder: (folder / "receipt.json").write_text("{"),
        lambda folder: (folder / "receipt.json").write_text('{"receipt": 99, "files": []}'),
        lambda folder: change(folder, lambda file: file.update(name="../x")),
        lambda folder: change(folder, lambda file: file.update(bytes=-1)),
        lambda folder: change(folder, lambda file: file.update(digest="md5:00")),
        lambda folder: change(folder, lambda file: file.update(name="odd")),
    ],
)
async def test_a_receipt_that_can_not_be_used(spoiler: Callable[[Path], Any], output, sources) -> None:
    await dump(output, sources)
    spoiler(output)
    with pytest.raises(asyncdump.ReceiptError, match=r"receipt\.json") as raised:
        await verify_all(output)
    assert raised.value.problems


def change(folder: Path, how: Callable[[dict[str, Any]], None]) -> None:
    receipt = json.loads(read(folder / "receipt.json"))
    how(receipt["files"][0])
    (folder / "receipt.json").write_text(json.dumps(receipt))


async def test_a_folder_that_is_not_there(tmp_path) -> None:
    with pytest.raises(asyncdump.DumpError, match="ENOENT"):
        await verify_all(tmp_path / "nothing" / "receipt.json")
    with pytest.raises(asyncdump.AsyncdumpError):
        await verify_all(tmp_path / "nothing")


async def test_not_while_a_run_is_at_work_there(output, sources) -> None:
    await dump(output, sources)
    folder = Folder(str(output))
    folder.lock()
    try:
        with pytest.raises(asyncdump.BusyError):
            await verify_all(output)
    finally:
        folder.close()
    assert (await verify_all(output)).ok


async def test_receipts_of_earlier_versions(output, sources) -> None:
    """They have neither blocks nor sizes: damage is told, but not where."""
    await dump(output, sources)
    receipt = json.loads(read(output / "receipt.json"))
    for file in receipt["files"]:
        for key in ("blocks", "size", "identity", "inode", "offset", "kept"):
            del file[key]
    (output / "receipt.json").write_text(json.dumps(receipt))
    assert (await verify_all(output)).ok
    spoil(output / "odd", 3 * MiB)
    [failed] = (await verify_all(output)).failures
    assert failed.verdict == "corrupt"


async def test_one_large_file_is_read_by_several_lanes(output, tmp_path) -> None:
    (tmp_path / "large").write_bytes(noise(80 * MiB))
    await dump(output, {"large": tmp_path / "large"})
    events: list[Event] = []
    assert (await verify_all(output, on_event=events.append)).ok
    assert all(event.done <= 80 * MiB for event in events if isinstance(event, Progress))
    spoil(output / "large", 77 * MiB)
    assert (await verify_all(output)).failures[0].offset == 76 * MiB


@pytest.mark.parametrize("compress", ["none", Zstd(checksum=True)])
async def test_what_holds_more_or_less_than_was_dumped_is_corrupt_without_a_digest_too(
    compress, output, sources, tmp_path
) -> None:
    await dump(output, sources, compress=compress, checksum="none")
    content = json.loads((output / "receipt.json").read_text())
    for record in content["files"]:
        record["bytes"] += 1
    (output / "receipt.json").write_text(json.dumps(content))
    outcome = await verify_all(output)
    assert {file.verdict for file in outcome.files} == {"corrupt"}
    report = await asyncdump.restore_all(output, tmp_path / "back")
    assert len(report.failures) == len(report.files)
