"""Filters against the kernel: what can't be killed, whose number is whose, and memory that stays within its budget."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from files import MiB, children, digest_of, leftovers, noise, read, unavailable
from tool import COMMAND, started, traced, wait_for, write_manifest

import asyncdump
from asyncdump import Dump, FilterError, Zstd

LAST_WAIT = 3
"""Seconds that a program may take to die."""

SPLICE = "import os\nwhile os.splice(0, 1, 1 << 20):\n    pass\n"


# --- programs that can't be killed ----------------------------------------------------------------------------------------


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """Freeze a filesystem: whoever writes there waits in a way that no signal ends."""
    if shutil.which("fsfreeze") is None:
        unavailable("fsfreeze is not installed")
    subprocess.run(["fsfreeze", "-f", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", folder], check=True)


def asleep(mark: str) -> bool:
    """Tell whether a process that runs with an argument waits in the kernel, uninterruptibly."""
    return any(mark in each.cmdline() and each.status() == psutil.STATUS_DISK_SLEEP for each in children())


def running(mark: str) -> bool:
    """Tell whether a process runs with an argument."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in process.cmdline():
                return True
    return False


def wait_until(condition: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def writing_to(folder: Path) -> list[str]:
    return ["dd", f"of={folder}/stuck", "status=none"]


@pytest.mark.slow
async def test_a_program_that_cannot_be_killed_fails_its_file(tiny: Path, make, folder_on) -> None:
    source, folder = make("tmpfs", noise(MiB)), folder_on("ext4").path
    dumps = [
        Dump(source=source, name="stuck", filter=[["cat"], writing_to(tiny)], timeout=0.5),
        Dump(source=source, name="good", filter=[["cat"]]),
    ]
    descriptors = len(os.listdir("/proc/self/fd"))
    with frozen(tiny):
        began = time.monotonic()
        with anyio.fail_after(20):
            report = await asyncdump.dump_all(dumps, output=folder, allow_filters=True)
        assert time.monotonic() - began < LAST_WAIT + 2
        stuck, good = report.files
        assert good.ok
        assert isinstance(stuck.error, FilterError)
        assert re.search(r"0\.5 s.*\bdd \(process \d+\)", str(stuck.error))
        assert leftovers(folder) == []
        assert asleep(f"of={tiny}/stuck")
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # With the pidfd of whoever reaps it in the end.
    wait_until(lambda: children() == [])


@pytest.mark.slow
async def test_a_run_is_cancelled_whose_program_cannot_be_killed(tiny: Path, make, folder_on) -> None:
    dump = Dump(source=make("tmpfs", noise(MiB)), name="stuck", filter=[writing_to(tiny)])
    with frozen(tiny):
        async with asyncdump.open_run([dump], output=folder_on("ext4").path, allow_filters=True) as run:
            while not asleep(f"of={tiny}/stuck"):
                await anyio.sleep(0.01)
            began = time.monotonic()
            run.cancel()
        assert time.monotonic() - began < LAST_WAIT + 1
        assert run.report.interrupted == "cancelled"
        assert re.search(r"\bdd \(process \d+\)", str(run.report.files[0].error))
    wait_until(lambda: children() == [])


@pytest.mark.sample(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_whose_program_cannot_be_killed(number, tiny: Path, make, tmp_path: Path) -> None:
    dump = {"source": make("tmpfs", noise(MiB)), "name": "stuck", "filter": [writing_to(tiny)]}
    manifest = write_manifest(tmp_path / "manifest.yaml", tmp_path / "out", [dump])
    with frozen(tiny), started(manifest, "--allow-filters") as process:
        wait_for(process, "run_started")
        wait_until(lambda: asleep(f"of={tiny}/stuck"))
        began = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=LAST_WAIT + 5)
        assert time.monotonic() - began < LAST_WAIT + 2
        assert process.returncode == 128 + number
        assert leftovers(tmp_path / "out") == []
    wait_until(lambda: not running(f"of={tiny}/stuck"))


# --- whose number is whose ------------------------------------------------------------------------------------------------


def test_no_group_is_killed_that_was_given_free(make, tmp_path: Path) -> None:
    """While the head of a group isn't reaped, the group's number is nobody else's."""
    source, output = make("tmpfs", noise(3 * MiB)), tmp_path / "out"
    scripts = [
        "cat",
        "exit 1",
        "head -c 10",
        "cat; sleep 100 > /dev/null 2>&1 < /dev/null &",
        "cat; yes >&2 &",
        "sleep 9",
    ]
    dumps = [{"source": source, "name": str(n), "filter": [["sh", "-c", each]]} for n, each in enumerate(scripts)]
    manifest = write_manifest(tmp_path / "manifest.yaml", output, dumps, defaults={"timeout": 0.3, "durable": False})
    done, calls = traced(tmp_path / "log", ["kill", "wait4", "waitid", "pidfd_open"], manifest, "-q", "--allow-filters")
    assert done.returncode == 1
    ours = {call.thread for call in calls if call.name == "pidfd_open"}
    reaped: set[str] = set()
    killed: set[str] = set()
    for call in (each for each in calls if each.thread in ours):
        assert call.name != "wait4"
        if call.name == "waitid" and "WNOWAIT" not in call.args:
            reaped.update(re.findall(r"si_pid=(\d+)", call.args))
        elif call.name == "kill":
            killed.update(re.findall(r"^-(\d+)", call.args))
            assert re.findall(r"^-(\d+)", call.args)[0] not in reaped, call
    assert len(killed) == len(scripts)
    assert len(reaped) == len(scripts)


INNOCENT = """
import asyncio, os, subprocess, sys, threading, asyncdump
os.chdir(sys.argv[1])
open("/proc/sys/kernel/pid_max", "w").write("400")
ended = False
lives = []
def breed():
    # Groups of their own, one after another, through all the numbers there are.
    while not ended:
        process = subprocess.Popen(["sleep", "0.2"], process_group=0)
        lives.append(process)
        if len(lives) > 60:
            first = lives.pop(0)
            assert first.wait() == 0, first.returncode
thread = threading.Thread(target=breed)
thread.start()
async def main():
    scripts = ["cat; sleep 3 > /dev/null 2>&1 < /dev/null &", "exit 1", "cat", "cat; sleep 3 > /dev/null < /dev/null &"]
    dumps = [
        asyncdump.Dump(source="source", name=str(n), filter=[["sh", "-c", scripts[n % 4]]]) for n in range(200)
    ]
    report = await asyncdump.dump_all(dumps, output="out", allow_filters=True, durable=False)
    print([int(file.name) % 4 for file in report.files if not file.ok] == [1] * 50)
try:
    asyncio.run(main())
finally:
    ended = True
    thread.join()
assert [process.wait() for process in lives] == [0] * len(lives)
"""


@pytest.mark.slow
def test_nobody_else_dies_where_numbers_are_few(tmp_path: Path) -> None:
    """In a PID namespace of 400 numbers, with processes coming and going, each a group of its own."""
    (tmp_path / "source").write_bytes(noise(100_000))
    unshared = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*unshared, "true"], check=False).returncode:
        unavailable("PID namespaces can't be made here")
    if _pid_max_is_shared(unshared):
        unavailable("pid_max belongs to the whole system here (Linux before 6.14)", excusable=True)
    done = subprocess.run(
        [*unshared, "sh", "-c", '"$@"; exit $?', "init", sys.executable, "-c", INNOCENT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-3000:]


def _pid_max_is_shared(unshared: list[str]) -> bool:
    before = Path("/proc/sys/kernel/pid_max").read_text()
    subprocess.run([*unshared, "sh", "-c", "echo 4000 > /proc/sys/kernel/pid_max"], check=True)
    after = Path("/proc/sys/kernel/pid_max").read_text()
    if after != before:
        Path("/proc/sys/kernel/pid_max").write_text(before)
    return after != before


@pytest.mark.parametrize("denied", ["pidfd_open", "pidfd_send_signal"])
def test_old_kernels(denied, make, tmp_path: Path) -> None:
    """Without descriptors of processes their numbers serve, and nothing is left either."""
    source, output = make("tmpfs", noise(MiB)), tmp_path / "out"
    mark = f"98764.{os.getpid()}"
    scripts = ["cat", "exit 3", f"cat; sleep {mark} > /dev/null 2>&1 < /dev/null &", f"sleep {mark}"]
    dumps = [{"source": source, "name": str(n), "filter": [["sh", "-c", each]]} for n, each in enumerate(scripts)]
    manifest = write_manifest(tmp_path / "manifest.yaml", output, dumps, defaults={"timeout": 0.3, "durable": False})
    done, _ = traced(tmp_path / "log", [denied], manifest, "-q", "--allow-filters", faults=[f"{denied}:error=EPERM"])
    assert done.returncode == 1
    assert {name for name in os.listdir(output) if name.isdigit()} == {"0", "2"}
    wait_until(lambda: not running(mark))


# --- copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dd", "cat", "run", "filter"])
def test_a_pipe_holds_a_copy_of_huge_pages(how, hugetlbfs: Path, make, tmp_path: Path) -> None:
    data = noise(48 * 1024) + bytes(2 * MiB - 48 * 1024)
    source = make("hugetlbfs", data)
    dump = {
        "source": source,
        "length": 48 * 1024,
        **({"filter": [[sys.executable, "-c", SPLICE]]} if how == "filter" else {}),
    }
    manifest = write_manifest(tmp_path / "manifest.yaml", Path("-"), [dump])
    arguments = {
        "dd": ["dd", f"if={source}", "bs=48K", "count=1", "status=none"],
        "cat": ["cat", source, "--length", "48KiB"],
    }.get(how, [str(manifest), "-q", "--allow-filters"])
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        with open(writing, "wb") as stdout:
            subprocess.run([*COMMAND, *arguments], stdout=stdout, timeout=30, check=True)
        _overwrite(source)
        assert pipe.read() == data[: 48 * 1024]


def _overwrite(path: str) -> None:
    import mmap

    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 2 * MiB) as memory:
        memory[:] = b"\xff" * (2 * MiB)


async def test_the_digest_behind_a_filter_that_moves_huge_pages(make, folder_on) -> None:
    source = make("hugetlbfs", noise(4 * MiB))
    changing = (
        "import mmap, sys\nfile = open(sys.argv[1], 'r+b')\nmemory = mmap.mmap(file.fileno(), 0)\nprint(flush=True)\n"
        "n = 0\nwhile True:\n    n = (n + 1) % 256\n    memory[::4096] = bytes([n]) * (len(memory) // 4096)\n"
    )
    with subprocess.Popen([sys.executable, "-c", changing, source], stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None
            owner.stdout.readline()
            dumps = [Dump(source=source, name=str(n), filter=[[sys.executable, "-c", SPLICE]]) for n in range(8)]
            report = await asyncdump.dump_all(dumps, output=folder_on("ext4").path, allow_filters=True)
        finally:
            owner.kill()
    report.raise_for_failures()
    for file in report.files:
        assert file.digest == f"xxh128:{digest_of(read(file.path), 'xxh128')}"


# --- memory ---------------------------------------------------------------------------------------------------------------

PEAK = """
import asyncio, resource, asyncdump
from asyncdump import Dump, Zstd
async def main():
    report = await asyncdump.dump_all(dumps, output=output, allow_filters=True, durable=False)
    report.raise_for_failures()
    with open("/proc/self/status") as lines:  # Unlike ru_maxrss this begins anew with the program.
        print(next(line for line in lines if line.startswith("VmHWM")).split()[1])
asyncio.run(main())
"""


def peak(dumps: str, output: Path) -> int:
    """Return the most memory that a run takes, in bytes; a process begins with that of the one that starts it."""
    code = PEAK.replace("async def", f"dumps, output = {dumps}, {str(output)!r}\nasync def", 1)
    small = "import os, sys; sys.exit(os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)[1]))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", small, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return int(done.stdout) * 1024


@pytest.mark.sample(1)
@pytest.mark.parametrize("more", ["", ", filter=[['cat']]", ", filter=[['cat']], first='filter'"])
def test_the_budget_is_kept_with_several_kinds_of_frames(more, tmpfs: Path, tmp_path: Path) -> None:
    """What is kept for the next frame of its kind counts as well."""
    data = noise(MiB) * 4
    for number in range(12):
        (tmpfs / f"kinds-{number}").write_bytes(data * (number + 1))
    frames = [1, 4, 12, 24, 40, 48]
    dumps = (
        f"[Dump(source=f'{tmpfs}/kinds-{{n}}', compress=Zstd(level=n % 5 + 1, frame={frames}[n % 6] << 20, long=27 if n % 2 else None){more})"
        " for n in range(12)]"
    )
    try:
        assert peak(dumps, tmp_path / "out") < (256 + 64) * MiB
    finally:
        for number in range(12):
            (tmpfs / f"kinds-{number}").unlink()


def test_what_costly_kinds_leave_behind_counts(tmpfs: Path, tmp_path: Path) -> None:
    """One after another, the largest first: two that take half of the budget each, and one that takes most of it."""
    kinds = [(22, 8, 13), (21, 8, 12), (1, 90, 1)]
    sources = [tmpfs / f"costly-{level}" for level, _, _ in kinds]
    for source, (_, frame, count) in zip(sources, kinds, strict=True):
        source.write_bytes(b"\1" * (frame * count * MiB))
    dumps = ", ".join(
        f"Dump(source='{source}', compress=Zstd(level={level}, frame={frame << 20}))"
        for source, (level, frame, _) in zip(sources, kinds, strict=True)
    )
    try:
        assert peak(f"[{dumps}]", tmp_path / "out") < (256 + 64) * MiB
    finally:
        for source in sources:
            source.unlink()


@pytest.mark.sample(1)
@pytest.mark.parametrize("more", ["", ", filter=[['cat']]", ", filter=[['cat']], first='filter'"])
def test_small_frames_take_little_memory(more, tmpfs: Path, tmp_path: Path) -> None:
    source = tmpfs / "small-frames"
    source.write_bytes(noise(64 * 1024) * 16 * 48)
    dumps = f"[Dump(source='{source}', compress=Zstd(level=1, frame=4096){more})]"
    try:
        assert peak(dumps, tmp_path / "out") < 90 * MiB
    finally:
        source.unlink()


def test_a_context_is_what_it_is_counted_as(tmpfs: Path, tmp_path: Path) -> None:
    """One of each of the costly kinds."""
    source = tmpfs / "costly"
    source.write_bytes(noise(64 * 1024) * 16 * 12)
    try:
        for zstd in (Zstd(level=22, frame=6 * MiB), Zstd(level=19), Zstd(level=12, frame=12 * MiB, long=27)):
            taken = peak(f"[Dump(source='{source}', compress=asyncdump.{zstd!r})]", tmp_path / f"out-{zstd.level}")
            assert taken < (256 + 64) * MiB
    finally:
        source.unlink()
