"""What is recorded of a dump that has its name, and could not be made durable, whatever comes after."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from files import HUGE_PAGE, noise, unavailable
from test_maps import owner

import asyncdump
from asyncdump import Dump, Retries

CHILD = """
import asyncio, os, sys
import asyncdump

source, out = sys.argv[1:]

def lose(event):
    if isinstance(event, asyncdump.FileRetried):
        os.unlink(source)

retries = asyncdump.Retries(times=1, delay=0.5, errors=["ENOSPC"])
asyncio.run(asyncdump.dump_all([asyncdump.Dump(source=source, name="dump")], output=out, retries=retries, on_event=lose))
"""


async def test_a_retry_that_fails_otherwise_loses_nothing_of_what_stands(tmp_path: Path) -> None:
    """The name can't be made durable (fsync(2) of the folder), and when that is retried the source has gone."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_bytes(noise(100_000))
    out.mkdir()
    strace = ["strace", "-f", "-qq", "-o", str(tmp_path / "log"), "--trace=fsync", "--inject=fsync:error=ENOSPC"]
    subprocess.run([*strace, sys.executable, "-c", CHILD, str(source), str(out)], check=True, capture_output=True)
    assert "(INJECTED)" in (tmp_path / "log").read_text()
    assert (out / "dump").read_bytes() == noise(100_000)
    [file] = json.loads((out / "receipt.json").read_bytes())["files"]
    assert file["error"]["errno"].startswith("ENOENT")
    assert (file["phase"], file["inode"], file["bytes"]) == ("sync", (out / "dump").stat().st_ino, 0)
    assert file["digest"].startswith("xxh128:")
    # So it is known for ours, and made anew without being asked for.
    source.write_bytes(noise(100_000, 1))
    report = await asyncdump.dump_all(
        [Dump(source=source, name="dump")], output=out, resume=True, retries=Retries(times=0)
    )
    report.raise_for_failures()
    assert (out / "dump").read_bytes() == source.read_bytes()
    assert not report.files[0].kept


async def test_who_has_huge_pages_mapped_is_recorded(make, tmp_path: Path) -> None:
    source = Path(make("hugetlbfs", noise(3 * HUGE_PAGE)))
    with owner(source, f"{HUGE_PAGE}+{2 * HUGE_PAGE}") as pid:
        report = await asyncdump.dump_all([Dump(source=source)], output=tmp_path / "out")
    [file] = report.files
    [mapped] = file.maps
    assert (mapped.pid, mapped.offset, mapped.length) == (pid, HUGE_PAGE, 2 * HUGE_PAGE)
    assert (mapped.inode, mapped.shared) == (source.stat().st_ino, True)


async def test_who_has_a_memfd_mapped_too(tmp_path: Path) -> None:
    fd = os.memfd_create("frames")
    try:
        os.write(fd, noise(10_000))
        with owner(Path(f"/proc/{os.getpid()}/fd/{fd}"), "4096+5904") as pid:
            report = await asyncdump.dump_all([Dump(source=f"/proc/self/fd/{fd}")], output=tmp_path / "out")
    finally:
        os.close(fd)
    [mapped] = report.files[0].maps
    assert (mapped.pid, mapped.offset, mapped.length) == (pid, 4096, 8192)  # Whole pages.
