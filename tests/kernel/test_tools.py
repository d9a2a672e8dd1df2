"""The digest lists are for other people's tools: those have the last word."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import pytest
from files import MiB, content, read, unavailable

import asyncdump

TOOLS = {
    "xxh128": ("xxhsum", "XXH128SUMS"),
    "sha256": ("sha256sum", "SHA256SUMS"),
    "blake3": ("b3sum", "B3SUMS"),
}


def verify(folder: str, tool: str, name: str) -> subprocess.CompletedProcess[str]:
    if shutil.which(tool) is None:
        unavailable(f"{tool} is not installed")
    return subprocess.run([tool, "-c", name], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def dumps(make) -> list[asyncdump.Dump]:
    kinds = ("hugetlbfs", "tmpfs", "ext4")
    names = ("plain", "with a space", "größe", "*star", "-dash")
    sizes = (0, 1, 4097, 2 * MiB + 1, 4 * MiB)
    return [
        asyncdump.Dump(source=make(kind, content(size)), name=f"{name} {kind}")
        for kind in kinds
        for name, size in zip(names, sizes, strict=True)
    ]


@pytest.mark.parametrize("checksum", TOOLS)
@pytest.mark.parametrize("method", ["auto", "mmap"])
async def test_its_own_tool_verifies_each_list(checksum, method, dumps, folder_on) -> None:
    folder = folder_on("ext4").path
    report = await asyncdump.dump_all(dumps, output=folder, checksum=checksum, method=method)
    report.raise_for_failures()
    tool, name = TOOLS[checksum]
    assert len(read(os.path.join(folder, name)).splitlines()) == len(dumps)
    done = verify(folder, tool, name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("checksum", TOOLS)
async def test_its_own_tool_finds_a_changed_byte(checksum, dumps, folder_on) -> None:
    folder = folder_on("ext4").path
    report = await asyncdump.dump_all(dumps, output=folder, checksum=checksum)
    victim = max(report.files, key=lambda file: file.bytes)
    fd = os.open(victim.path, os.O_WRONLY)
    os.pwrite(fd, b"!", victim.bytes - 1)
    os.close(fd)
    assert verify(folder, *TOOLS[checksum]).returncode != 0


async def test_each_list_holds_the_dumps_of_its_kind(dumps, folder_on) -> None:
    folder = folder_on("ext4").path
    checksums: list[Any] = [*TOOLS, "none"] * 4
    mixed = [
        asyncdump.Dump(source=dump.source, name=dump.name, checksum=checksum)
        for dump, checksum in zip(dumps, checksums, strict=False)
    ]
    report = await asyncdump.dump_all(mixed, output=folder)
    report.raise_for_failures()
    for checksum, (tool, name) in TOOLS.items():
        lines = read(os.path.join(folder, name)).decode().splitlines()
        assert {line.split("  ", 1)[1] for line in lines} == {dump.name for dump in mixed if dump.checksum == checksum}
        assert verify(folder, tool, name).returncode == 0
