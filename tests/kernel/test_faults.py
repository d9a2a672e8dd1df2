"""Calls that fail, one after another, in the command itself: what is there is whole, and a second run completes it.

By default the errors take turns at the call sites; ASYNCDUMP_FAULTS=all has each error at each of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from files import KiB, MiB, content, leftovers, noise, unavailable, write_pages
from tool import (
    Call,
    Done,
    Dumps,
    asyncdump,
    check_complete,
    check_whole,
    journal_of,
    receipt_of,
    resume,
    traced,
    write_manifest,
)

from asyncdump.vocabulary.names import JOURNAL

WRITES = ("pwrite64", "pwritev2", "ftruncate", "sendfile", "splice", "copy_file_range")
SYNCS = ("fdatasync", "fsync", "syncfs")
RENAMES = ("rename", "renameat", "renameat2")
CALLS = (*WRITES, *SYNCS, *RENAMES)
ERRORS = ("ENOSPC", "EIO", "EINTR", "EDQUOT")
MOST = 4
"""Sites of one call in one thread; those beyond write one more piece of the same."""

EVERYTHING = os.environ.get("ASYNCDUMP_FAULTS") == "all"

WAYS: dict[str, dict[str, Any]] = {
    "raw": {},
    "unhashed": {"checksum": "none"},
    "zstd": {"compress": "zstd"},
    "sendfile": {"method": "sendfile"},
    "splice": {"method": "splice"},
    "mmap": {"method": "mmap"},
    "reflink": {"method": "reflink"},
    "filter": {"filter": [["cat"]]},
}
MOVED_BY = {
    "raw": {"pwrite64", "pwritev2"},
    "unhashed": {"pwrite64", "pwritev2"},
    "zstd": {"pwrite64"},
    "sendfile": {"sendfile"},
    "splice": {"splice"},
    "mmap": {"pwritev2"},
    "reflink": {"copy_file_range"},
    "filter": {"splice"},
}
"""The calls that a way must have been seen to use."""

ALL_CALLS = {"raw", "zstd"}
"""The ways for which syncs and renames are made to fail too: they come after what differs."""

SIZES = (5 * MiB + 5, 3 * MiB, 100 * KiB, 0)

Maker = Callable[[str], Dumps]


@pytest.fixture
def dumps_by(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maker]:
    """Makes the same dumps of a few files by any way; each time into another folder."""
    made: list[Path] = []
    numbers = count()

    def make(way: str) -> Dumps:
        clone = way == "reflink"
        place: Path = request.getfixturevalue("xfs" if clone else "tmpfs") / f"faults-{tmp_path.name}"
        if not place.exists():
            place.mkdir()
            made.append(place)
            for number, size in enumerate(SIZES):
                write_pages(place / f"dump-{number}", content(size))
        destination = place / "out" if clone else request.getfixturevalue("ext4") / f"faults-{tmp_path.name}"
        destination.mkdir(exist_ok=True)
        made.append(destination)
        number = next(numbers)
        output = destination / str(number)
        manifest = write_manifest(
            tmp_path / f"{number}.yaml", output, [{"source": str(place / "dump-*")}], defaults=WAYS[way]
        )
        suffix = ".zst" if way == "zstd" else ""
        return Dumps(manifest, output, {f"dump-{n}{suffix}": content(size) for n, size in enumerate(SIZES)})

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def options_for(way: str) -> list[str]:
    return ["-q", *(["--allow-filters"] if way == "filter" else [])]


def sites(calls: list[Call]) -> dict[str, int]:
    """Return how often the busiest thread made each call: strace counts the calls of each thread by itself."""
    most: Counter[str] = Counter()
    for call in calls:
        most[call.name] = max(most[call.name], call.number)
    return dict(most)


def target_of(call: Call, output: Path) -> str:
    """Tell what a call was about."""
    if JOURNAL in call.args:
        return "journal"
    if call.name in RENAMES:
        return "name of the receipt" if "receipt.json" in call.args or "SUMS" in call.args else "name"
    if f"<{output}>" in call.args:
        return "folder"
    return "dump" if ".partial>" in call.args else "other"


def mends(call: Call) -> bool:
    """Tell whether a run does without a call: it writes its journal anew, and sets the size of a .zst in the end."""
    return (call.name == "fdatasync" and JOURNAL in call.args) or (call.name == "ftruncate" and "EIO" not in call.args)


def proof_of(way: str) -> tuple[str, ...]:
    """Return how verify can prove what a way has made."""
    return ("--against-source",) if WAYS[way].get("checksum") == "none" else ()


def check_outcome(done: Done, calls: list[Call], error: str, dumps: Dumps, *proof: str) -> None:
    """Assert that the tool told the truth about a run in which calls failed."""
    output = dumps.output
    injected = [call for call in calls if call.injected]
    present = check_whole(output, dumps.expected)
    if done.returncode == 0:
        # Nothing failed, or what did was tried again: by Python after EINTR, file by file after a sync of all, in
        # another file where it was the journal's.
        assert error == "EINTR" or all(call.name == "syncfs" or mends(call) for call in injected), injected
        check_complete(dumps, *proof)
        return
    assert injected, done.stderr
    assert error in done.stderr
    if done.returncode == 2:
        # Before the run: the folder could not be made durable, or its journal not be begun.
        assert JOURNAL in done.stderr or "mkdir" in done.stderr
        assert not output.exists() or os.listdir(output) == []
        return
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert leftovers(output) == []
    recorded = journal_of(output)
    if recorded is not None:
        # The receipt could not be written: the journal stays, and knows all that is there.
        assert "receipt" in done.stderr
        assert present <= set(recorded)
        return
    receipt = receipt_of(output)
    assert not receipt["ok"]
    # What failed may stand all the same: its name was given, and could not be made durable.
    assert {file["name"] for file in receipt["files"] if file["error"] is None or file["inode"]} == present
    errors = [file["error"] for file in receipt["files"] if file["error"]]
    assert errors
    assert all(each["errno"].startswith(error) for each in errors), errors


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_each_call_fails_in_turn(way, dumps_by: Maker, tmp_path) -> None:
    dumps = dumps_by(way)
    done, calls = traced(tmp_path / "log", CALLS, dumps.manifest, *options_for(way))
    assert done.returncode == 0, done.stderr
    check_complete(dumps, *proof_of(way))
    found = {name: most for name, most in sites(calls).items() if name in WRITES or way in ALL_CALLS or EVERYTHING}
    assert set(found) >= MOVED_BY[way], found
    turns = count(list(WAYS).index(way))
    faults = [
        (f"{name}:error={error}:when={number}", error, dumps_by(way))
        for name, most in found.items()
        for number in range(1, min(most, MOST) + 1)
        for error in (ERRORS if EVERYTHING else (ERRORS[next(turns) % len(ERRORS)],))
    ]
    hit: Counter[str] = Counter()
    codes: Counter[int] = Counter()

    def suffer(fault: str, error: str, dumps: Dumps) -> None:
        log = dumps.manifest.with_suffix(".log")
        done, calls = traced(log, CALLS, dumps.manifest, *options_for(way), faults=[fault])
        codes[done.returncode] += 1
        try:
            check_outcome(done, calls, error, dumps, *proof_of(way))
            if done.returncode:
                done = asyncdump(dumps.manifest, "--resume", *options_for(way))
                assert done.returncode == 0
                check_complete(dumps, *proof_of(way))
        except AssertionError as wrong:
            wrong.add_note(f"with {fault}: {done.stderr}")
            raise
        hit.update(target_of(call, dumps.output) for call in calls if call.injected)
        shutil.rmtree(dumps.output)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(suffer, *each) for each in faults]:
            future.result()
    print(way, len(faults), "faults", dict(hit), dict(codes))
    assert {0, 1} <= set(codes), codes
    assert {"dump"} | ({"folder", "name", "name of the receipt"} if way in ALL_CALLS else set()) <= set(hit), hit


# --- what we write for ourselves -------------------------------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_the_journal_cannot_be_written(call, error, dumps_by: Maker, tmp_path) -> None:
    """At its head, and at each later record that the same thread adds."""
    codes = []
    for number in (1, 2):
        dumps = dumps_by("raw")
        done, calls = traced(
            tmp_path / "log",
            [call],
            dumps.manifest,
            *("-q", "--concurrency", "1"),
            faults=[f"{call}:error={error}:when={number}"],
            on=[dumps.output / JOURNAL],
        )
        assert {target_of(each, dumps.output) for each in calls} <= {"journal"}
        check_outcome(done, calls, error, dumps)
        codes.append(done.returncode)
        resume(dumps)
    match call, error:
        case _, "EINTR":
            assert codes == [0, 0]
        case "write", _:
            assert codes[0] == 2
        case _:  # With a group of three and more a sync of all goes before that of the journal alone.
            assert set(codes) <= {0, 1}


@pytest.mark.sample(2)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", ["pwritev2", "fdatasync", "renameat", "fsync"])
def test_the_receipt_cannot_be_written(call, error, dumps_by: Maker, tmp_path) -> None:
    """All dumps are kept, so that nothing is written but the receipt and the lists."""
    dumps = dumps_by("raw")
    assert asyncdump(dumps.manifest, "-q").returncode == 0
    # The first sync of all is that of the journal.
    number = 2 if call == "fdatasync" else 1
    done, calls = traced(
        tmp_path / "log",
        [call],
        dumps.manifest,
        *("-q", "--resume"),
        # An EINTR that never ends would be tried again for ever.
        faults=[f"{call}:error={error}:when={number}{'' if error == 'EINTR' else '+'}"],
    )
    injected = [each for each in calls if each.injected]
    assert injected or call == "fdatasync"
    assert check_whole(dumps.output, dumps.expected) == set(dumps.expected)
    assert leftovers(dumps.output) == []
    if done.returncode:
        assert done.returncode == 1
        assert error in done.stderr
        assert "receipt" in done.stderr
        recorded = journal_of(dumps.output)
        assert recorded is not None
        assert set(recorded) == set(dumps.expected)
        assert asyncdump("verify", dumps.output).returncode == 0
    else:
        assert not injected or error == "EINTR"
    assert all(resume(dumps).values())


@pytest.mark.sample(1)
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("options", [(), ("--progress", "json")])
def test_nobody_can_be_told(options, error, dumps_by: Maker, tmp_path) -> None:
    dumps = dumps_by("raw")
    with (tmp_path / "stdout").open("w") as stdout:
        done, calls = traced(
            tmp_path / "log",
            ["write"],
            dumps.manifest,
            *options,
            faults=[f"write:error={error}"],
            on=[tmp_path / "stdout"],
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
    assert calls
    assert all(call.injected for call in calls)
    assert done.returncode == 1
    assert (tmp_path / "stdout").read_bytes() == b""
    check_complete(dumps)


# --- the order of things ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [1, 2, 12])
def test_a_record_is_durable_before_its_dump_has_its_name(files, make, ext4, tmp_path) -> None:
    sources = [make("tmpfs", noise(64 * KiB, n)) for n in range(files)]
    output = ext4 / tmp_path.name
    dumps = [{"source": source, "name": f"dump-{n}"} for n, source in enumerate(sources)]
    manifest = write_manifest(tmp_path / "m.yaml", output, dumps)
    done, calls = traced(tmp_path / "log", ["write", *SYNCS, *RENAMES], manifest, "-q")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(output)
    unsynced = named = 0
    for call in calls:
        if call.name == "write" and JOURNAL in call.args:
            unsynced += 1
        elif (call.name == "fdatasync" and JOURNAL in call.args) or (
            call.name == "syncfs" and str(output) in call.args
        ):
            unsynced = 0
        elif call.name in RENAMES and '"dump-' in call.args:
            named += 1
            assert unsynced == 0, call
    assert named == files


def test_a_journal_is_durable_before_it_replaces_another(dumps_by: Maker, tmp_path) -> None:
    dumps = dumps_by("raw")
    assert asyncdump(dumps.manifest, "-q").returncode == 0
    write_journal = ["write", "pwritev2", "renameat", "fdatasync"]
    done, _ = traced(tmp_path / "log", write_journal, dumps.manifest, "-q", "--resume", faults=["renameat:error=EIO"])
    assert done.returncode == 1
    before = journal_of(dumps.output)
    assert before is not None
    done, calls = traced(tmp_path / "log", write_journal, dumps.manifest, "-q", "--resume")
    assert done.returncode == 0, done.stderr
    [rename] = [call for call in calls if call.name == "renameat" and f'"{JOURNAL}"' in call.args]
    temporary = rename.args.split('"')[1]
    earlier = [call.name for call in calls[: calls.index(rename)] if f"/{temporary}>" in call.args]
    assert earlier == ["pwritev2", "fdatasync"]


# --- short writes ----------------------------------------------------------------------------------------------------

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_uint turns;

static void note(const char *name)
{
    int log = syscall(SYS_openat, AT_FDCWD, getenv("SHORT_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    syscall(SYS_write, log, name, strlen(name));
    syscall(SYS_write, log, "\n", 1);
    syscall(SYS_close, log);
}

/* About half of it; what goes around the page cache ends at a block of the disk, every other time not at a page. */
static size_t shorter(int fd, size_t count, const char *name)
{
    struct stat status;
    size_t half = count / 2;
    if (count < 2 || fstat(fd, &status) || !(S_ISREG(status.st_mode) || S_ISFIFO(status.st_mode)))
        return count;
    if (S_ISREG(status.st_mode) && fcntl(fd, F_GETFL) & O_DIRECT) {
        if (count < 3 * 4096)
            return count;
        half = half / 4096 * 4096 + (atomic_fetch_add(&turns, 1) % 2 ? 512 : 0);
    }
    note(name);
    return half;
}

#define REAL(type, name, ...)     static type (*real)(__VA_ARGS__);     if (!real) real = dlsym(RTLD_NEXT, name)

ssize_t write(int fd, const void *data, size_t count)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    return real(fd, data, shorter(fd, count, "write"));
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset)
{
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    return real(fd, data, shorter(fd, count, "pwrite64"), offset);
}

ssize_t pwritev64v2(int fd, const struct iovec *vector, int parts, off64_t offset, int flags)
{
    REAL(ssize_t, "pwritev64v2", int, const struct iovec *, int, off64_t, int);
    struct iovec first = *vector;
    first.iov_len = shorter(fd, first.iov_len, "pwritev2");
    return real(fd, &first, 1, offset, flags);
}

ssize_t vmsplice(int fd, const struct iovec *vector, size_t parts, unsigned flags)
{
    REAL(ssize_t, "vmsplice", int, const struct iovec *, size_t, unsigned);
    struct iovec first = *vector;
    first.iov_len = shorter(fd, first.iov_len, "vmsplice");
    return real(fd, &first, 1, flags);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count)
{
    REAL(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    return real(out, in, offset, shorter(out, count, "sendfile"));
}

ssize_t splice(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags)
{
    REAL(ssize_t, "splice", int, off64_t *, int, off64_t *, size_t, unsigned);
    return real(in, from, out, to, shorter(out, count, "splice"), flags);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags)
{
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    return real(in, from, out, to, shorter(out, count, "copy_file_range"), flags);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that goes before libc and has the kernel write less than was asked for, as it may at any time."""
    compiler = shutil.which("cc")
    if compiler is None:
        unavailable("there is no C compiler")
    library = tmp_path_factory.mktemp("shim") / "short.so"
    done = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, "-x", "c", "-", "-ldl"],
        input=SHIM,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return library


def cut_short(shim: Path, log: Path, *arguments: str | Path) -> set[str]:
    """Run the command with short writes; return the calls that were cut."""
    environment = {**os.environ, "LD_PRELOAD": str(shim), "SHORT_LOG": str(log)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # What it compiled would fall short too, and stay.
    done = asyncdump(*arguments, env=environment)
    assert done.returncode == 0, done.stderr
    return set(log.read_text().split())


@pytest.mark.sample(2)
@pytest.mark.parametrize("way", WAYS)
def test_writes_that_fall_short(way, shim: Path, dumps_by: Maker, tmp_path) -> None:
    dumps = dumps_by(way)
    cut = cut_short(shim, tmp_path / "log", dumps.manifest, *options_for(way))
    assert cut >= MOVED_BY[way] | {"write"}, cut  # The journal is written by write(2).
    check_complete(dumps, *proof_of(way))


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", [{}, {"compress": "zstd"}, {"filter": [["cat"]]}])
def test_huge_pages_and_back_by_writes_that_fall_short(options, shim: Path, make, ext4, hugetlbfs, tmp_path) -> None:
    data = content(10 * MiB)
    output, back = ext4 / tmp_path.name, hugetlbfs / tmp_path.name
    manifest = write_manifest(
        tmp_path / "m.yaml",
        output,
        [{"source": make("hugetlbfs", data), "name": "dump.zst" if options.get("compress") else "dump"}],
        defaults=options,
    )
    dumps = Dumps(manifest, output, {"dump.zst" if options.get("compress") else "dump": data})
    cut_short(shim, tmp_path / "log", manifest, "-q", "--allow-filters")
    check_complete(dumps)
    try:
        if "filter" not in options:
            assert "vmsplice" in cut_short(shim, tmp_path / "log2", "restore", output, "--to", back, "-q")
            assert check_whole(back, {"dump": data}) == {"dump"}
    finally:
        shutil.rmtree(output)
        shutil.rmtree(back, ignore_errors=True)
