"""What a second run makes of what the first has left: on a full disk, with other sources, another manifest, garbage."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync
from files import KiB, MiB, leftovers, mentions, noise, read, write_pages
from tool import (
    ENOUGH,
    Dumps,
    Gate,
    check_complete,
    check_whole,
    failing_until_retried,
    journal_of,
    receipt_of,
    resume,
    started,
    traced,
    wait_for,
    write_manifest,
)
from tool import asyncdump as tool

import asyncdump
from asyncdump.records.journal import line
from asyncdump.vocabulary.names import JOURNAL

NAMES = ("a", "b", "c")
SIZE = 300 * KiB
SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, which XFS knows too
WITHOUT_LOG = 2  # What isn't durable is lost, as in a power cut.


class Case:
    """Three small files, their manifest, and the output folder."""

    def __init__(self, place: Path, output: Path, manifest: Path) -> None:
        self.place = place
        self.output = output
        self.manifest = manifest
        self.entries: list[dict[str, Any]] = []
        self.head: dict[str, Any] = {}
        for number, name in enumerate(NAMES):
            write_pages(place / name, noise(SIZE, number))
            self.entries.append({"source": str(place / name)})
        self.write()

    def write(self) -> None:
        write_manifest(self.manifest, self.output, self.entries, **self.head)

    @property
    def dumps(self) -> Dumps:
        """What a run is to make of the sources as they are now."""
        return Dumps(self.manifest, self.output, {name: read(self.place / name) for name in NAMES})

    def run(self) -> None:
        done = tool(self.manifest, "-q")
        assert done.returncode == 0, done.stderr

    def be_killed(self) -> None:
        """Turn the records of a run that has ended into those of one that was killed just before."""
        files = receipt_of(self.output)["files"]
        head: Any = {"journal": 1, "files": len(files), "started": "", "manifest_sha256": ""}
        records = [line(head), *map(line, files)]
        for name in ("receipt.json", "XXH128SUMS"):
            (self.output / name).unlink()
        (self.output / JOURNAL).write_bytes(b"".join(records))

    def resume(self, *options: str) -> set[str]:
        """Go on, and return what was kept."""
        return {name for name, kept in resume(self.dumps, *options).items() if kept}

    def state(self) -> dict[str, Any]:
        """Return all that stands in the output folder."""
        return {
            path.name: (path.lstat().st_ino, path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in self.output.iterdir()
        }


@pytest.fixture
def case(tmpfs: Path, ext4: Path, tmp_path: Path) -> Iterator[Case]:
    place, output = tmpfs / tmp_path.name, ext4 / f"out-{tmp_path.name}"
    place.mkdir()
    yield Case(place, output, tmp_path / "m.yaml")
    shutil.rmtree(place)
    shutil.rmtree(output, ignore_errors=True)


@pytest.fixture(params=["receipt", "journal"])
def after(request: pytest.FixtureRequest, case: Case) -> Case:
    """The same after a run that has ended, and after one that was killed with all of it done."""
    case.run()
    if request.param == "journal":
        case.be_killed()
    return case


def test_what_was_not_made_durable_is_so_when_it_is_kept(case: Case, tmp_path: Path) -> None:
    assert tool(case.manifest, "-q", "--no-durable").returncode == 0
    options: dict[str, Any] = {"faults": ["fsync:error=EIO"], "on": [case.output / "a"]}
    done, calls = traced(tmp_path / "log", ["fsync"], case.manifest, "-q", "--resume", **options)
    assert done.returncode == 0, done.stderr
    assert any(call.injected for call in calls)
    assert {file["name"]: file["kept"] for file in receipt_of(case.output)["files"]} == {
        "a": False,
        "b": True,
        "c": True,
    }
    check_complete(case.dumps)


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def crowded(tiny: Path, make, tmp_path) -> Callable[..., Dumps]:
    """Makes a manifest for more than a disk has room for. Nobody can tell before: it's compressed."""

    def make_manifest(**head: Any) -> Dumps:
        sizes = {"small.zst": 64 * KiB, "large.zst": 4 * MiB}
        expected = {name: noise(size, size) for name, size in sizes.items()}
        dumps = [{"source": make("tmpfs", data), "name": name} for name, data in expected.items()]
        head = {"defaults": {"compress": "zstd"}, "concurrency": 1, **head}  # One after another: the large one first.
        manifest = write_manifest(tmp_path / "m.yaml", tiny / "out", dumps, **head)
        return Dumps(manifest, tiny / "out", expected)

    return make_manifest


def test_room_is_made_between_the_runs(crowded, tiny: Path) -> None:
    dumps = crowded()
    for options in ((), ("--resume",), ("--resume",)):
        done = tool(dumps.manifest, "-q", *options)
        assert done.returncode == 1
        assert "ENOSPC" in done.stderr
        assert check_whole(dumps.output, dumps.expected) == {"small.zst"}
        assert leftovers(dumps.output) == []
        assert tool("verify", dumps.output).returncode == 1
    (tiny / "filler").unlink()
    assert resume(dumps) == {"small.zst": True, "large.zst": False}


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("head", "options"),
    [
        ({"retries": {"times": 20, "delay": 0.2, "errors": ["ENOSPC"]}}, ()),
        ({}, ("--retries", "20:ENOSPC")),
        ({"retries": 0}, ("--retries", "20:enospc,edquot")),
    ],
)
def test_room_is_made_while_it_waits(head, options, crowded, tiny: Path) -> None:
    dumps = crowded(**head)
    with started(dumps.manifest, *options) as process:
        for attempt in (1, 2):
            told = wait_for(process, "file_retried")
            assert told["name"] == "large.zst"
            assert told["attempt"] == attempt
            assert told["error"]["errno"].startswith("ENOSPC")
        (tiny / "filler").unlink()
        _, said = process.communicate(timeout=ENOUGH)
    assert process.returncode == 0, said
    check_complete(dumps)


def test_no_room_is_ever_made(crowded) -> None:
    dumps = crowded(retries={"times": 2, "delay": 0.05, "errors": ["ENOSPC"]})
    done = tool(dumps.manifest, "--progress", "json")
    events = [json.loads(each) for each in done.stdout.splitlines()]
    assert [event["attempt"] for event in events if event["event"] == "file_retried"] == [1, 2]
    assert [event["name"] for event in events if event["event"] == "file_failed"] == ["large.zst"]
    assert done.returncode == 1
    assert leftovers(dumps.output) == []


def test_what_can_be_told_before_is(case: Case, tiny: Path) -> None:
    case.output = tiny / "out"
    write_pages(case.place / "c", noise(4 * MiB))
    case.write()
    for options in ((), ("--resume",), ("--retries", "20:ENOSPC")):
        refused = tool(case.manifest, *options)
        assert refused.returncode == 2
        assert mentions(refused.stderr, "output: ", tiny)
        assert not case.output.exists()
    (tiny / "filler").unlink()
    assert case.resume() == set()


@pytest.mark.sample(1)
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "renameat2"])
def test_a_failing_disk_is_not_tried_again(call, case: Case, tmp_path) -> None:
    case.head = {"retries": {"times": 20, "delay": 0.05, "errors": ["ENOSPC", "EDQUOT", "EINTR", "EAGAIN"]}}
    case.write()
    options = ("--progress", "json")
    done, calls = traced(
        tmp_path / "log", [call, "syncfs"], case.manifest, *options, faults=[f"{call}:error=EIO", "syncfs:error=EIO"]
    )
    assert any(each.injected for each in calls)
    assert done.returncode == 1
    assert "file_retried" not in done.stdout
    assert done.stdout.count("file_failed") == len(NAMES)
    assert case.resume() == set()
    for errors in ("EIO", "ENOSPC,EIO"):
        refused = tool(case.manifest, "--retries", f"3:{errors}")
        assert refused.returncode == 2
    case.head = {"retries": {"errors": ["EIO"]}}
    case.write()
    refused = tool(case.manifest, "--resume")
    assert refused.returncode == 2
    assert "ENOSPC, EDQUOT" in refused.stderr


@pytest.mark.sample(1)
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "renameat2"])
def test_what_passes_is_tried_again(call, case: Case, tmp_path) -> None:
    case.head = {"retries": {"times": 20, "delay": 0.05, "errors": ["EDQUOT"]}}
    case.write()
    faults = [f"{call}:error=EDQUOT", "syncfs:error=EDQUOT"]
    assert f"{call}(" in failing_until_retried(tmp_path / "log", [call, "syncfs"], case.manifest, faults=faults)
    check_complete(case.dumps)


# --- other sources ---------------------------------------------------------------------------------------------------


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def rewrite(path: Path) -> None:
    write_pages(path, noise(SIZE, 77))


def replace(path: Path, *, data: bytes | None = None) -> None:
    """Put another file in its place, that has the same size and time."""
    before = path.stat()
    other = path.with_name("other")
    write_pages(other, noise(SIZE, 78) if data is None else data)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def replace_by_the_same(path: Path) -> None:
    replace(path, data=read(path))


CHANGES = (touch, grow, truncate, empty, rewrite, replace, replace_by_the_same)


@pytest.mark.sample(2)
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_has_changed_is_dumped_again(change, after: Case) -> None:
    change(after.place / "b")
    assert after.resume() == {"a", "c"}


@pytest.mark.sample(2)
@pytest.mark.parametrize("change", CHANGES)
def test_what_trusting_the_receipt_means(change, after: Case) -> None:
    before = read(after.output / "b")
    change(after.place / "b")
    done = tool(after.manifest, "--resume", "--trust-receipt", "-q")
    assert done.returncode == 0, done.stderr
    if change in {grow, truncate, empty}:  # Another length is another dump.
        assert read(after.output / "b") == read(after.place / "b")
    else:
        assert read(after.output / "b") == before
    assert tool("verify", after.output).returncode == 0


@pytest.mark.parametrize("options", [(), ("--trust-receipt",)])
def test_a_source_that_is_gone_is_told_and_its_dump_stays(options, after: Case) -> None:
    (after.place / "b").unlink()
    state = after.state()
    refused = tool(after.manifest, "--resume", *options)
    assert refused.returncode == 2
    assert mentions(refused.stderr, after.place / "b", "ENOENT")
    assert after.state() == state


def vanish(path: Path) -> None:
    path.unlink()


@pytest.mark.sample(1)
@pytest.mark.parametrize("change", [*CHANGES, vanish])
def test_a_source_that_changes_while_it_is_dumped(change, case: Case, tmp_path) -> None:
    """Its bytes are in the filter, which has not ended: is it still what was planned?"""
    gate = Gate(tmp_path)
    case.entries[1] |= {"filter": [[str(gate.program)]]}
    case.write()
    before = read(case.place / "b")
    with started(case.manifest, "--allow-filters") as process:
        while wait_for(process, "progress")["name"] != "b":
            pass
        change(case.place / "b")
        gate.open()
        stdout, said = process.communicate(timeout=ENOUGH)
    if change in {truncate, empty}:
        assert process.returncode == 1
        assert "SourceChangedError" in stdout
        assert check_whole(case.output, {"b": b""}) == set()
    else:
        assert process.returncode == 0, said
        assert read(case.output / "b") == before
    if change is vanish:
        assert tool(case.manifest, "--allow-filters", "--resume").returncode == 2
        assert tool("verify", case.output).returncode == 0
        return
    with started(case.manifest, "--allow-filters", "--resume") as process:
        gate.open()
        _, said = process.communicate(timeout=ENOUGH)
    assert process.returncode == 0, said
    check_complete(case.dumps)


# --- another manifest ------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("change", [{"checksum": "sha256"}, {"checksum": "none"}, {"offset": 4096}, {"length": 4096}])
def test_a_dump_that_is_to_be_another_one(change, after: Case) -> None:
    after.entries[1] |= change
    after.write()
    offset = change.get("offset", 0)
    data = read(after.place / "b")[offset : offset + change.get("length", SIZE)]
    done = tool(after.manifest, "--resume", "-q")
    assert done.returncode == 0, done.stderr
    files = {file["name"]: file for file in receipt_of(after.output)["files"]}
    assert {name for name, file in files.items() if file["kept"]} == {"a", "c"}
    assert read(after.output / "b") == data
    assert (files["b"]["digest"] or "none").partition(":")[0] == change.get("checksum", "xxh128")


def test_another_compression_under_the_same_name(after: Case) -> None:
    after.entries[1] |= {"compress": {"zstd": {"level": 1}}, "name": "b"}
    after.write()
    assert tool(after.manifest, "--resume", "-q").returncode == 0
    assert {file["name"] for file in receipt_of(after.output)["files"] if file["kept"]} == {"a", "c"}
    shutil.copy(after.output / "b", after.output / "b.zst")
    assert check_whole(after.output, {"b.zst": read(after.place / "b")}) == {"b.zst"}
    after.entries[1]["compress"] = {"zstd": {"level": 7}}
    after.write()
    assert tool(after.manifest, "--resume", "-q").returncode == 0
    assert {file["name"] for file in receipt_of(after.output)["files"] if file["kept"]} == {"a", "c"}


def test_a_dump_more_and_a_dump_less(after: Case) -> None:
    after.entries[1] |= {"name": "d"}
    after.write()
    assert tool(after.manifest, "--resume", "-q").returncode == 0
    files = {file["name"]: file["kept"] for file in receipt_of(after.output)["files"]}
    assert files == {"a": True, "c": True, "d": False}
    assert read(after.output / "d") == read(after.output / "b") == read(after.place / "b")
    verified = tool("verify", after.output, "--json")
    assert verified.returncode == 0
    assert [file["name"] for file in json.loads(verified.stdout)["files"]] == ["a", "d", "c", "b"]
    # What isn't asked for any more is still known: it can be asked for again.
    after.entries[1] |= {"name": "b"}
    after.write()
    assert tool(after.manifest, "--resume", "-q").returncode == 0
    assert {file["name"]: file["kept"] for file in receipt_of(after.output)["files"]} == dict.fromkeys("abc", True)


def test_a_dump_without_a_digest_is_kept_by_its_inode(case: Case) -> None:
    case.head = {"defaults": {"checksum": "none"}}
    case.write()
    case.run()
    shutil.copy2(case.output / "b", case.output / "copy")
    os.replace(case.output / "copy", case.output / "b")
    assert tool(case.manifest, "--resume", "-q").returncode == 0
    assert {file["name"] for file in receipt_of(case.output)["files"] if file["kept"]} == {"a", "c"}


# --- garbage ---------------------------------------------------------------------------------------------------------

GARBAGE = (b"", b"garbage", b"00000000 {}\n", b"[" * 100_000, noise(5000))


@pytest.mark.sample(1)
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_journal_that_is_garbage(garbage, case: Case) -> None:
    case.run()
    (case.output / JOURNAL).write_bytes(garbage)
    assert tool("verify", case.output).returncode == 0  # The receipt still tells.
    assert case.resume() == set(NAMES)
    case.be_killed()
    (case.output / JOURNAL).write_bytes(garbage)
    there = {name for name in NAMES if (case.output / name).exists()}
    verified = tool("verify", case.output)
    assert verified.returncode == 2
    assert case.resume() == there  # Their sources tell.
    case.be_killed()
    (case.output / JOURNAL).write_bytes(garbage)
    assert case.resume("--overwrite") == set()


@pytest.mark.sample(1)
@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_a_receipt_that_is_garbage(garbage, case: Case) -> None:
    case.run()
    (case.output / "receipt.json").write_bytes(garbage)
    state = case.state()
    commands: list[list[str | Path]] = [
        ["verify", case.output],
        ["verify", case.output / "receipt.json"],
        ["restore", case.output, "--to", case.place],
        [case.manifest, "--resume"],
    ]
    for command in commands:
        refused = tool(*command)
        assert refused.returncode == 2, command
        assert "receipt.json" in refused.stderr, command
    assert case.state() == state
    assert tool(case.manifest, "--overwrite", "-q").returncode == 0
    check_complete(case.dumps)


@pytest.mark.slow
def test_a_journal_cut_anywhere(case: Case) -> None:
    case.run()
    case.be_killed()
    whole = read(case.output / JOURNAL)
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 0x0A]
    for cut in sorted({*(end + by for end in ends for by in (-1, 0)), len(whole) // 3, len(whole) // 2}):
        records = sum(end <= cut for end in ends) - 1
        for name in NAMES[max(0, records) :]:
            (case.output / name).unlink(missing_ok=True)  # A dump has its name after its record is durable.
        if cut < ends[0]:
            (case.output / "a").unlink(missing_ok=True)
        (case.output / JOURNAL).write_bytes(whole[:cut])
        (case.output / ".asyncdump-12345678-1.partial").write_bytes(b"stale")
        assert tool("verify", case.output).returncode == (2 if cut < ends[0] else int(records < len(NAMES)))
        assert case.resume() == set(NAMES[: max(0, records)])
        assert not (case.output / ".asyncdump-12345678-1.partial").exists()
        for name in ("receipt.json", "XXH128SUMS"):
            (case.output / name).unlink()


# --- what somebody has put there -------------------------------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", ["b", "receipt.json", "XXH128SUMS", JOURNAL])
def test_a_link_is_never_followed(name, exists, case: Case, tmp_path) -> None:
    victim = tmp_path / "victim"
    if exists:
        victim.write_bytes(b"precious")

    def plant() -> None:
        (case.output / name).unlink(missing_ok=True)
        (case.output / name).symlink_to(victim)

    def is_unharmed() -> bool:
        return victim.read_bytes() == b"precious" if exists else not os.path.lexists(victim)

    case.output.mkdir(mode=0o700)
    plant()
    first = tool(case.manifest)
    assert first.returncode == 2, first.stderr
    assert is_unharmed()
    assert (case.output / name).is_symlink()
    assert tool(case.manifest, "--overwrite", "-q").returncode == 0
    check_complete(case.dumps)
    plant()
    verified = tool("verify", case.output)
    assert verified.returncode == {"b": 1, "XXH128SUMS": 0}.get(name, 2), verified.stderr
    again = tool(case.manifest, "--resume")
    if name in {"receipt.json", JOURNAL}:
        assert again.returncode == 2
        assert "ELOOP" in again.stderr
        assert tool(case.manifest, "--resume", "--overwrite").returncode == 2
        assert tool(case.manifest, "--overwrite").returncode == 0
    else:
        assert again.returncode == 0, again.stderr
    check_complete(case.dumps)
    assert is_unharmed()


@pytest.mark.sample(1)
@pytest.mark.parametrize("thing", ["fifo", "folder", "socket"])
def test_something_else_under_the_name_of_a_dump(thing, after: Case) -> None:
    path = after.output / "b"
    path.unlink()
    match thing:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "socket":
            os.mknod(path, 0o140600)
    verified = tool("verify", after.output, "--json")
    assert verified.returncode == 1
    verdicts = {file["name"]: file["verdict"] for file in json.loads(verified.stdout)["files"]}
    assert verdicts == {"a": "ok", "b": "unknown" if thing == "socket" else "missing", "c": "ok"}
    if thing == "folder":
        refused = tool(after.manifest, "--resume")
        assert refused.returncode == 2
        assert re.search(r"\.name: b ", refused.stderr)
        path.rmdir()
    assert after.resume() == {"a", "c"}


@pytest.mark.sample(2)
@pytest.mark.parametrize("thing", ["fifo", "folder"])
@pytest.mark.parametrize("name", ["receipt.json", JOURNAL])
def test_something_else_under_the_name_of_a_record(name, thing, case: Case) -> None:
    case.run()
    path = case.output / name
    path.unlink(missing_ok=True)
    if thing == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    commands: list[list[str | Path]] = [["verify", case.output], [case.manifest, "--resume"]]
    for command in commands:
        refused = tool(*command)
        assert refused.returncode == 2
        assert name in refused.stderr
    assert check_whole(case.output, case.dumps.expected) == set(NAMES)


# --- the output folder -----------------------------------------------------------------------------------------------


def mount(point: Path, *options: str) -> None:
    subprocess.run(["mount", *options, point], check=True)


def test_an_output_that_is_read_only(case: Case, tiny: Path) -> None:
    case.output = tiny / "out"
    case.write()
    mount(tiny, "-o", "remount,ro")
    for options in ((), ("--resume",), ("--overwrite",)):
        refused = tool(case.manifest, *options)
        assert refused.returncode == 2
        assert "read-only" in refused.stderr
    mount(tiny, "-o", "remount,rw")
    case.run()
    case.be_killed()
    (case.output / "b").unlink()
    mount(tiny, "-o", "remount,ro")
    assert tool("verify", case.output).returncode == 1  # Reading is all that it takes.
    refused = tool(case.manifest, "--resume")
    assert refused.returncode == 2
    assert "read-only" in refused.stderr
    mount(tiny, "-o", "remount,rw")
    assert case.resume() == {"a", "c"}


@pytest.fixture
def gated(case: Case, tmp_path) -> Gate:
    """Has the second of the dumps wait."""
    gate = Gate(tmp_path)
    case.entries[1] |= {"filter": [[str(gate.program)]]}
    case.write()
    return gate


def test_an_output_that_is_removed(case: Case, gated: Gate) -> None:
    with started(case.manifest, "--allow-filters") as process:
        for _ in ("a", "c"):
            wait_for(process, "file_finished")
        shutil.rmtree(case.output)
        gated.open()
        _, said = process.communicate(timeout=ENOUGH)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "ENOENT" in said
    assert not case.output.exists()
    with started(case.manifest, "--allow-filters", "--resume") as process:
        gated.open()
        _, said = process.communicate(timeout=ENOUGH)
    assert process.returncode == 0, said
    check_complete(case.dumps)


def test_an_output_that_is_renamed(case: Case, gated: Gate) -> None:
    """The folder is held open, so that the run goes on in it, whatever its name is."""
    elsewhere = case.output.with_name("elsewhere")
    with started(case.manifest, "--allow-filters") as process:
        for _ in ("a", "c"):
            wait_for(process, "file_finished")
        case.output.rename(elsewhere)
        gated.open()
        _, said = process.communicate(timeout=ENOUGH)
    assert process.returncode == 0, said
    try:
        check_complete(case.dumps._replace(output=elsewhere))
    finally:
        shutil.rmtree(elsewhere)
    assert not case.output.exists()


def test_too_few_files_may_be_open_to_go_on(case: Case) -> None:
    case.run()
    case.be_killed()
    (case.output / "b").unlink()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (25, 25))

    refused = tool(case.manifest, "--resume", preexec_fn=limit)
    assert refused.returncode == 2
    assert "ulimit -n" in refused.stderr
    assert set(journal_of(case.output) or {}) == set(NAMES)
    assert case.resume() == {"a", "c"}
    case.be_killed()
    (case.output / JOURNAL).unlink()
    shutil.rmtree(case.output)
    assert tool(case.manifest, preexec_fn=limit).returncode == 2
    assert os.listdir(case.output) == []  # Nor does a first run leave the beginning of a journal.


@pytest.mark.sample(1)
@pytest.mark.parametrize("files", [2, 40])
def test_a_power_cut(files, case: Case, tiny: Path) -> None:
    """What was said to be done is there when the filesystem comes back without all that wasn't durable."""
    (tiny / "filler").unlink()
    os.sync()
    case.output = tiny / "out"
    case.entries = [{"source": f"{case.place}/*"}]
    case.head = {"concurrency": 2}
    case.write()
    expected = {f"dump-{n:02}": noise(200 * KiB + n, n) for n in range(files)}
    for name in NAMES:
        (case.place / name).unlink()
    for name, data in expected.items():
        write_pages(case.place / name, data)
    dumps = Dumps(case.manifest, case.output, expected)
    with started(case.manifest) as process:
        said_done = {wait_for(process, "file_finished")["name"]}
        fd = os.open(tiny, os.O_RDONLY)
        fcntl.ioctl(fd, SHUTDOWN, WITHOUT_LOG.to_bytes(4, "little"))
        os.close(fd)
        stdout, said = process.communicate(timeout=ENOUGH)
        assert "Traceback" not in said
    lost = "file_failed" in stdout
    for event in map(json.loads, stdout.splitlines()):
        if event["event"] == "file_finished":
            said_done.add(event["name"])
    assert process.returncode == 1 if lost else process.returncode in {0, 1}, said
    subprocess.run(["umount", tiny], check=True)
    mount(tiny, "-o", "loop", str(tiny.parent / "image"))
    present = check_whole(dumps.output, expected)
    assert said_done <= present
    recorded = journal_of(dumps.output)
    assert recorded is None or present <= set(recorded)
    kept = resume(dumps)
    assert {name for name, was in kept.items() if was} == present


# --- inside of a service ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def ticking() -> AsyncIterator[None]:
    """Assert that others in the event loop go on with their work."""
    times: list[float] = []

    async def tick() -> None:
        while True:
            times.append(anyio.current_time())
            await anyio.sleep(0.005)

    with anyio.fail_after(ENOUGH):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            await anyio.sleep(0.02)
            yield
            await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) < 0.5, f"nothing ran for {max(gaps):.2f} s"


def codes(report: asyncdump.Report) -> set[int | None]:
    """Return what a report says went wrong."""
    return {getattr(file.error, "errno", None) for file in report.failures}


async def test_a_service_whose_disk_is_full(crowded, tiny: Path) -> None:
    dumps = crowded()
    async with ticking():
        report = await asyncdump.dump_all(dumps.manifest)
        assert codes(report) == {errno.ENOSPC}
        with pytest.raises(ExceptionGroup, match=r"1 .*2"):
            report.raise_for_failures()
        (tiny / "filler").unlink()
        report = await asyncdump.dump_all(dumps.manifest, resume=True)
        report.raise_for_failures()
        (await asyncdump.verify_all(dumps.output)).raise_for_failures()
    assert check_whole(dumps.output, dumps.expected) == set(dumps.expected)


async def test_a_service_that_waits_for_room(crowded, tiny: Path) -> None:
    dumps = crowded()

    async def make_room(event: asyncdump.Event) -> None:
        if isinstance(event, asyncdump.FileRetried) and event.attempt == 2:
            await run_sync((tiny / "filler").unlink)

    async with ticking():
        patience = asyncdump.Retries(times=20, delay=0.1, errors=("ENOSPC",))
        report = await asyncdump.dump_all(dumps.manifest, retries=patience, on_event=make_room)
        report.raise_for_failures()
    check_complete(dumps)


async def test_a_service_that_is_ended_while_it_waits_for_room(crowded) -> None:
    dumps = crowded(retries={"times": 1000, "delay": 60, "errors": ["ENOSPC"]})
    async with ticking(), asyncdump.open_run(dumps.manifest) as run:
        async for event in run:
            if isinstance(event, asyncdump.FileRetried):
                began = anyio.current_time()
                run.cancel()
    assert anyio.current_time() - began < 1
    assert run.report.interrupted == "cancelled"
    # Why it waited is told, not that it was ended.
    [large] = [file for file in run.report.files if file.name == "large.zst"]
    assert isinstance(large.error, asyncdump.DumpError)
    assert large.error.errno == errno.ENOSPC


def remove_output(case: Case) -> None:
    shutil.rmtree(case.output)


def truncate_source(case: Case) -> None:
    os.truncate(case.place / "b", 100)


def shut_down(case: Case) -> None:
    fd = os.open(case.output, os.O_RDONLY)
    fcntl.ioctl(fd, SHUTDOWN, WITHOUT_LOG.to_bytes(4, "little"))
    os.close(fd)


@pytest.mark.parametrize(
    ("happens", "code"), [(remove_output, errno.ENOENT), (truncate_source, None), (shut_down, errno.EIO)]
)
async def test_a_service_to_which_things_happen(happens, code, case: Case, gated: Gate, tiny: Path) -> None:
    case.output = tiny / "out"
    case.write()
    done: list[str] = []

    async def watch(event: asyncdump.Event) -> None:
        if isinstance(event, asyncdump.FileFinished):
            done.append(event.name)
            if len(done) == 2:
                await run_sync(happens, case)
                await run_sync(gated.open)

    async with ticking():
        report = await asyncdump.dump_all(case.manifest, allow_filters=True, on_event=watch)
    assert set(done) == {"a", "c"}
    [failed] = report.failures
    assert failed.name == "b"
    assert codes(report) == {code}
    with pytest.raises(ExceptionGroup):
        report.raise_for_failures()


async def test_a_service_that_is_refused(case: Case, gated: Gate, tiny: Path) -> None:
    refusals: list[asyncdump.AsyncdumpError] = []

    async def watch(event: asyncdump.Event) -> None:
        if isinstance(event, asyncdump.FileFinished) and not refusals:
            for call in (
                lambda: asyncdump.dump_all(case.manifest, allow_filters=True, resume=True),
                lambda: asyncdump.dump_all(case.manifest, allow_filters=True, overwrite=True),
                lambda: asyncdump.verify_all(case.output),
                lambda: asyncdump.restore_all(case.output, tiny / "back"),
            ):
                with pytest.raises(asyncdump.BusyError) as refused:
                    await call()
                refusals.append(refused.value)
            await run_sync(gated.open)

    async with ticking():
        report = await asyncdump.dump_all(case.manifest, allow_filters=True, on_event=watch)
        report.raise_for_failures()
    assert [refusal.errno for refusal in refusals] == [errno.EAGAIN] * 4
    check_complete(case.dumps)
