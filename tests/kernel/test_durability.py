"""Under its final name a dump is whole and durable: watched and sabotaged with strace, on a full disk, under kill -9."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import seccomp
from files import (
    METHODS,
    Dumper,
    KiB,
    MiB,
    content,
    digest_of,
    leftovers,
    look_at,
    new_transfer,
    noise,
    read,
    resident,
    unavailable,
)

import asyncdump
from asyncdump.kernel.lane import Lane
from asyncdump.run.opening import running
from asyncdump.run.run import Run
from asyncdump.sinks.folder import Folder

WRITES = ("pwrite64", "pwritev", "pwritev2", "sendfile", "splice", "copy_file_range", "ftruncate")
SYNCS = ("fdatasync", "fsync", "syncfs")
RENAMES = ("rename", "renameat", "renameat2")
CALL = re.compile(r"^(?P<at>[\d.]+) (?P<name>\w+)\((?P<args>.*)\)\s+= (?P<answer>-?\w+).*?(<(?P<took>[\d.]+)>)?$")


class Call(NamedTuple):
    """One system call of the traced process; times are in seconds."""

    name: str
    args: str
    answer: str
    start: float
    end: float

    @property
    def worked(self) -> bool:
        return not self.answer.startswith("-")

    def is_on(self, path: str) -> bool:
        return f"<{path}>" in self.args


def traced(tmp_path: Path, dumps: list[dict[str, Any]], inject: tuple[str, ...] = (), **options: Any) -> Traced:
    """Run `child.py` under strace; ``inject`` are faults as its manual writes them."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    child = [sys.executable, str(Path(__file__).with_name("child.py")), json.dumps([dumps, options])]
    logs = tmp_path / "strace"
    logs.mkdir()
    touched = {fault.partition(":")[0] for fault in inject}
    names = ",".join({*WRITES, *SYNCS, *RENAMES, "write", *touched})
    flags = ["-ff", "-ttt", "-T", "-y", "-s", "300", f"--trace={names}", *(f"--inject={fault}" for fault in inject)]
    # A log for each thread: there a call stands in one line, and its times put it in order with the others.
    command = ["strace", *flags, "-o", str(logs / "log"), *child]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    calls = [call for log in logs.iterdir() for line in log.read_text().splitlines() if (call := parse(line))]
    return Traced(sorted(calls, key=lambda call: call.start), done)


def parse(line: str) -> Call | None:
    if (match := CALL.match(line)) is None:
        return None
    start = float(match["at"])
    return Call(match["name"], match["args"], match["answer"], start, start + float(match["took"] or 0))


class Traced:
    """What a traced run did and said."""

    def __init__(self, calls: list[Call], done: subprocess.CompletedProcess[str]) -> None:
        self.calls = calls
        self.done = done

    @property
    def outcome(self) -> dict[str, Any]:
        assert self.done.returncode == 0, self.done.stderr
        outcome: dict[str, Any] = json.loads(self.done.stdout.splitlines()[-1])
        return outcome

    def find(self, *names: str, where: Callable[[Call], bool]) -> list[Call]:
        return [call for call in self.calls if call.name in names and call.worked and where(call)]


@pytest.fixture
def sources(make) -> dict[str, str]:
    """Files of odd and even sizes, by the names of their dumps."""
    kinds = ("tmpfs", "ext4", "hugetlbfs", "tmpfs", "hugetlbfs", "ext4")
    sizes = (17 * MiB + 5, 3 * MiB, 12 * MiB, 100, 2 * MiB, 0)
    return {f"dump-{n}": make(kind, content(size)) for n, (kind, size) in enumerate(zip(kinds, sizes, strict=True))}


def entries(sources: dict[str, str]) -> list[dict[str, Any]]:
    return [{"source": source, "name": name} for name, source in sources.items()]


def check_nothing_is_half(folder: str | Path, sources: dict[str, str], *, killed: bool = False) -> set[str]:
    """Assert that whatever stands under a final name is whole; return the names."""
    present = set(os.listdir(folder)) & set(sources)
    for name in present:
        assert read(os.path.join(folder, name)) == read(sources[name]), name
    if not killed:
        assert leftovers(folder) == []
    return present


# --- the order of things ---------------------------------------------------------------------------------------------


def check_order(trace: Traced, folder: str, name: str) -> None:
    [rename] = trace.find(*RENAMES, where=lambda call: f'"{name}"' in call.args)
    temporary = os.path.join(folder, rename.args.split('"')[1])
    writes = trace.find(*WRITES, where=lambda call: call.is_on(temporary))
    written = max((call.end for call in writes), default=0.0)
    syncs = [
        *trace.find("fdatasync", "fsync", where=lambda call: call.is_on(temporary)),
        *trace.find("syncfs", where=lambda call: call.is_on(folder)),
    ]
    assert [call for call in syncs if written <= call.start and call.end <= rename.start], f"{name} was not synced"
    [said] = trace.find("write", where=lambda call: f'"finished {name}\\n"' in call.args)
    named = trace.find("fsync", where=lambda call: call.is_on(folder))
    assert [call for call in named if rename.end <= call.start and call.end <= said.start], f"{name}: folder not synced"


@pytest.mark.sample(1)
@pytest.mark.parametrize("checksum", ["none", "xxh128"])
@pytest.mark.parametrize("most", [1, 2, 6])
def test_synced_then_named_then_said(most, checksum, sources, folder_on, tmp_path) -> None:
    folder = folder_on("ext4").path
    some = dict(list(sources.items())[:most])
    trace = traced(tmp_path, entries(some), output=folder, checksum=checksum)
    assert trace.outcome["ok"], trace.outcome
    assert check_nothing_is_half(folder, some) == set(some)
    for name in some:
        check_order(trace, folder, name)


@pytest.mark.sample(1)
@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_synced(method, make, folder_on, tmp_path) -> None:
    sources = {"dump": make("ext4", noise(3 * MiB + 5))}
    folder = folder_on("ext4").path
    trace = traced(tmp_path, entries(sources), output=folder, method=method)
    assert trace.outcome["ok"], trace.outcome
    check_order(trace, folder, "dump")


def test_many_small_files_share_their_syncs(make, folder_on, tmp_path) -> None:
    os.sync()  # With much dirty memory about, syncing file by file is the better way, and the one taken.
    sources = {f"dump-{n}": make("tmpfs", noise(8 * KiB, n)) for n in range(200)}
    folder = folder_on("ext4").path
    trace = traced(tmp_path, entries(sources), output=folder)
    assert check_nothing_is_half(folder, sources) == set(sources)
    for name in sources:
        check_order(trace, folder, name)
    assert len(trace.find(*SYNCS, where=bool)) < len(sources)


def test_not_durable_syncs_no_dump(sources, folder_on, tmp_path) -> None:
    folder = folder_on("ext4").path
    trace = traced(tmp_path, entries(sources), output=folder, durable=False, checksum="none")
    assert trace.outcome["ok"]
    first = min(call.start for call in trace.find("write", where=lambda call: "finished" in call.args))
    assert [call for call in trace.find(*SYNCS, where=bool) if call.start < first] == []


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_nobody_else_may_look(umask, make, ext4, tmp_path) -> None:
    output = tmp_path / "a" / "b"
    before = os.umask(umask)
    try:
        report = await asyncdump.dump_all([asyncdump.Dump(source=make("tmpfs", noise(5)))], output=output)
    finally:
        os.umask(before)
    report.raise_for_failures()
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (output, output.parent)] == [0o700, 0o700]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in output.iterdir()}
    assert set(modes) >= {"receipt.json", "XXH128SUMS"}
    assert set(modes.values()) == {0o600}


def test_nobody_else_may_look_while_it_is_written(make, lane: Lane, folder_on) -> None:
    before = os.umask(0)
    try:
        folder = folder_on("ext4")
        transfer = new_transfer(look_at(make("tmpfs", noise(3 * MiB))))
        transfer.begin(folder, lane)
    finally:
        os.umask(before)
    [temporary] = leftovers(folder.path)
    assert stat.S_IMODE(Path(folder.path, temporary).stat().st_mode) == 0o600
    transfer.abort()


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.sample(9)
@pytest.mark.parametrize("kind", ["hugetlbfs", "tmpfs", "tiny"])
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_a_full_disk_is_told_and_left_clean(method, kind, tiny: Path, make, dump: Dumper, folder_on) -> None:
    if kind == "tiny":
        (tiny / "filler").rename(tiny / "source")
        source = str(tiny / "source")
    else:
        source = make(kind, noise(8 * MiB))
    folder: Folder = folder_on(tiny)
    free = os.statvfs(tiny).f_bfree
    with pytest.raises(asyncdump.DumpError) as failed:
        dump(folder, source, method=method, durable=True)
    if not isinstance(failed.value, asyncdump.MethodRefusedError):
        assert failed.value.errno == errno.ENOSPC
        assert failed.value.hint
        assert failed.value.path.startswith(folder.path)
    else:
        assert method == "reflink" or (kind == "hugetlbfs" and method in {"sendfile", "splice"})
    assert os.listdir(folder.path) == []
    os.sync()
    assert os.statvfs(tiny).f_bfree >= free - 16


@pytest.mark.parametrize("checksum", ["none", "xxh128"])
async def test_a_full_disk_is_one_file_s_failure(checksum, tiny: Path, make) -> None:
    (tiny / "filler").unlink()
    dumps = [
        asyncdump.Dump(source=make("tmpfs", noise(8 * MiB)), name="large"),
        asyncdump.Dump(source=make("tmpfs", noise(5 * KiB)), name="small"),
    ]
    output = tiny / "dumps"
    plan = await asyncdump.plan_all(dumps, output=output, checksum=checksum, concurrency=1)
    status = os.statvfs(tiny)
    (tiny / "filler").write_bytes(noise(status.f_bavail * status.f_frsize - 2 * MiB))
    place = Folder(plan.output)
    run = Run(plan, place, store=place)
    async with running(run):
        pass
    large, small = run.report.files
    assert not run.report.ok
    assert isinstance(large.error, asyncdump.DumpError)
    assert large.error.errno == errno.ENOSPC
    assert small.ok
    assert read(small.path) == noise(5 * KiB)
    receipt = json.loads(read(output / "receipt.json"))
    assert [file["phase"] for file in receipt["files"]] == [large.phase, "done"]
    assert leftovers(output) == []
    assert not (output / "large").exists()


async def test_a_disk_known_to_be_full_is_refused_beforehand(tiny: Path, make) -> None:
    output = tiny / "dumps"
    with pytest.raises(asyncdump.ManifestError) as refused:
        await asyncdump.dump_all([asyncdump.Dump(source=make("tmpfs", noise(8 * MiB)))], output=output)
    assert [problem.key for problem in refused.value.problems] == ["output"]
    assert not output.exists()


# --- faults ----------------------------------------------------------------------------------------------------------

EVERY_SYNC = ("fdatasync:error=EIO", "syncfs:error=EIO")


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("inject", "lost"),
    [
        # What is lost: all dumps, some of them, none, only the receipt, or only the trust in their names.
        (EVERY_SYNC, "all"),
        (("fsync:error=EIO",), "names"),
        (("renameat2:error=EIO",), "all"),
        (("fdatasync:error=EIO",), "unless grouped"),
        (("syncfs:error=EIO",), "none"),
        (("renameat:error=EIO",), "receipt"),
        (("renameat2:error=EINVAL",), "none"),
        (("pwrite64:error=EIO:when=3", "pwritev2:error=EIO:when=3"), "some"),
        (("pwrite64:error=ENOSPC:when=2", "pwritev2:error=ENOSPC:when=2"), "some"),
        (("pwrite64:error=EINTR:when=2", "pwritev2:error=EINTR:when=1"), "none"),
        (("ftruncate:error=EIO:when=1",), "some"),
        (("sync_file_range:error=ENOSYS",), "none"),
        # Meant for the flag RWF_DONTCACHE, it may hit the receipt too, which is written without: an error rightly told.
        (("pwritev2:error=EOPNOTSUPP:when=1",), "at most the receipt"),
    ],
)
@pytest.mark.parametrize("most", [1, 6])
@pytest.mark.parametrize("checksum", ["none", "xxh128"])
def test_a_fault_leaves_whole_dumps_or_none(inject, lost, most, checksum, sources, folder_on, tmp_path) -> None:
    folder = folder_on("ext4").path
    some = dict(list(sources.items())[:most])
    outcome = traced(tmp_path, entries(some), inject, output=folder, checksum=checksum).outcome
    present = check_nothing_is_half(folder, some)
    if lost == "names":
        assert present == set(some)
        assert set(outcome["types"].values()) == {"NotDurableError"}
        assert not outcome["ok"]
        return
    assert present == {name for name, error in outcome["errors"].items() if error is None}
    if lost == "some":
        assert present < set(some)
    elif lost != "unless grouped":
        assert present == (set() if lost == "all" else set(some))
    if lost == "at most the receipt":
        assert outcome["ok"] == (outcome["receipt_error"] is None), outcome
    else:
        assert outcome["ok"] == (lost == "none"), outcome


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("kind", "destination", "checksum", "inject"),
    [
        ("hugetlbfs", "ext4", "none", ("pwrite64:error=EINVAL",)),
        ("tmpfs", "ext4", "none", ("pwrite64:error=EOPNOTSUPP",)),
        ("tmpfs", "ext4", "xxh128", ("pwrite64:error=EINVAL",)),
        ("xfs", "xfs", "none", ("copy_file_range:error=EOPNOTSUPP",)),
        ("xfs", "xfs", "xxh128", ("copy_file_range:error=EOPNOTSUPP", "pwrite64:error=EINVAL")),
        ("btrfs", "btrfs", "xxh128", ("copy_file_range:error=EINVAL",)),
    ],
)
@pytest.mark.parametrize("size", [100 * KiB, 2 * MiB, 20 * MiB])
def test_auto_goes_on_with_the_next_when_the_first_call_is_refused(
    size, kind, destination, checksum, inject, make, folder_on, tmp_path
) -> None:
    sources = {"dump": make(kind, content(size))}
    folder = folder_on(destination).path
    outcome = traced(tmp_path, entries(sources), inject, output=folder, checksum=checksum).outcome
    assert outcome["ok"], outcome
    assert Path(folder, "dump").read_bytes()[:size] == content(size)
    if checksum != "none":
        digest = digest_of(read(os.path.join(folder, "dump")), checksum)
        assert read(os.path.join(folder, "XXH128SUMS")).decode() == f"{digest}  dump\n"


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "inject",
    [
        "pwrite64:signal=KILL:when=3",
        "fdatasync:signal=KILL:when=1",
        "fsync:signal=KILL:when=1",
        "syncfs:signal=KILL:when=1",
        "renameat2:signal=KILL:when=1",
        "renameat2:signal=KILL:when=3",
        "renameat:signal=KILL:when=1",
    ],
)
@pytest.mark.parametrize("checksum", ["none", "xxh128"])
def test_kill_leaves_whole_dumps_or_none(inject, checksum, sources, folder_on, tmp_path) -> None:
    folder = folder_on("ext4").path
    done = traced(tmp_path, entries(sources), (inject,), output=folder, checksum=checksum).done
    # strace counts the calls of each thread by itself, and dirty memory of others decides between syncfs and fdatasync.
    perhaps = {"fdatasync:signal=KILL:when=1", "syncfs:signal=KILL:when=1", "renameat2:signal=KILL:when=3"}
    assert done.returncode in {-signal.SIGKILL, 128 + signal.SIGKILL} or inject in perhaps, done.stderr
    check_nothing_is_half(folder, sources, killed=True)


def test_a_failed_sync_takes_the_dump_away(make, lane: Lane, folder_on) -> None:
    folder = folder_on("ext4")
    transfer = new_transfer(look_at(make("tmpfs", noise(MiB))))
    transfer.begin(folder, lane)
    transfer.work(lane)
    transfer.seal(lane)
    assert transfer.sink is not None
    publish = partial(folder.publish, [transfer.sink], durable=True, overwrite=False)
    [error] = seccomp.without(["fdatasync=EIO"], publish)
    assert error is not None
    assert error.errno == errno.EIO
    assert os.listdir(folder.path) == []


# --- the page cache --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "direct", "read", "mmap"])
@pytest.mark.parametrize("checksum", ["none", "xxh128"])
async def test_no_page_cache_is_left_behind(checksum, method, make, folder_on) -> None:
    sources = [make("hugetlbfs", noise(16 * MiB, n)) for n in range(4)]
    dumps = [asyncdump.Dump(source=source, name=f"dump-{n}") for n, source in enumerate(sources)]
    report = await asyncdump.dump_all(dumps, output=folder_on("ext4").path, checksum=checksum, method=method)
    report.raise_for_failures()
    assert report.bytes == 64 * MiB
    assert sum(resident(file.path) for file in report.files) <= 256 * KiB
