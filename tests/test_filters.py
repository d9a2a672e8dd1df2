"""Filters that fail, lie, linger, or hand on pages that still change; and what their failures must not hold."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import uvloop
from files import KiB, MiB, children, digest_of, leftovers, noise, read

import asyncdump
from asyncdump import Dump, FilterError, Zstd
from asyncdump.sinks.file import FileSink
from asyncdump.transfer.filters import Filters

COMMAND = (sys.executable, "-m", "asyncdump")
FILES = int(os.environ.get("ASYNCDUMP_FAILING_FILTERS", "200"))
SHORT = "head -c 1000; cat > /dev/null; exit 3"
"""What a filter does that gives a part of its dump and fails."""

SPLICE = "import os\nwhile os.splice(0, 1, 1 << 20):\n    pass\n"
"""A program that moves the pages it is given, as pv does."""


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source"
    path.write_bytes(noise(MiB))
    return str(path)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


async def dump(output: Path, *dumps: Dump, **options: Any) -> asyncdump.Report:
    with anyio.fail_after(60):
        return await asyncdump.dump_all(dumps, output=output, allow_filters=True, durable=False, **options)


def manifest(folder: Path, source: str, filters: str, output: str = "out", **keys: str) -> str:
    path = folder / "manifest.yaml"
    more = "".join(f"    {key}: {value}\n" for key, value in keys.items())
    path.write_text(
        f'version: 1\noutput: "{output}"\ndefaults: {{durable: false}}\n'
        f"dumps:\n  - source: {source}\n{more}" + (f"    filter: {filters}\n" if filters else "")
    )
    return str(path)


def processes(mark: str) -> list[psutil.Process]:
    """Return the processes that run with an argument, zombies of ours included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in process.cmdline():
                found.append(process)
    return found


# --- an exit status that nobody knows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "code"), [(SHORT, 1), ("cat", 0)])
def test_a_command_that_inherits_an_ignored_sigchld(script, code, source, tmp_path: Path) -> None:
    path = manifest(tmp_path, source, f'[[sh, -c, "{script}"]]')
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    started = [*python(ignoring), *COMMAND, path, "--allow-filters", "-q"]
    done = subprocess.run(started, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "out" / "source").exists() is (code == 0)


@contextmanager
def sigchld(action: signal.Handlers) -> Iterator[None]:
    before = signal.signal(signal.SIGCHLD, action)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_a_host_that_ignores_sigchld(source, output: Path) -> None:
    with sigchld(signal.SIG_IGN):
        report = await dump(
            output, Dump(source=source, name="filtered", filter=[["cat"]]), Dump(source=source, name="plain")
        )
    filtered, plain = report.files
    assert plain.ok
    assert isinstance(filtered.error, FilterError)
    assert filtered.error.status is None
    assert "SIGCHLD" in filtered.error.hint
    assert leftovers(output) == []


@pytest.mark.parametrize("script", [SHORT, "cat", "exit 3"])
async def test_children_that_the_kernel_reaps_behind_our_back(script, source, output: Path) -> None:
    """SIGCHLD ignored by somebody's C code: Python doesn't know of it, and no status is ever to be had."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    before = libc.signal(signal.SIGCHLD, ctypes.c_void_p(1))
    try:
        report = await dump(output, Dump(source=source, filter=[["sh", "-c", script]]))
    finally:
        libc.signal(signal.SIGCHLD, ctypes.c_void_p(before))
    error = report.files[0].error
    assert isinstance(error, FilterError)
    assert error.status is None
    assert error.command == "sh"
    assert not (output / "source").exists()


@contextmanager
def reaper() -> Iterator[None]:
    """A thread of the host that reaps whatever child there is."""
    ended = threading.Event()

    def reap() -> None:
        while not ended.is_set():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


async def test_a_host_with_a_reaper(source, output: Path) -> None:
    bad = [Dump(source=source, name=f"bad-{n}", filter=[["cat"], ["sh", "-c", SHORT], ["cat"]]) for n in range(20)]
    good = [Dump(source=source, name=f"good-{n}", filter=[["cat"]]) for n in range(20)]
    with reaper():
        report = await dump(output, *bad, *good)
    for file in report.files:
        if file.ok:
            assert file.name.startswith("good")
            assert read(file.path) == read(source)
        else:
            assert isinstance(file.error, FilterError)
    assert leftovers(output) == []


@pytest.mark.sample(1)
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_beside_the_processes_of_a_host(runner, source, output: Path) -> None:
    """Whoever else starts processes in this one has their exit statuses, and we have ours."""

    async def start(statuses: list[int | None], ended: anyio.Event) -> None:
        while not ended.is_set():
            process = await asyncio.create_subprocess_exec("sh", "-c", "exit 7")
            statuses.append(await process.wait())

    async def main() -> tuple[asyncdump.Report, list[int | None]]:
        statuses: list[int | None] = []
        scripts = ["cat", SHORT] * 20
        ended = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(start, statuses, ended)
            dumps = [Dump(source=source, name=str(n), filter=[["sh", "-c", each]]) for n, each in enumerate(scripts)]
            report = await dump(output, *dumps)
            ended.set()
        return report, statuses

    report, statuses = runner(main())
    assert set(statuses) == {7}
    for file in report.files:
        if int(file.name) % 2:
            assert isinstance(file.error, FilterError)
            assert file.error.status == 3
        else:
            assert file.error is None


# --- what a failure holds -----------------------------------------------------------------------------------------------

FAILING = {
    "begin": {"filter": [["./odd"]]},
    "feed": {"filter": [["false"]]},
    "drain": {"filter": [["sh", "-c", "head -c 3000000 /dev/urandom; exit 1"]]},
    "end": {"filter": [["sh", "-c", "cat; exit 1"]]},
    "second": {"filter": [["cat"], ["false"]]},
}
STAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "zstd first": {"compress": "zstd"},
    "zstd last": {"compress": "zstd", "first": "filter"},
    "large frames": {"compress": Zstd(level=1, frame=20 * MiB), "first": "filter"},
}

CHILD = """
import asyncio, resource, sys, msgspec, asyncdump
async def main():
    dumps = [asyncdump.Dump(source="source", name=name, **options) for name in names]
    dumps += [asyncdump.Dump(source="source", name="good-" + name, filter=[["cat"]]) for name in names[:20]]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    report = await asyncdump.dump_all(dumps, output="out", allow_filters=True, durable=False)
    failed = [file.name for file in report.files if not file.ok]
    assert failed == names, (failed, [str(file.error) for file in report.files if not file.ok][-1])
    assert all(isinstance(file.error, asyncdump.FilterError) for file in report.files if not file.ok)
    with open("/proc/self/status") as lines:  # Unlike ru_maxrss this begins anew with the program.
        print(next(line for line in lines if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("how", "stages", "files"),
    [
        *((how, stages, 1024) for how in ("feed", "drain") for stages in STAGES),
        *((how, stages, 90) for how in FAILING for stages in ("plain", "zstd last")),
    ],
)
def test_many_that_fail(how, stages, files, tmp_path: Path) -> None:
    """All end, in a few open files and little memory, and the good ones are dumped."""
    names = [str(number) for number in range(FILES if files > 90 else FILES // 5)]
    (tmp_path / "source").write_bytes(noise(2 * MiB))
    (tmp_path / "odd").write_text("neither a script nor a program\n")
    (tmp_path / "odd").chmod(0o700)
    options = {**FAILING[how], **STAGES[stages]}
    code = f"from asyncdump import Zstd\nnames, options, files = {names!r}, {options!r}, {files}\n{CHILD}\nasyncio.run(main())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * KiB < 300 * MiB
    assert len(os.listdir(tmp_path / "out")) == 22  # With the receipt and the list of digests.


@pytest.mark.sample(1)
@pytest.mark.parametrize("files", [50, 60, 80])
def test_pipelines_keep_within_the_limit_of_open_files(files, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(noise(2 * MiB))
    code = f"names, options, files = [], {{}}, {files}\n{CHILD}\nasyncio.run(main())"
    code = code.replace("names[:20]", "map(str, range(20))").replace('[["cat"]]', '[["cat"]] * 3')
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_the_traceback_of_a_failure_holds_no_frame(source, output: Path) -> None:
    """It lives as long as the report, and what a function has in its hands may be large."""
    report = await dump(
        output,
        Dump(source=source, name="ended", filter=[["false"]]),
        Dump(source=source, name="stuck", filter=[["sleep", "9"]], timeout=0.1, compress="zstd"),
    )
    for file in report.files:
        error: BaseException | None = file.error
        assert error is not None
        while error is not None:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if os.path.basename(frame.f_code.co_filename) in {"transfer.py", "piped.py", "filters.py"}:
                    assert frame.f_locals == {}
            error = error.__cause__ or error.__context__


@pytest.mark.parametrize("script", ["exit 0", "head -c 10", "echo hi", "exec <&-; echo hi"])
async def test_input_that_nobody_took_is_an_error_however_little(script, output: Path, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(noise(20_000))
    report = await dump(output, Dump(source=str(tmp_path / "small"), filter=[["sh", "-c", script]]))
    error = report.files[0].error
    assert isinstance(error, FilterError)
    assert error.errno == errno.EPIPE


async def test_a_run_whose_lanes_wait_for_the_budget_is_cancelled(source, output: Path, monkeypatch) -> None:
    monkeypatch.setattr("asyncdump.codecs.compressors.BUDGET", 1)
    stuck: dict[str, Any] = {"filter": [["sleep", "1000"]], "compress": "zstd", "first": "filter"}
    dumps = [Dump(source=source, name=str(number), **stuck) for number in range(8)]
    async with asyncdump.open_run(dumps, output=output, allow_filters=True) as run:
        while not children():
            await anyio.sleep(0.001)
        began = time.monotonic()
        run.cancel()
    assert time.monotonic() - began < 5  # Some 100 ms, where the machine has nothing else to do.
    assert run.report.interrupted == "cancelled"
    assert children() == []


async def test_a_filter_that_waits_takes_no_cpu(source, output: Path) -> None:
    before, began = time.process_time(), time.monotonic()
    report = await dump(output, Dump(source=source, filter=[["sh", "-c", "sleep 1; cat; sleep 1"], ["cat"]]))
    report.raise_for_failures()
    assert time.monotonic() - began > 2
    assert time.process_time() - before < 0.4


# --- one look at what is hashed and written -------------------------------------------------------------------------------


@contextmanager
def changing(path: str) -> Iterator[None]:
    """Have the pages of a file change all the time."""
    ended = threading.Event()
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:

        def change() -> None:
            count = 0
            while not ended.is_set():
                count = (count + 1) % 256
                for place in range(0, len(memory), 4096):
                    memory[place] = count

        thread = threading.Thread(target=change)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.mark.sample(1)
@pytest.mark.parametrize("checksum", ["xxh128", "sha256"])
@pytest.mark.parametrize("method", ["auto", "splice", "read"])
async def test_the_digest_is_that_of_the_stored_bytes(checksum, method, tmpfs: Path, output: Path) -> None:
    source = tmpfs / "live"
    source.write_bytes(noise(4 * MiB))
    names = [str(number) for number in range(8)]
    try:
        with changing(str(source)):
            report = await dump(
                output,
                *(Dump(source=str(source), name=name, filter=[python(SPLICE)], method=method) for name in names),
                checksum=checksum,
            )
    finally:
        source.unlink()
    report.raise_for_failures()
    for file in report.files:
        assert file.digest == f"{checksum}:{digest_of(read(file.path), checksum)}"
        assert file.stored == file.bytes == 4 * MiB


COPIES: dict[str, Callable[[Path, str], list[str]]] = {
    "dd": lambda _, source: ["dd", f"if={source}", "status=none"],
    "dd method=read": lambda _, source: ["dd", f"if={source}", "status=none", "method=read"],
    "cat": lambda _, source: ["cat", source],
    "run": lambda folder, source: [manifest(folder, source, "", "-"), "-q"],
    "run, checksum none": lambda folder, source: [manifest(folder, source, "", "-", checksum="none"), "-q"],
    "filter": lambda folder, source: [
        manifest(folder, source, json.dumps([python(SPLICE)]), "-"),
        "-q",
        "--allow-filters",
    ],
}


def test_a_socket_holds_a_copy(tmpfs: Path) -> None:
    source = tmpfs / "changed-later"
    data = noise(48 * KiB)
    source.write_bytes(data)
    try:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                command = [*COMMAND, *COPIES["dd"](tmpfs, str(source))]
                subprocess.run(command, stdout=theirs.fileno(), timeout=30, check=True)
            with source.open("r+b") as file:
                file.write(bytes(len(data)))
            with ours.makefile("rb") as stream:
                assert stream.read() == data
    finally:
        source.unlink()


@pytest.mark.sample(2)
@pytest.mark.parametrize("how", COPIES)
def test_a_pipe_holds_a_copy(how, tmpfs: Path, tmp_path: Path) -> None:
    """What is read from it when the writer has gone, and its source has changed, is what was written."""
    source = tmpfs / "changed-later"
    data = noise(48 * KiB)
    source.write_bytes(data)
    try:
        reading, writing = os.pipe()
        with open(reading, "rb") as pipe:
            with open(writing, "wb") as stdout:
                subprocess.run([*COMMAND, *COPIES[how](tmp_path, str(source))], stdout=stdout, timeout=30, check=True)
            with source.open("r+b") as file:
                file.write(bytes(len(data)))
            assert pipe.read() == data
    finally:
        source.unlink()


# --- what is left of a filter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "ok"),
    [
        ("cat; sleep {} > /dev/null 2>&1 < /dev/null &", True),
        ("cat; sleep {} > /dev/null < /dev/null &", True),
        ("sleep {} > /dev/null 2>&1 < /dev/null & cat; exit 1", False),
        ("sleep {} > /dev/null 2>&1 < /dev/null & exit 0", False),
        ("sleep {} & cat", False),
        ("yes >&2 & sleep {}", False),
    ],
)
async def test_what_a_filter_leaves_in_the_background_ends_with_it(script, ok, source, output: Path) -> None:
    seconds = f"98765.{os.getpid()}{abs(hash(script)) % 1000}"
    report = await dump(output, Dump(source=source, filter=[["sh", "-c", script.format(seconds)]], timeout=0.5))
    assert report.files[0].ok is ok
    with anyio.fail_after(5):
        while processes(seconds):  # What is killed isn't gone at once.
            await anyio.sleep(0.01)


async def test_a_run_that_is_cancelled_under_a_flood_of_stderr(source, output: Path) -> None:
    flood = Dump(source=source, filter=[["sh", "-c", "yes >&2"]])
    async with asyncdump.open_run([flood], output=output, allow_filters=True) as run:
        while not children():
            await anyio.sleep(0.001)
        await anyio.sleep(0.1)
        began = time.monotonic()
        run.cancel()
    assert time.monotonic() - began < 5  # Some 100 ms, where the machine has nothing else to do.
    assert children() == []


# --- what can't be started ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "number"),
    [([], errno.ENOEXEC), (["x" * (4 << 20)], errno.E2BIG), (["a\0b"], None), (["\ud800"], None)],
)
async def test_a_filter_that_cannot_be_started(arguments, number, source, output: Path, tmp_path: Path) -> None:
    program = tmp_path / "odd"
    program.write_text("neither a script nor a program\n")
    program.chmod(0o700)
    command = [str(program) if number == errno.ENOEXEC else "cat", *arguments]
    report = await dump(
        output, Dump(source=source, name="bad", filter=[["cat"], command]), Dump(source=source, name="good")
    )
    bad, good = report.files
    assert good.ok
    assert isinstance(bad.error, FilterError)
    assert bad.error.errno == number
    assert children() == []


def open_files() -> dict[int, int]:
    found = {}
    for fd in range(300):
        with contextlib.suppress(OSError):
            found[fd] = os.fstat(fd).st_ino
    return found


def test_too_few_open_files() -> None:
    """Wherever they run out, it's told, and nothing is left or closed twice."""
    before = open_files()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [fd for fd in range(1000) if fd not in before]
    outcomes = []
    for limit in free[:30]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
        try:
            filters = Filters((("cat",), ("cat",), ("cat",)), lambda: None)
        except FilterError as error:
            outcomes.append(error.errno)
        else:
            outcomes.append(0)
            filters.kill()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert open_files() == before
        assert children() == []
    assert set(outcomes) == {0, errno.EMFILE}


async def test_a_thousand_arguments(source, output: Path) -> None:
    counting = ["sh", "-c", 'cat > /dev/null; echo "$#"', "sh", *map(str, range(1000))]
    report = await dump(output, Dump(source=source, filter=[counting]))
    report.raise_for_failures()
    assert read(report.files[0].path) == b"1000\n"


def test_a_working_directory_that_is_gone(source, tmp_path: Path) -> None:
    path = manifest(tmp_path, source, "[[cat]]", str(tmp_path / "out"))
    script = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'
    started = ["sh", "-c", script, str(tmp_path / "gone"), *COMMAND, path, "--allow-filters", "-q"]
    done = subprocess.run(started, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out" / "source") == read(source)


def test_a_program_that_makes_little_of_much_needs_no_more_room_than_that(source, tmp_path: Path) -> None:
    path = manifest(tmp_path, source, "[[wc, -c]]", str(tmp_path / "out"))
    started = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash", *COMMAND, path, "--allow-filters", "-q"]
    done = subprocess.run(started, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out" / "source") == f"{MiB}\n".encode()


async def test_a_sink_that_takes_nothing_now_is_no_end_of_the_dump(source, output: Path, monkeypatch) -> None:
    """EAGAIN of what is written to isn't taken for that of an empty pipe: the file fails, and none is cut short."""
    write, calls = FileSink.write, iter(range(100))

    def refuse(self: FileSink, data: memoryview, offset: int) -> None:
        if next(calls) == 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        write(self, data, offset)

    Path(source).write_bytes(noise(5 * MiB))
    monkeypatch.setattr(FileSink, "write", refuse)
    (file,) = (await dump(output, Dump(source=source, filter=[["cat"]]))).files
    assert isinstance(file.error, asyncdump.DumpError)
    assert file.error.errno == errno.EAGAIN
    assert leftovers(output) == []
