"""Files whose size isn't what they give: what the kernel makes up when it is read, and what can't be read at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from files import MiB, noise, read

import asyncdump
from asyncdump import Dump
from asyncdump.sources.describe import describe
from asyncdump.sources.file import open_source
from asyncdump.sources.unsized import gather

STEADY = [
    "/proc/version",
    "/proc/filesystems",
    "/proc/kallsyms",
    "/proc/sys/kernel/ostype",
    "/sys/kernel/mm/transparent_hugepage/enabled",
]


def content_of(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(MiB), b""))


@pytest.fixture(params=STEADY)
def steady(request) -> str:
    if not os.access(request.param, os.R_OK):
        pytest.skip(f"no {request.param} here")
    path: str = request.param
    return path


@pytest.mark.sample(7)
@pytest.mark.parametrize(
    "how",
    [{}, {"method": "splice"}, {"checksum": "none"}, {"compress": "zstd"}, {"method": "splice", "compress": "zstd"}],
)
async def test_it_is_read_to_its_end(how, steady, tmp_path: Path) -> None:
    report = await asyncdump.dump_all([Dump(source=steady, name="x")], output=tmp_path / "out", **how)
    report.raise_for_failures()
    expected = content_of(steady)
    assert expected
    assert report.files[0].bytes == len(expected)
    with asyncdump.open_dump(tmp_path / "out/x") as dump:
        assert dump.read() == expected
    if how.get("checksum") != "none":
        assert (await asyncdump.verify_all(tmp_path / "out")).ok
    assert (await asyncdump.verify_all(tmp_path / "out", against_source=True)).ok


async def test_a_part_of_it(steady, tmp_path: Path) -> None:
    dumps = [Dump(source=steady, name="a", offset=2, length=3), Dump(source=steady, name="b", offset=1, length="1P")]
    (await asyncdump.dump_all(dumps, output=tmp_path / "out")).raise_for_failures()
    expected = content_of(steady)
    assert (tmp_path / "out/a").read_bytes() == expected[2:5]
    assert (tmp_path / "out/b").read_bytes() == expected[1:]


async def test_a_part_behind_its_end(steady, tmp_path: Path) -> None:
    report = await asyncdump.dump_all([Dump(source=steady, name="x", offset="1G")], output=tmp_path / "out")
    assert isinstance(report.files[0].error, asyncdump.SourceChangedError)
    assert not (tmp_path / "out/x").exists()


async def test_it_is_never_kept_from_an_earlier_run(tmp_path: Path) -> None:
    dumps = [Dump(source="/proc/self/stat", name="x")]
    for resume in (False, True):
        report = await asyncdump.dump_all(dumps, output=tmp_path / "out", resume=resume)
        report.raise_for_failures()
        assert not report.files[0].kept


async def test_what_has_changed_since_differs(tmp_path: Path) -> None:
    (await asyncdump.dump_all([Dump(source="/proc/self/stat", name="x")], output=tmp_path / "out")).raise_for_failures()
    (tmp_path / "large").write_bytes(noise(MiB))
    sum(range(10**6))
    assert (await asyncdump.verify_all(tmp_path / "out")).ok
    assert not (await asyncdump.verify_all(tmp_path / "out", against_source=True)).ok


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "memfd"])
async def test_an_empty_file_is_an_empty_dump(kind, make, tmp_path: Path) -> None:
    report = await asyncdump.dump_all([Dump(source=make(kind, b""), name="x")], output=tmp_path / "out")
    report.raise_for_failures()
    assert (tmp_path / "out/x").read_bytes() == b""
    assert report.files[0].identity is not None


@pytest.mark.parametrize("path", ["/proc/PID/mem", "/proc/self/pagemap", "/proc/self/task/PID/mem", "/proc/kcore"])
async def test_positions_that_are_addresses(path, tmp_path: Path) -> None:
    path = path.replace("PID", str(os.getpid()))
    with pytest.raises(asyncdump.ManifestError) as refusal:
        await asyncdump.dump_all([Dump(source=path, name="x")], output=tmp_path / "out")
    assert len(refusal.value.problems) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to open a device")
async def test_a_drive_with_nothing_in_it(tmp_path: Path) -> None:
    empty = [f"/dev/{path.name}" for path in Path("/sys/block").iterdir() if (path / "size").read_text() == "0\n"]
    if not empty:
        pytest.skip("every block device holds something")
    with pytest.raises(asyncdump.ManifestError) as refusal:
        await asyncdump.plan_all([Dump(source=empty[0])], output=tmp_path / "out")
    assert refusal.value.problems[0].key == "dumps[0].source"


async def test_a_link_to_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(f"/proc/{os.getpid()}/mem")
    with pytest.raises(asyncdump.ManifestError, match=r"dumps\[0\]\.source: .*/link\b"):
        await asyncdump.dump_all([Dump(source=tmp_path / "link")], output=tmp_path / "out")


def test_more_than_is_held_in_memory(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("asyncdump.sources.unsized.LARGEST_STREAM", 100)
    fd = open_source("/proc/kallsyms")
    try:
        with pytest.raises(asyncdump.DumpError, match="/proc/kallsyms"):
            gather(fd, "/proc/kallsyms")
        os.fstat(fd)  # It is the caller's still.
    finally:
        os.close(fd)


def reads() -> int:
    """Return how often this thread has called read(2) or one of its kin (proc_pid_io(5))."""
    fields = dict(line.split(b": ") for line in read("/proc/thread-self/io").splitlines())
    return int(fields[b"syscr"])


def test_true_sizes_cost_no_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    to_count = -reads() + reads()
    fd = open_source(str(tmp_path / "file"))
    try:
        before = reads()
        assert describe(fd, "file").sized
        assert reads() - before == to_count
    finally:
        os.close(fd)


def test_cat_and_dd_read_to_the_end() -> None:
    expected = content_of("/proc/version")
    run = [sys.executable, "-m", "asyncdump"]
    for command, start in (
        (["cat", "/proc/version"], 0),
        (["cat", "--offset", "7", "/proc/version"], 7),
        (["dd", "if=/proc/version"], 0),
        (["dd", "if=/proc/version", "bs=1", "skip=5"], 5),
    ):
        assert subprocess.run([*run, *command], capture_output=True, check=True).stdout == expected[start:]


async def test_probe_and_dry_run(tmp_path: Path) -> None:
    findings = await asyncdump.probe("/proc/version", tmp_path)
    assert {finding.bytes for finding in findings if finding.refusal is None} == {len(content_of("/proc/version"))}
    (tmp_path / "m.yaml").write_text("{version: 1, output: out, dumps: [{source: /proc/version}]}")
    done = subprocess.run(
        [sys.executable, "-m", "asyncdump", "--dry-run", tmp_path / "m.yaml"], capture_output=True, check=True
    )
    assert b"read" in done.stdout
