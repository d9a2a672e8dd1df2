"""When a dump was made, by which lane, and whose its source was."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path

import pytest
from files import MiB, noise

import asyncdump
from asyncdump import Dump
from asyncdump.vocabulary.values import Stat


@pytest.fixture
def sources(tmpfs: Path) -> Path:
    """On another filesystem than the dumps: nothing of it can be cloned."""
    folder = Path(tempfile.mkdtemp(dir=tmpfs))
    for number in range(5):
        (folder / f"{number}").write_bytes(noise(MiB + number))
    return folder


async def test_a_dump_tells_when_it_was_made_and_by_which_lane(sources: Path, tmp_path: Path) -> None:
    report = await asyncdump.dump_all([Dump(source=sources / "*")], output=tmp_path / "out")
    for file in report.files:
        assert file.began is not None
        assert file.ended is not None
        assert 0 < file.began < file.ended <= report.seconds
        assert file.seconds == pytest.approx(file.ended - file.began)
        assert (file.run, file.lanes) == ("", 1)
        assert file.lane is not None
        assert 0 <= file.lane < 16


async def test_one_that_is_kept_tells_of_the_run_that_has_made_it(sources: Path, tmp_path: Path) -> None:
    first = await asyncdump.dump_all([Dump(source=sources / "0")], output=tmp_path / "out")
    second = await asyncdump.dump_all([Dump(source=sources / "[01]")], output=tmp_path / "out", resume=True)
    third = await asyncdump.dump_all([Dump(source=sources / "[12]")], output=tmp_path / "out", resume=True)
    [made] = first.files
    runs = [first.started.isoformat(), second.started.isoformat()]
    kept = second.files[0]
    assert (kept.kept, kept.run) == (True, runs[0])
    assert (kept.began, kept.ended) == (round(made.began or 0, 6), round(made.ended or 0, 6))
    assert [file.run for file in third.files] == [runs[1], ""]
    assert [file.run for file in third.earlier] == [runs[0]]
    receipt = json.loads((tmp_path / "out/receipt.json").read_bytes())
    assert "run" not in receipt["files"][1]
    assert receipt["earlier"][0]["run"] == runs[0]


async def test_one_that_fails_tells_when_it_was_begun_if_it_was(sources: Path, tmp_path: Path) -> None:
    (sources / "large").write_bytes(noise(2 * MiB))  # The largest is the first.
    dumps = [Dump(source=sources / "large", method="reflink"), Dump(source=sources / "0")]
    report = await asyncdump.dump_all(dumps, output=tmp_path / "out", on_error="abort", concurrency=1)
    first, second = report.files
    assert first.began is not None
    assert first.ended is not None
    assert first.lane is not None
    assert (second.phase, second.began, second.ended, second.lane, second.lanes) == ("plan", None, None, None, 0)


async def test_it_tells_whose_its_source_was(sources: Path, tmp_path: Path) -> None:
    path = sources / "0"
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12, 34)
    status = path.stat()
    report = await asyncdump.dump_all([Dump(source=path)], output=tmp_path / "out")
    [file] = report.files
    expected = Stat(mode=stat.S_IFREG | 0o640, uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns)
    assert file.stat == expected
    assert asyncdump.read_receipt(tmp_path / "out").files[0].stat == expected
    path.chmod(0o600)  # It is the same source still.
    again = await asyncdump.dump_all([Dump(source=path)], output=tmp_path / "out", resume=True)
    assert again.files[0].kept
