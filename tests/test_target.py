"""Where a dump is restored by default: a name that is derived keeps to what names keep to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from files import noise, unavailable, write_pages

import asyncdump
from asyncdump.errors import ReceiptError
from asyncdump.records.report import FileReport
from asyncdump.restoring import default_target


def file(name: str, *stages: str) -> FileReport:
    return FileReport(
        source="/s",
        name=name,
        path=f"/dumps/{name}",
        bytes=0,
        stored=0,
        seconds=0.0,
        method=None,
        digest=None,
        error=None,
        phase="done",
        stages=stages,
    )


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("a.zst", "a"),
        ("a.zst.zst", "a.zst"),
        ("a", "a"),
        (".a.zst", ".a"),
        ("a.ZST", "a.ZST"),
        ("...zst", "...zst"),
        ("..zst", "..zst"),
        (".zst", ".zst"),
        ("-.zst", "-.zst"),
        ("....zst", "..."),
        ("receipt.json.zst", "receipt.json.zst"),
        ("XXH128SUMS.zst", "XXH128SUMS.zst"),
    ],
)
def test_a_compressed_dump_loses_its_suffix_if_a_name_is_left(name, target) -> None:
    assert default_target(file(name, "zstd:3")) == target
    assert default_target(file(name, "gzip", "zstd:3")) == target
    assert default_target(file(name)) == name
    assert default_target(file(name, "zstd:3", "gzip")) == name


@pytest.mark.parametrize("name", ["...zst", "..zst", ".zst", "-.zst", "receipt.json.zst"])
async def test_such_a_dump_comes_back(name, tmp_path: Path) -> None:
    write_pages(tmp_path / "source", noise(9000))
    dumps = [asyncdump.Dump(source=str(tmp_path / "source"), name=name, compress="zstd")]
    (await asyncdump.dump_all(dumps, output=tmp_path / "dumps")).raise_for_failures()
    report = await asyncdump.restore_all(tmp_path / "dumps", tmp_path / "back")
    report.raise_for_failures()
    assert os.listdir(tmp_path / "back") == [name]
    assert (tmp_path / "back" / name).read_bytes() == noise(9000)


@pytest.mark.parametrize("name", ["a/.zst", "a\n.zst", "..", "../a.zst", ".asyncdump-a.zst", "a\0.zst", "\ud800.zst"])
async def test_a_receipt_with_such_a_name_is_refused(name, tmp_path: Path) -> None:
    record = {"source": "/s", "name": name, "bytes": 0, "stages": ["zstd:3"]}
    (tmp_path / "dumps").mkdir()
    (tmp_path / "dumps" / "receipt.json").write_text(json.dumps({"receipt": 1, "files": [record]}))
    with pytest.raises(ReceiptError):
        await asyncdump.restore_all(tmp_path / "dumps", tmp_path / "back")
    assert not (tmp_path / "back").exists()


async def test_two_dumps_with_one_target_are_refused_and_mapped_apart(tmp_path: Path) -> None:
    write_pages(tmp_path / "source", noise(9000))
    dumps = [
        asyncdump.Dump(source=str(tmp_path / "source"), name="a"),
        asyncdump.Dump(source=str(tmp_path / "source"), name="a.zst", compress="zstd"),
    ]
    (await asyncdump.dump_all(dumps, output=tmp_path / "dumps")).raise_for_failures()
    with pytest.raises(ReceiptError, match=r"\ba\b.* a\.zst\b"):
        await asyncdump.restore_all(tmp_path / "dumps", tmp_path / "back")
    for path in (".", "..", "sub/..", str(tmp_path / "dumps" / "b"), ".asyncdump-b", "a", "./a", "sub/../a"):
        with pytest.raises(ReceiptError):
            await asyncdump.restore_all(tmp_path / "dumps", tmp_path / "back", map={"a.zst": path})
    report = await asyncdump.restore_all(tmp_path / "dumps", tmp_path / "back", map={"a.zst": "b"})
    report.raise_for_failures()
    assert sorted(os.listdir(tmp_path / "back")) == ["a", "b"]


@pytest.mark.parametrize(
    ("checksum", "name"), [("xxh128", "XXH128SUMS"), ("sha256", "SHA256SUMS"), ("blake3", "B3SUMS")]
)
async def test_a_digest_list_of_somebody_else_is_not_replaced(checksum, name, tmp_path: Path) -> None:
    write_pages(tmp_path / "source", noise(9000))
    (tmp_path / "dumps").mkdir()
    (tmp_path / "dumps" / name).write_text("mine")
    dumps = [asyncdump.Dump(source=str(tmp_path / "source"))]
    with pytest.raises(asyncdump.ManifestError) as caught:
        await asyncdump.dump_all(dumps, output=tmp_path / "dumps", checksum=checksum)
    assert name in str(caught.value)
    assert (tmp_path / "dumps" / name).read_text() == "mine"
    other: Any = "sha256" if checksum == "xxh128" else "xxh128"
    (await asyncdump.dump_all(dumps, output=tmp_path / "dumps", checksum=other)).raise_for_failures()
    assert (tmp_path / "dumps" / name).read_text() == "mine"


NAMES = [
    *(
        "a\\b",
        "\\a",
        "a\\nb",
        " a",
        "a ",
        "*a",
        " *a",
        "-a",
        "--help",
        "a'b",
        '"',
        "#a",
        "(a) = b",
        "SHA256 (x) = y",
        "a:b",
    ),
    *("a\u2028b", "\u202ea", "\ufffd", "\x85", os.fsdecode(b"caf\xe9"), "e\u0301", "\ufeffa", "d" * 255, "%s"),
]


@pytest.mark.parametrize(
    ("checksum", "command"),
    [
        ("sha256", ["sha256sum", "--strict", "-c", "SHA256SUMS"]),
        ("xxh128", ["xxhsum", "-c", "XXH128SUMS"]),
        ("blake3", ["b3sum", "-c", "B3SUMS"]),
    ],
)
async def test_digest_tools_take_a_list_of_odd_names(checksum, command, tmp_path: Path) -> None:
    if shutil.which(command[0]) is None:
        unavailable(f"{command[0]} is not installed")
    write_pages(tmp_path / "source", noise(900))
    dumps = [asyncdump.Dump(source=str(tmp_path / "source"), name=name) for name in NAMES]
    (await asyncdump.dump_all(dumps, output=tmp_path / "dumps", checksum=checksum)).raise_for_failures()
    done = subprocess.run(command, cwd=tmp_path / "dumps", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    left_out = 2 if checksum == "blake3" else 0  # Its tool takes no names that aren't UTF-8, or may be.
    assert done.stdout.count(b": OK\n") == len(NAMES) - left_out
