"""Which methods the kernel accepts for a source and a folder, as `probe` tries them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from files import METHODS, PAGE, KiB, MiB, noise, read

import asyncdump
from asyncdump.sinks.folder import Folder
from asyncdump.vocabulary.values import Checksum

FolderOn = Callable[[str], Folder]


async def probe(source: str | Path, folder: str | Path) -> dict[str, asyncdump.Finding]:
    """Return the findings by their method; none may leave anything behind."""
    opened = len(os.listdir("/proc/self/fd"))
    findings = await asyncdump.probe(source, folder)
    assert os.listdir(folder) == []
    assert len(os.listdir("/proc/self/fd")) == opened
    assert tuple(finding.method for finding in findings) == METHODS
    return {finding.method: finding for finding in findings}


@pytest.mark.parametrize("destination", ["ext4", "tmpfs"])
async def test_each_method_is_tried_from_memory(destination, make, folder_on: FolderOn) -> None:
    data = noise(3 * MiB + 5)
    source = make("tmpfs", data)
    found = await probe(source, folder_on(destination).path)
    accepted = {method for method, finding in found.items() if finding.refusal is None}
    assert accepted >= {"sendfile", "splice", "mmap", "read"}
    for method in accepted:
        assert found[method].bytes == len(data)
        assert found[method].bytes_per_second > 0
    assert read(source) == data


async def test_a_clone_across_filesystems_is_refused(make, folder_on: FolderOn) -> None:
    found = await probe(make("tmpfs", noise(MiB)), folder_on("ext4").path)
    refusal = found["reflink"].refusal
    assert refusal is not None
    assert refusal.errno in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP)
    assert errno.errorcode[refusal.errno] in refusal.reason
    assert (found["reflink"].bytes, found["reflink"].bytes_per_second) == (0, 0.0)


@pytest.mark.parametrize("destination", ["ext4", "tmpfs"])
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
async def test_it_tells_what_a_run_would_choose(kind, destination, make, folder_on: FolderOn) -> None:
    source = make(kind, noise(MiB))
    found = await probe(source, folder_on(destination).path)
    chosen = {"always": [True, False], "with a checksum": [True], "without a checksum": [False], "never": []}
    picks = {hashing: method for method, one in found.items() for hashing in chosen[one.chosen]}
    checksums: list[tuple[bool, Checksum]] = [(True, "xxh128"), (False, "none")]
    for hashing, checksum in checksums:
        folder = folder_on(destination).path
        report = await asyncdump.dump_all([asyncdump.Dump(source=source)], output=folder, checksum=checksum)
        assert report.files[0].method == picks[hashing]


async def test_with_a_checksum_the_bytes_of_memory_are_read(make, folder_on: FolderOn) -> None:
    found = await probe(make("tmpfs", noise(MiB)), folder_on("ext4").path)
    assert found["read"].chosen == "with a checksum"
    assert found["direct"].chosen == "without a checksum"


async def test_holes_are_not_moved(tmpfs: Path, folder_on: FolderOn) -> None:
    source = tmpfs / "holes"
    with source.open("wb") as file:
        file.truncate(64 * MiB)
        file.write(noise(2 * PAGE))
    try:
        found = await probe(source, folder_on("tmpfs").path)
    finally:
        source.unlink()
    assert found["read"].bytes == 2 * PAGE


async def test_an_empty_source_can_be_tried(make, folder_on: FolderOn) -> None:
    found = await probe(make("tmpfs", b""), folder_on("tmpfs").path)
    assert found["read"].refusal is None
    assert found["read"].bytes == 0


async def test_paths_may_be_of_any_kind(make, folder_on: FolderOn) -> None:
    source, folder = make("tmpfs", noise(64 * KiB)), folder_on("tmpfs").path
    assert (await probe(Path(source), Path(folder))).keys() == (await probe(source, folder)).keys()


# --- what can't be tried ---------------------------------------------------------------------------------------------


async def test_a_source_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(asyncdump.DumpError, match="gone") as raised:
        await probe(tmp_path / "gone", tmp_path)
    assert raised.value.errno == errno.ENOENT
    assert os.listdir(tmp_path) == []


async def test_a_source_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(asyncdump.DumpError, match="fifo"):
        await asyncdump.probe(tmp_path / "fifo", tmp_path)


@pytest.mark.parametrize("name", ["gone", "file"])
async def test_a_folder_that_is_none(name, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(asyncdump.DumpError, match=name):
        await asyncdump.probe(tmp_path / "file", tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_folder_that_is_not_ours(make, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o500)
    with pytest.raises(asyncdump.DumpError) as raised:
        await asyncdump.probe(make("tmpfs", noise(PAGE)), tmp_path)
    os.chmod(tmp_path, 0o700)
    assert raised.value.errno == errno.EACCES
