"""`verify`, `restore` and `--resume` as a user meets them: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from commands import asyncdump
from files import MiB, leftovers, mentions, noise, read

MANIFEST = """version: 1
output: out
dumps:
  - source: ring[0-2]
  - source: ring3
    compress: zstd
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a run in ``out``, all of it well."""
    for number in range(4):
        (tmp_path / f"ring{number}").write_bytes(noise(3 * MiB + number, number))
    (tmp_path / "m.yaml").write_text(MANIFEST)
    done = asyncdump("m.yaml", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path


def spoil(run: Path) -> None:
    with (run / "out" / "ring1").open("r+b") as file:
        file.seek(2 * MiB + 5)
        file.write(b"??")
    os.truncate(run / "out" / "ring2", 7)
    (run / "out" / "ring3.zst").unlink()


def test_all_is_well(run: Path) -> None:
    done = asyncdump("verify", "out", cwd=run)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout, "4 of 4 ", run / "out/receipt.json", "12.0 MiB")
    assert mentions(done.stderr, "4 files", "12.0 MiB", run / "out")
    assert asyncdump("verify", "out/receipt.json", "-q", cwd=run).stdout == ""


def test_what_is_wrong_is_told_on_stderr(run: Path) -> None:
    spoil(run)
    done = asyncdump("verify", "out", "--progress", "none", cwd=run)
    assert done.returncode == 1
    assert done.stdout.startswith("1 of 4 ")
    corrupt, short, missing = done.stderr.splitlines()
    assert mentions(corrupt, "asyncdump: ", "corrupt", run / "out/ring1", 2 * MiB)
    assert mentions(short, "asyncdump: ", "short", run / "out/ring2", 7, 3 * MiB + 2)
    assert mentions(missing, "asyncdump: ", "missing", run / "out/ring3.zst")


def test_as_json(run: Path) -> None:
    spoil(run)
    done = asyncdump("verify", "out", "--json", cwd=run)
    assert (done.returncode, done.stderr) == (1, "")
    told = json.loads(done.stdout)
    assert {key: told[key] for key in ("ok", "interrupted", "unrecorded", "strays")} == {
        "ok": False,
        "interrupted": None,
        "unrecorded": 0,
        "strays": [],
    }
    assert [(file["name"], file["verdict"], file["offset"]) for file in told["files"]] == [
        ("ring0", "ok", None),
        ("ring1", "corrupt", 2 * MiB),
        ("ring2", "short", 7),
        ("ring3.zst", "missing", None),
    ]


def test_progress_as_json(run: Path) -> None:
    done = asyncdump("verify", "out", "--progress", "json", cwd=run)
    kinds = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert (done.returncode, kinds[0], kinds[-1]) == (0, "run_started", "run_finished")
    assert kinds.count("file_finished") == 4


def test_against_the_source(run: Path) -> None:
    assert asyncdump("verify", "out", "--against-source", cwd=run).returncode == 0
    (run / "ring0").write_bytes(noise(3 * MiB, 99))
    done = asyncdump("verify", "out", "--against-source", "-q", cwd=run)
    assert done.returncode == 1
    assert mentions(done.stderr, "differs", "ring0")


@pytest.mark.parametrize("command", [["verify", "x"], ["verify", "x/receipt.json"], ["restore", "x", "--to", "y"]])
@pytest.mark.parametrize("there", [True, False])
def test_no_receipt_is_a_wrong_usage(command, there, tmp_path: Path) -> None:
    if there:
        (tmp_path / "x").mkdir()
    done = asyncdump(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("asyncdump: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "y").exists()


def test_restore(run: Path) -> None:
    done = asyncdump("restore", "out", "--to", "back", "--map", "ring0=../first", cwd=run)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout.splitlines()[0], "4 of 4 files ", run / "back")
    assert "receipt" not in done.stdout
    assert read(run / "first") == read(run / "ring0")
    for number in (1, 2, 3):
        assert read(run / "back" / f"ring{number}") == read(run / f"ring{number}")
    again = asyncdump("restore", "out", "--to", "back", "--map", "ring0=../second", cwd=run)
    assert (again.returncode, again.stdout) == (2, "")
    assert all(mentions(again.stderr, run / f"back/ring{number}") for number in (1, 2, 3))
    assert "--overwrite" in again.stderr
    assert not (run / "second").exists()


def test_restore_of_what_is_damaged(run: Path) -> None:
    spoil(run)
    done = asyncdump("restore", "out", "--to", "back", "--progress", "none", cwd=run)
    assert done.returncode == 1
    assert sorted(os.listdir(run / "back")) == ["ring0"]
    assert "ring1" in done.stderr
    assert done.stdout.startswith("1 of 4 files ")


@pytest.mark.parametrize("value", ["ring0", "=x", "ring0="])
def test_a_map_without_both_sides(value, run: Path) -> None:
    done = asyncdump("restore", "out", "--to", "back", "--map", value, cwd=run)
    assert done.returncode == 2
    assert "NAME=PATH" in done.stderr


def test_resume_keeps_what_is_whole_and_does_the_rest(run: Path) -> None:
    spoil(run)
    refused = asyncdump("m.yaml", cwd=run)
    assert refused.returncode == 2
    inode = (run / "out" / "ring0").stat().st_ino
    done = asyncdump("m.yaml", "--resume", cwd=run)
    assert done.returncode == 0, done.stderr
    assert re.search("^1 file .*", done.stdout, re.MULTILINE)
    assert (run / "out" / "ring0").stat().st_ino == inode
    assert asyncdump("verify", "out", cwd=run).returncode == 0
    receipt = json.loads(read(run / "out" / "receipt.json"))
    assert [file["kept"] for file in receipt["files"]] == [True, False, False, False]
    assert leftovers(run / "out") == []


def test_resume_looks_at_the_source_unless_told_to_trust(run: Path) -> None:
    os.utime(run / "ring0", (1, 1))
    inode = (run / "out" / "ring0").stat().st_ino
    assert asyncdump("m.yaml", "--resume", "--trust-receipt", "-q", cwd=run).returncode == 0
    assert (run / "out" / "ring0").stat().st_ino == inode
    assert asyncdump("m.yaml", "--resume", "-q", cwd=run).returncode == 0
    assert (run / "out" / "ring0").stat().st_ino != inode


def test_events_of_what_is_kept(run: Path) -> None:
    done = asyncdump("m.yaml", "--resume", "--progress", "json", cwd=run)
    kinds = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert kinds.count("file_kept") == 4
    assert "file_finished" not in kinds


def test_trusting_is_said_of_resuming(run: Path) -> None:
    done = asyncdump("m.yaml", "--trust-receipt", cwd=run)
    assert done.returncode == 2
    assert "--resume" in done.stderr


@pytest.mark.parametrize("value", ["-1", "x", "3:EIO", "3:", "1001"])
def test_retries_that_can_not_be(value, run: Path) -> None:
    done = asyncdump("m.yaml", "--overwrite", "--retries", value, cwd=run)
    assert done.returncode == 2
    assert "5:ENOSPC,EDQUOT" in done.stderr
