"""What one run makes of what others have left, in a program: nothing is forgotten, and nothing stale is vouched for."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from files import MiB, leftovers, mentions, noise, read

import asyncdump
from asyncdump import Dump, restore_all, verify_all
from asyncdump.records.journal import Head, Journal
from asyncdump.records.receipt import read_receipt
from asyncdump.run.events import Event, FileKept, FileStarted, Progress
from asyncdump.run.mailbox import Mailbox
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.names import JOURNAL

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"ring{number}" for number in range(4)]
    for number, path in enumerate(made):
        path.write_bytes(noise(3 * MiB + number, number))
    return made


async def dump(output: Path, *sources: Path, **options: Any) -> asyncdump.Report:
    return await asyncdump.dump_all([Dump(source=str(path)) for path in sources], output=output, **options)


async def resume(output: Path, *sources: Path, **options: Any) -> asyncdump.Report:
    return await dump(output, *sources, resume=True, **options)


# --- nothing is forgotten ---------------------------------------------------------------------------------------------


async def test_what_was_not_looked_at_before_the_end_is_still_known(output, sources) -> None:
    (await dump(output, *sources)).raise_for_failures()
    plan = [Dump(source=str(path)) for path in sources]
    async with asyncdump.open_run(plan, output=output, resume=True, concurrency=1) as run:
        run.cancel("SIGINT")
    assert not run.report.ok
    assert {file.name for file in run.report.earlier} == {file.name for file in run.report.failures}
    assert {file["name"] for file in json.loads(read(output / "receipt.json"))["earlier"]} == {
        file.name for file in run.report.failures
    }
    report = await resume(output, *sources)
    report.raise_for_failures()
    assert all(file.kept for file in report.files)


async def test_what_is_no_longer_asked_for_is_still_known(output, sources) -> None:
    (await dump(output, *sources)).raise_for_failures()
    (await resume(output, *sources[:2])).raise_for_failures()
    outcome = await verify_all(output)
    assert outcome.ok
    assert len(outcome.files) == 4
    report = await resume(output, *sources)
    report.raise_for_failures()
    assert all(file.kept for file in report.files)


async def test_an_older_dump_stands_where_a_newer_one_failed(output, sources) -> None:
    (await dump(output, *sources)).raise_for_failures()
    before = read(sources[0])
    os.utime(sources[0], (1, 1))
    plan = [Dump(source=str(sources[0]), method="splice", compress="none"), *(Dump(source=str(s)) for s in sources[1:])]
    async with asyncdump.open_run(plan, output=output, resume=True) as run:
        os.truncate(sources[0], 5)
    [failed] = run.report.failures
    assert failed.name == "ring0"
    assert read(output / "ring0") == before
    outcome = await verify_all(output)
    assert [file.verdict for file in outcome.files] == ["ok"] * 4
    assert outcome.unrecorded == 1
    assert not outcome.ok
    (await resume(output, *sources)).raise_for_failures()
    assert read(output / "ring0") == before[:5]


async def test_the_dump_of_another_source_is_not_replaced(output, sources) -> None:
    plan = [Dump(source=f"{sources[0].parent}/ring[0-9]", name="{index}.bin")]
    (await asyncdump.dump_all(plan, output=output)).raise_for_failures()
    held = read(sources[0])
    sources[0].unlink()
    with pytest.raises(asyncdump.ManifestError, match=r"0\.bin .*ring0.*overwrite"):
        await asyncdump.dump_all(plan, output=output, resume=True)
    assert read(output / "0.bin") == held
    (await asyncdump.dump_all(plan, output=output, resume=True, overwrite=True)).raise_for_failures()
    assert read(output / "0.bin") == read(sources[1])


async def test_a_file_of_somebody_else_under_the_name_of_a_dump_that_never_was(output, sources) -> None:
    plan = [Dump(source=str(sources[0])), Dump(source=str(sources[1]), filter=[["false"]])]
    report = await asyncdump.dump_all(plan, output=output, allow_filters=True)
    assert [file.ok for file in report.files] == [True, False]
    (output / "ring1").write_text("mine")
    with pytest.raises(asyncdump.TargetExistsError, match="ring1"):
        await resume(output, *sources[:2])
    assert (output / "ring1").read_text() == "mine"


async def test_the_last_reason_is_the_one_that_is_told(output, sources) -> None:
    (await dump(output, sources[0])).raise_for_failures()
    plan = [Dump(source=str(sources[0]), filter=[["false"]])]
    assert not (await asyncdump.dump_all(plan, output=output, allow_filters=True, overwrite=True)).ok
    [failed] = (await verify_all(output)).failures
    assert mentions(failed.message, "false", 1)
    (await resume(output, sources[0])).raise_for_failures()
    assert (await verify_all(output)).ok


# --- nothing stale is vouched for -------------------------------------------------------------------------------------


async def test_a_run_that_was_killed_has_proved_nothing_of_what_it_took_over(output, sources) -> None:
    (await dump(output, *sources)).raise_for_failures()
    folder = Folder(str(output))
    receipt = read_receipt(folder)
    assert receipt is not None
    journal = Journal(folder, Head(files=4), receipt.files)
    journal.append([receipt.files[0]])  # The one that it came to.
    journal.close()
    folder.close()
    outcome = await verify_all(output)
    assert outcome.unrecorded == 3
    assert not outcome.ok
    assert [file.verdict for file in outcome.files] == ["ok"] * 4
    report = await restore_all(output, output.parent / "back")
    assert report.unrecorded == 3
    assert not report.ok
    with pytest.raises(ExceptionGroup):
        report.raise_for_failures()


async def test_filters_with_other_arguments_make_another_dump(output, sources) -> None:
    def plan(*filters: list[str]) -> list[Dump]:
        return [Dump(source=str(sources[0]), filter=list(filters))]

    options: dict[str, Any] = {"output": output, "allow_filters": True}
    (await asyncdump.dump_all(plan(["tr", "a", "b"]), **options)).raise_for_failures()
    [kept] = (await asyncdump.dump_all(plan(["tr", "a", "b"]), resume=True, **options)).files
    assert kept.kept
    [made] = (await asyncdump.dump_all(plan(["tr", "a", "c"]), resume=True, **options)).files
    assert not made.kept
    assert read(output / "ring0") == read(sources[0]).replace(b"a", b"c")
    [kept] = (await asyncdump.dump_all(plan(["tr", "a", "d"]), resume=True, trust_receipt=True, **options)).files
    assert kept.kept


async def test_without_digest_and_durability_nothing_is_kept(output, sources) -> None:
    (await dump(output, sources[0], durable=False, checksum="none")).raise_for_failures()
    [made] = (await resume(output, sources[0], checksum="none")).files
    assert not made.kept
    [kept] = (await resume(output, sources[0], checksum="none")).files
    assert kept.kept


# --- nothing hangs, nothing leaks -------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    with path.open("wb") as file:
        for number in range(24):
            file.write(noise(8 * MiB, number))
    return path


@pytest.mark.sample(1)
@pytest.mark.parametrize("compress", ["none", "zstd"])
@pytest.mark.parametrize("against_source", [False, True])
async def test_damage_early_in_a_large_file_ends_its_verification(against_source, compress, output, large) -> None:
    """Other lanes join the file that is left: they must not come back for ever to one that has failed."""
    (await dump(output, large, compress=compress)).raise_for_failures()
    name = "large" if compress == "none" else "large.zst"
    with (output / name).open("r+b") as file:
        file.seek(20 * MiB)
        held = file.read(1)
        file.seek(20 * MiB)
        file.write(bytes([held[0] ^ 1]))
    with anyio.fail_after(40):
        outcome = await verify_all(output, against_source=against_source, concurrency=8)
        assert outcome.failures[0].verdict in {"corrupt", "differs"}
        report = await restore_all(output, output.parent / "back", concurrency=8)
    assert len(report.failures) == 1
    assert os.listdir(output.parent / "back") == []


async def test_a_large_source_that_shrinks_ends_its_dump(output, large) -> None:
    def shrink(event: Event) -> None:
        if isinstance(event, FileStarted):
            os.truncate(large, 100 * MiB)

    with anyio.fail_after(40):
        # A level that takes its time: the listener is told of the start some 100 ms later.
        report = await dump(output, large, on_event=shrink, concurrency=8, compress=asyncdump.Zstd(level=15))
    assert [type(file.error) for file in report.files] == [asyncdump.SourceChangedError]


@pytest.mark.parametrize("compress", ["none", "zstd"])
async def test_sources_with_holes_are_compared_too(compress, output, tmpfs) -> None:
    source = tmpfs / "holes"
    with source.open("wb") as file:
        file.write(noise(MiB))
        file.truncate(40 * MiB)
    try:
        (await dump(output, source, compress=compress)).raise_for_failures()
        assert (await verify_all(output, against_source=True)).ok
        with source.open("r+b") as file:
            file.seek(30 * MiB)
            file.write(b"x")
        [failed] = (await verify_all(output, against_source=True)).failures
        assert (failed.verdict, failed.offset) == ("differs", 30 * MiB)
    finally:
        source.unlink()


@pytest.mark.parametrize("what", ["dump", "verify", "restore"])
async def test_a_task_that_is_cancelled_while_it_opens_keeps_no_lock(what, output, sources, monkeypatch) -> None:
    """As `asyncio.wait_for` does it: the thread is waited for, and what it opens must not stay."""
    (await dump(output, *sources)).raise_for_failures()
    begun, go_on = threading.Event(), threading.Event()
    lock = Folder.lock

    def slow(folder: Folder, **options: Any) -> None:
        lock(folder, **options)
        begun.set()
        assert go_on.wait(20)

    monkeypatch.setattr(Folder, "lock", slow)
    work: dict[str, Any] = {
        "dump": lambda: dump(output, *sources, overwrite=True),
        "verify": lambda: verify_all(output),
        "restore": lambda: restore_all(output, output.parent / "back"),
    }
    before = set(os.listdir("/proc/self/fd"))
    task = asyncio.ensure_future(work[what]())
    assert await anyio.to_thread.run_sync(begun.wait, 20)
    for _ in range(3):  # Whoever cancels does so more than once.
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.undo()
    assert set(os.listdir("/proc/self/fd")) == before
    (await resume(output, *sources)).raise_for_failures()
    assert leftovers(output) == []


async def test_a_table_that_claims_gigabytes_costs_no_memory(output, sources) -> None:
    (await dump(output, sources[0], compress="zstd")).raise_for_failures()
    path = output / "ring0.zst"
    data = bytearray(read(path))
    entry = len(data) - 9 - 12 * 2  # The length of the content of the first of two frames.
    data[entry + 4 : entry + 8] = (2 << 30).to_bytes(4, "little")
    path.write_bytes(data)
    [failed] = (await verify_all(output)).failures
    assert failed.verdict == "corrupt"


def test_what_is_kept_has_no_progress_left_to_tell() -> None:
    mailbox = Mailbox()
    mailbox.put(Progress(at=0, name="a", done=1, total=2, phase="verify"))
    mailbox.put(FileKept(at=1, name="a", source="s", bytes=2, digest=None))
    mailbox.close()

    async def told() -> list[Event]:
        return [event async for event in mailbox]

    assert [type(event) for event in anyio.run(told)] == [FileKept]


async def test_a_run_that_can_not_begin_leaves_the_journal_as_it_is(output, sources, monkeypatch) -> None:
    (await dump(output, *sources)).raise_for_failures()
    folder = Folder(str(output))
    receipt = read_receipt(folder)
    assert receipt is not None
    Journal(folder, Head(files=4), receipt.files).close()
    folder.close()
    held = read(output / JOURNAL)

    def refuse(wanted: int, programs: int) -> tuple[int, int]:
        raise asyncdump.DumpError("a run needs more open files")

    monkeypatch.setattr("asyncdump.run.scheduler.within_open_files", refuse)
    with pytest.raises(asyncdump.DumpError, match="open files"):
        await dump(output, *sources, overwrite=True)
    assert read(output / JOURNAL) == held
    monkeypatch.undo()
    report = await resume(output, *sources)
    assert [file.kept for file in report.files] == [True] * 4
