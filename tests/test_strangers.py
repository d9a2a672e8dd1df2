"""A dump that no record tells of is recognised by what its source holds, and nothing else is taken for it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from files import KiB, MiB, content, leftovers, noise

import asyncdump
from asyncdump.vocabulary.names import JOURNAL

SIZES = (0, 5, 5 * MiB + 7, 300 * KiB)
RECORDS = ("receipt.json", "XXH128SUMS", "B3SUMS", "SHA256SUMS", JOURNAL)


@pytest.fixture
def sources(tmpfs: Path) -> Iterator[list[Path]]:
    with tempfile.TemporaryDirectory(dir=tmpfs) as place:
        made = [Path(place, f"ring{number}") for number in range(len(SIZES))]
        for path, size in zip(made, SIZES, strict=True):
            path.write_bytes(content(size))
        yield made


@pytest.fixture
def output(ext4: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=ext4) as place:
        yield Path(place, "out")


async def dump(output: Path, sources: list[Path], entry: dict[str, Any] | None = None, **options: Any) -> Any:
    dumps = [asyncdump.Dump(source=str(source), **(entry or {})) for source in sources]
    return await asyncdump.dump_all(dumps, output=output, **options)


def forget(output: Path) -> dict[str, int]:
    """Remove all records; return the inode of each dump."""
    for name in RECORDS:
        (output / name).unlink(missing_ok=True)
    return {name: (output / name).stat().st_ino for name in os.listdir(output)}


@pytest.mark.parametrize(
    ("entry", "options"),
    [
        ({}, {}),
        ({}, {"checksum": "none"}),
        ({}, {"checksum": "blake3", "durable": False}),
        ({}, {"compress": "zstd"}),
        ({}, {"compress": "zstd", "checksum": "sha256"}),
        ({"offset": 3, "length": "1 MiB"}, {}),
        ({"sparse": "never"}, {"method": "sendfile"}),
    ],
)
async def test_it_is_kept_and_recorded(entry, options, output: Path, sources) -> None:
    sources = sources[1:] if entry else sources
    first = await dump(output, sources, entry, **options)
    first.raise_for_failures()
    inodes = forget(output)
    report = await dump(output, sources, entry, resume=True, **options)
    report.raise_for_failures()
    assert [file.kept for file in report.files] == [True] * len(sources)
    for file, before in zip(report.files, first.files, strict=True):
        assert (file.digest, file.content_digest, file.blocks) == (before.digest, before.content_digest, before.blocks)
        assert (file.size, file.bytes, file.offset, file.stages) == (
            before.size,
            before.bytes,
            before.offset,
            before.stages,
        )
    assert {name: (output / name).stat().st_ino for name in inodes} == inodes
    against = options.get("checksum") == "none" and not options.get("compress")
    assert (await asyncdump.verify_all(output, against_source=against)).ok
    again = await dump(output, sources, entry, resume=True, **options)
    assert [file.kept for file in again.files] == [True] * len(sources)


@pytest.mark.parametrize("compress", ["none", "zstd"])
async def test_what_differs_is_left_alone(compress, output: Path, sources) -> None:
    (await dump(output, sources, compress=compress)).raise_for_failures()
    forget(output)
    with sources[2].open("r+b") as file:
        file.seek(3 * MiB)
        file.write(b"changed")
    name = "ring2.zst" if compress == "zstd" else "ring2"
    held = (output / name).read_bytes()
    report = await dump(output, sources, compress=compress, resume=True)
    assert [file.name for file in report.failures] == [name]
    error = report.failures[0].error
    assert isinstance(error, asyncdump.DumpError)
    assert error.errno == errno.EEXIST
    assert "overwrite=True" in error.hint
    assert (output / name).read_bytes() == held
    assert leftovers(output) == []
    (await dump(output, sources, compress=compress, resume=True, overwrite=True)).raise_for_failures()
    assert (await asyncdump.verify_all(output)).ok


async def test_some_that_are_recorded_and_some_that_are_not(output: Path, sources) -> None:
    (await dump(output, sources[:2])).raise_for_failures()
    (output / "ring2").write_bytes(content(SIZES[2]))
    report = await dump(output, sources, resume=True)
    report.raise_for_failures()
    assert [file.kept for file in report.files] == [True, True, True, False]


@pytest.mark.parametrize("what", ["longer", "shorter", "link", "folder", "fifo", "filter"])
async def test_what_can_not_be_it_is_refused_beforehand(what, output: Path, sources) -> None:
    output.mkdir()
    path, data = output / "ring2", content(SIZES[2])
    match what:
        case "longer" | "shorter" | "filter":
            path.write_bytes({"longer": data + b"x", "shorter": data[:-1], "filter": data}[what])
        case "link":
            path.symlink_to(sources[2])
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    entry = {"filter": (("cat",),)} if what == "filter" else {}
    with pytest.raises(asyncdump.ManifestError):
        await dump(output, sources[2:3], entry, resume=True, allow_filters=True)
    assert os.listdir(output) == ["ring2"]


async def test_another_zst_with_that_name(output: Path, sources) -> None:
    output.mkdir()
    (output / "ring2.zst").write_bytes(noise(5000))
    report = await dump(output, sources, resume=True, compress="zstd")
    assert [file.name for file in report.failures] == ["ring2.zst"]
    assert (output / "ring2.zst").read_bytes() == noise(5000)


async def test_without_resume_it_is_in_the_way(output: Path, sources) -> None:
    (await dump(output, sources)).raise_for_failures()
    forget(output)
    with pytest.raises(asyncdump.ManifestError):
        await dump(output, sources)


async def test_an_empty_file_is_no_dump_of_what_does_not_tell_its_size(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "version").touch()
    dumps = [asyncdump.Dump(source="/proc/version")]
    with pytest.raises(asyncdump.ManifestError):
        await asyncdump.dump_all(dumps, output=tmp_path / "out", resume=True)
    assert (tmp_path / "out" / "version").read_bytes() == b""
