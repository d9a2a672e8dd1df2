"""Dumps put back: whole, proved and with their holes, or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest
from files import MiB, allocated, content, leftovers, mentions, noise, read

import asyncdump
from asyncdump import Dump, Zstd, restore_all
from asyncdump.run.events import Event, FileFinished, RunFinished, RunStarted
from asyncdump.sinks.folder import Folder

SIZES = {"even": 6 * MiB, "odd": 5 * MiB + 777, "tiny": 13, "empty": 0}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "back"


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


def check(target: Path, sources: dict[str, Path]) -> None:
    assert sorted(os.listdir(target)) == sorted(sources)
    for name, source in sources.items():
        assert read(target / name) == read(source), name


@pytest.mark.parametrize("checksum", ["xxh128", "none"])
@pytest.mark.parametrize("compress", ["none", "zstd", Zstd(frame="8MiB"), Zstd(frame="64KiB", checksum=False)])
async def test_what_was_dumped_comes_back(compress, checksum, output, target, sources) -> None:
    await dump(output, sources, compress=compress, checksum=checksum)
    report = await restore_all(output, target)
    report.raise_for_failures()
    check(target, sources)
    assert {file.path for file in report.files} == {str(target / name) for name in sources}
    assert report.bytes == sum(SIZES.values())
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {0o600}
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["tmpfs", "xfs", "btrfs"])
@pytest.mark.parametrize("compress", ["none", "zstd"])
async def test_zeros_stay_holes(compress, place, request, output, tmp_path) -> None:
    target = request.getfixturevalue(place) / "back"
    (tmp_path / "holes").write_bytes(noise(MiB) + bytes(9 * MiB) + noise(MiB))
    await dump(output, {"holes": tmp_path / "holes"}, compress=compress)
    try:
        (await restore_all(output, target)).raise_for_failures()
        check(target, {"holes": tmp_path / "holes"})
        assert allocated(target / "holes") <= 3 * MiB
    finally:
        for path in target.iterdir():
            path.unlink()
        target.rmdir()


async def test_targets_of_their_own(output, target, sources, tmp_path) -> None:
    await dump(output, sources, compress="zstd")
    mapped = {"odd.zst": "elsewhere/odd.bin", "tiny.zst": tmp_path / "far" / "t"}
    (await restore_all(output, target, map=mapped)).raise_for_failures()
    assert sorted(os.listdir(target)) == ["elsewhere", "empty", "even"]
    assert read(target / "elsewhere" / "odd.bin") == read(sources["odd"])
    assert read(tmp_path / "far" / "t") == read(sources["tiny"])


@pytest.mark.parametrize(
    ("mapped", "said"),
    [
        ({"none": "x"}, ["none"]),
        ({"odd": "even"}, ["even", "odd"]),
        ({"odd": "a/../even"}, ["even", "odd"]),
        ({"odd": "."}, ["back"]),
    ],
)
async def test_a_map_that_can_not_be(mapped, said, output, target, sources) -> None:
    await dump(output, sources)
    target.mkdir()
    with pytest.raises(asyncdump.ReceiptError) as refused:
        await restore_all(output, target, map=mapped)
    assert mentions(refused.value, *said)
    assert os.listdir(target) == []


async def test_what_exists_stays_unless_told_otherwise(output, target, sources) -> None:
    await dump(output, sources)
    target.mkdir()
    (target / "odd").write_text("mine")
    with pytest.raises(asyncdump.TargetExistsError, match=r"odd exists already.*overwrite=True"):
        await restore_all(output, target)
    assert os.listdir(target) == ["odd"]
    assert (target / "odd").read_text() == "mine"
    (await restore_all(output, target, overwrite=True)).raise_for_failures()
    check(target, sources)


async def test_a_target_that_appears_meanwhile_stays(output, target, sources) -> None:
    await dump(output, sources)

    def interfere(event: Event) -> None:
        if isinstance(event, RunStarted):
            (target / "odd").write_text("mine")

    report = await restore_all(output, target, on_event=interfere)
    [failed] = report.failures
    assert failed.name == "odd"
    assert (target / "odd").read_text() == "mine"
    assert leftovers(target) == []


async def test_a_link_in_the_way_is_replaced_not_followed(output, target, sources, tmp_path) -> None:
    await dump(output, sources)
    target.mkdir()
    (tmp_path / "precious").write_text("keep")
    (target / "odd").symlink_to(tmp_path / "precious")
    (await restore_all(output, target, overwrite=True)).raise_for_failures()
    assert (tmp_path / "precious").read_text() == "keep"
    assert not (target / "odd").is_symlink()
    check(target, sources)


@pytest.mark.parametrize("compress", ["none", Zstd(frame="256KiB")])
async def test_what_is_damaged_gets_no_name(compress, output, target, sources) -> None:
    await dump(output, sources, compress=compress)
    name = "odd" if compress == "none" else "odd.zst"
    with (output / name).open("r+b") as file:
        file.seek(3 * MiB)
        held = file.read(1)
        file.seek(3 * MiB)
        file.write(bytes([held[0] ^ 1]))
    os.truncate(output / name.replace("odd", "even"), 1000)
    report = await restore_all(output, target)
    assert {file.name for file in report.failures} == {name, name.replace("odd", "even")}
    assert all(isinstance(file.error, asyncdump.DamagedError) for file in report.failures)
    check(target, {name: sources[name] for name in ("tiny", "empty")})
    assert leftovers(target) == []


async def test_what_went_through_a_program_is_not_undone(output, target, sources) -> None:
    dumps = [Dump(source=str(sources["odd"]), filter=[["cat"]]), Dump(source=str(sources["tiny"]))]
    (await asyncdump.dump_all(dumps, output=output, allow_filters=True)).raise_for_failures()
    report = await restore_all(output, target)
    [failed] = report.failures
    assert isinstance(failed.error, asyncdump.DumpError)
    assert mentions(failed.error, "odd", "cat")
    check(target, {"tiny": sources["tiny"]})


async def test_no_room(output, target, sources, tiny: Path) -> None:
    await dump(output, sources)
    with pytest.raises(asyncdump.ReceiptError, match=str(tiny)):
        await restore_all(output, tiny / "back")
    assert os.listdir(tiny / "back") == []
    await dump(output, sources, compress="zstd", overwrite=True)
    report = await restore_all(output, tiny / "back")
    assert {file.name for file in report.files if file.ok} >= {"empty.zst", "tiny.zst"}
    for file in report.failures:
        assert isinstance(file.error, asyncdump.DumpError)
        assert "ENOSPC" in str(file.error)
    assert report.failures
    assert leftovers(tiny / "back") == []


async def test_cancelled_nothing_half_is_left(output, target, tmp_path) -> None:
    (tmp_path / "large").write_bytes(noise(96 * MiB))
    await dump(output, {"large": tmp_path / "large"})
    with anyio.CancelScope() as scope:
        await restore_all(output, target, on_event=lambda _event: scope.cancel())
    assert scope.cancelled_caught
    assert os.listdir(target) == []


async def test_what_a_killed_restore_left_is_swept(output, target, sources) -> None:
    await dump(output, sources)
    target.mkdir()
    (target / ".asyncdump-00000000-1.partial").write_bytes(b"half")
    (await restore_all(output, target)).raise_for_failures()
    check(target, sources)


async def test_one_restore_at_a_time(output, target, sources) -> None:
    await dump(output, sources)
    folder = Folder(str(target))
    folder.lock()
    try:
        with pytest.raises(asyncdump.BusyError):
            await restore_all(output, target)
    finally:
        folder.close()
    assert os.listdir(target) == []


async def test_events(output, target, sources) -> None:
    await dump(output, sources)
    events: list[Event] = []
    await restore_all(output, target, on_event=events.append, durable=False, concurrency=1)
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)
    assert sum(isinstance(event, FileFinished) for event in events) == len(sources)
