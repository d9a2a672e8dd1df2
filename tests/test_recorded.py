"""What a run has recorded, read back as the report that it returned."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC
from pathlib import Path

import pytest
from files import MiB, noise

import asyncdump
from asyncdump.records.journal import Head, Journal
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.names import JOURNAL, RECEIPT


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


@pytest.fixture
async def report(output: Path, tmp_path: Path) -> asyncdump.Report:
    """One that has a failure, bad memory of none, and something of each kind."""
    (tmp_path / "good").write_bytes(noise(3 * MiB))
    dumps = [
        asyncdump.Dump(tmp_path / "good", compress="zstd"),
        asyncdump.Dump(tmp_path / "good", filter=[["sh", "-c", "cat > /dev/null; exit 3"]]),
    ]
    return await asyncdump.dump_all(dumps, output=output, allow_filters=True)


@pytest.mark.parametrize("name", ["", RECEIPT])
async def test_it_is_the_report_that_was_returned(name, report, output) -> None:
    read = asyncdump.read_receipt(output / name)
    assert (read.started, read.ended, read.interrupted) == (report.started, report.ended, None)
    assert read.seconds == pytest.approx(report.seconds, abs=1e-5)
    assert (read.bytes, read.stored, read.ok, read.output) == (report.bytes, report.stored, False, str(output))
    assert [(file.name, file.ok, file.phase, file.digest) for file in read.files] == [
        (file.name, file.ok, file.phase, file.digest) for file in report.files
    ]
    again, receipt = read.to_dict(), json.loads((output / RECEIPT).read_text())
    for record in (*again["files"], *receipt["files"]):
        record.pop("error")  # Its type isn't recorded with the other attributes.
        record.pop("run", None)
    assert again == receipt


@pytest.mark.parametrize("name", ["", JOURNAL])
async def test_a_run_that_has_not_ended(name, report, output) -> None:
    folder = Folder(str(output))
    journal = Journal(folder, Head(files=5, started="2026-01-02T03:04:05+00:00", manifest_sha256="ab"))
    journal.append(report.files)
    journal.close()
    folder.close()
    read = asyncdump.read_receipt(output / name)
    assert [file.name for file in read.files] == [file.name for file in report.files]
    assert (read.unrecorded, read.ok, read.manifest_sha256) == (3, False, "ab")
    assert read.interrupted
    assert read.started.isoformat() == "2026-01-02T03:04:05+00:00"
    assert read.ended >= read.started


async def test_while_it_runs(output, tmp_path: Path) -> None:
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(1 << 42)
    async with asyncdump.open_run([tmp_path / "endless"], output=output) as run:
        async for event in run:
            if isinstance(event, asyncdump.Progress):
                assert asyncdump.read_receipt(output).unrecorded == 1
                break
        run.cancel()
    assert asyncdump.read_receipt(output).interrupted == "cancelled"


async def test_elsewhere(report, output, tmp_path: Path) -> None:
    """Paths are those of the place that it is read in."""
    shutil.copytree(output, tmp_path / "copy")
    read = asyncdump.read_receipt(tmp_path / "copy")
    assert read.files[0].path == str(tmp_path / "copy" / "good.zst")
    assert os.path.exists(read.files[0].path)


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"receipt": 99}', b'{"receipt": 2, "files": 7}'])
def test_what_is_no_receipt(content, output) -> None:
    output.mkdir()
    if content is not None:
        (output / RECEIPT).write_bytes(content)
    with pytest.raises(asyncdump.ReceiptError):
        asyncdump.read_receipt(output)


@pytest.mark.parametrize("started", ["", "yesterday", "2026-01-02T03:04:05"])
def test_any_time_is_one(started, output) -> None:
    output.mkdir()
    record = {"source": "/s", "name": "s", "bytes": 7}
    for seconds in (0.5, 1e300):
        content = {"receipt": 1, "files": [record], "started": started, "seconds": seconds}
        (output / RECEIPT).write_text(json.dumps(content))
        read = asyncdump.read_receipt(output)
        assert read.started.tzinfo is UTC
        assert read.ended >= read.started
        assert "1 of 1 file" in str(read)


def test_a_directory_that_is_not_there(output) -> None:
    with pytest.raises(asyncdump.AsyncdumpError):
        asyncdump.read_receipt(output)
    with pytest.raises(asyncdump.ReceiptError):
        asyncdump.read_receipt("")
