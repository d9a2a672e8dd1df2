"""A process that isn't kind to what runs in it: it is never harmed by a dump, and a dump never hangs or lies for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import seccomp
from files import MiB, noise, unavailable

from asyncdump.vocabulary.names import LOCK

CANCELS = int(os.environ.get("ASYNCDUMP_CANCELS", "40"))
SERVICE = Path(__file__).with_name("service.py")
CONTENT = noise(3 * MiB + 5)

PRELUDE = """
import asyncio, gc, json, os, signal, sys, threading, time
import anyio
import asyncdump
from asyncdump.sinks.folder import Folder
source, output = sys.argv[1:3]
dumps = [asyncdump.Dump(source=source, name=f"dump-{n}") for n in range(24)]

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def end_of_threads():
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(20)
            assert not thread.is_alive()

def lock():
    folder = Folder(output)
    folder.lock()
    folder.close()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "dumps"


def python(code: str | tuple[str, ...], *arguments: Any, prefix: list[str] | None = None, **options: Any) -> str:
    """Run code in a process of its own and return what it prints; nothing may be said on stderr."""
    parts = (code,) if isinstance(code, str) else code
    command = [
        *(prefix or []),
        sys.executable,
        "-W",
        "error",
        "-c",
        PRELUDE + "".join(map(textwrap.dedent, parts)),
        *map(str, arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def left(output: Path) -> set[str]:
    return {name for name in os.listdir(output) if name.startswith(".asyncdump")}


def check_receipt(output: Path) -> int:
    """Return how many dumps there are: those that the receipt tells of, with the bytes of their source."""
    receipt = json.loads((output / "receipt.json").read_text())
    done = {file["name"] for file in receipt["files"] if file["error"] is None}
    assert done == {name for name in os.listdir(output) if name.startswith("dump-")}
    assert all((output / name).read_bytes() == CONTENT for name in done)
    assert left(output) == set()
    return len(done)


# --- tasks that somebody cancels, loops that somebody closes -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(60 + CANCELS)
def test_a_service_that_cancels_all_of_its_tasks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", SERVICE, tmp_path, str(CANCELS)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=50 + CANCELS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "{}\n")


def test_tasks_that_are_cancelled_before_their_first_step(source: Path, output: Path) -> None:
    python(
        """
        async def serve():
            async with asyncdump.open_run(dumps, output=output) as run:
                me = asyncio.current_task()
                for task in asyncio.all_tasks():
                    task is me or task.cancel()
                async for _ in run:
                    pass
            assert run.report.ok

        before = descriptors()
        asyncio.run(serve())
        end_of_threads()
        assert descriptors() == before
        """,
        source,
        output,
    )
    assert check_receipt(output) == 24


def test_cancellations_without_end_are_outlasted(source: Path, output: Path) -> None:
    python(
        """
        async def main():
            task = asyncio.ensure_future(asyncdump.dump_all(dumps, output=output))
            await asyncio.sleep(0.03)
            cancels = 0
            while not task.done():
                task.cancel()
                cancels += 1
                await asyncio.sleep(0)
            assert cancels > 1 and task.cancelled()
            lock()
            assert not any("asyncdump" in thread.name for thread in threading.enumerate())

        asyncio.run(main())
        """,
        source,
        output,
    )
    if (output / "receipt.json").exists():
        check_receipt(output)


@pytest.mark.parametrize("end", ["loop.close()", "None"])
def test_a_loop_that_is_left_or_closed_under_a_run(end: str, source: Path, output: Path) -> None:
    """Nobody can wait for its threads: they end by themselves, at the end of the interpreter at the latest."""
    python(
        f"""
        import gc, logging
        logging.disable()  # asyncio tells of a task that was destroyed.
        async def main():
            with open(output + "-endless", "wb") as endless:
                endless.truncate(1 << 40)  # To take its digest would take far longer than the test may.
            dumps.append(asyncdump.Dump(source=output + "-endless", name="endless"))
            async with asyncdump.open_run(dumps, output=output, checksum="sha256") as run:
                loop.stop()
                await asyncio.sleep(60)

        loop = asyncio.new_event_loop()
        task = loop.create_task(main())
        loop.run_forever()
        {end}
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # What asyncio says of its own socket and task.
        """,
        source,
        output,
    )
    check_receipt(output)


def test_a_task_that_is_destroyed(source: Path, output: Path) -> None:
    python(
        """
        async def main():
            async with asyncdump.open_run(dumps, output=output):
                begun.set()
                await never.wait()

        async def other():
            global begun, never
            begun, never = asyncio.Event(), asyncio.Event()
            coroutine = main()
            task = asyncio.ensure_future(coroutine)
            await begun.wait()
            try:
                coroutine.throw(GeneratorExit)
            except GeneratorExit:
                pass
            task.cancel()
            try:
                await task
            except (asyncio.CancelledError, RuntimeError, StopIteration):
                pass
            while any("asyncdump" in thread.name for thread in threading.enumerate()):
                await asyncio.sleep(0.01)
            lock()

        asyncio.run(other())
        """,
        source,
        output,
    )
    check_receipt(output)


def test_a_generator_that_is_closed_waits_for_its_run(source: Path, output: Path) -> None:
    python(
        """
        async def events():
            async with asyncdump.open_run(dumps, output=output) as run:
                async for event in run:
                    yield event

        async def main():
            told = events()
            await anext(told)
            await told.aclose()
            assert not any("asyncdump" in thread.name for thread in threading.enumerate())
            lock()

        asyncio.run(main())
        """,
        source,
        output,
    )
    check_receipt(output)


@pytest.mark.parametrize("where", ["thread", "portal", "nested"])
def test_loops_in_odd_places(where: str, source: Path, output: Path) -> None:
    if where == "nested":
        pytest.importorskip("nest_asyncio")
    code = {
        "thread": """
            thread = threading.Thread(target=lambda: asyncio.run(main()))
            thread.start()
            """,  # The main thread ends before it.
        "portal": """
            from anyio.from_thread import start_blocking_portal
            with start_blocking_portal() as portal:
                portal.call(main)
            """,
        "nested": """
            import nest_asyncio
            nest_asyncio.apply()
            async def outer():
                asyncio.get_running_loop().run_until_complete(main())
            asyncio.run(outer())
            """,
    }[where]
    python(
        (
            """
            async def main():
                (await asyncdump.dump_all(dumps, output=output)).raise_for_failures()
                (await asyncdump.verify_all(output)).raise_for_failures()
            """,
            code,
        ),
        source,
        output,
    )
    assert check_receipt(output) == 24


# --- processes and what they share -------------------------------------------------------------------------------------


def test_a_child_that_is_forked_during_a_run_keeps_no_lock(source: Path, output: Path) -> None:
    python(
        """
        async def main():
            async with asyncdump.open_run(dumps, output=output) as run:
                child = os.fork()
                if not child:
                    signal.alarm(30)
                    signal.pause()
                async for _ in run:
                    pass
            lock()
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

        asyncio.run(main())
        """,
        source,
        output,
    )
    assert check_receipt(output) == 24


def test_a_child_that_unwinds_leaves_the_run_alone(source: Path, output: Path) -> None:
    python(
        """
        async def main():
            child = -1
            try:
                async with asyncdump.open_run(dumps, output=output) as run:
                    child = os.fork()
                    if not child:
                        signal.alarm(20)
                        raise SystemExit
                    async for _ in run:
                        pass
            except SystemExit:
                os._exit(7)  # What asyncio does at its end would disturb the parent's loop, run or no run.
            run.report.raise_for_failures()
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

        asyncio.run(main())
        """,
        source,
        output,
    )
    assert check_receipt(output) == 24


@pytest.mark.parametrize("program", ["cat", "false"])
def test_filters_where_children_are_ignored(program: str, source: Path, output: Path) -> None:
    told = python(
        f"""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        dump = asyncdump.Dump(source=source, name="dump-0", filter=[["{program}"]])
        import logging
        logging.disable()
        report = asyncio.run(asyncdump.dump_all([dump], output=output, allow_filters=True))
        print(report.ok)
        """,
        source,
        output,
    )
    if program == "false":
        assert told == "False\n"
    assert check_receipt(output) == int(told == "True\n")


def test_thousands_of_descriptors_that_are_open_already(source: Path, output: Path) -> None:
    told = python(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
        kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(2000)]
        asyncio.run(asyncdump.dump_all(dumps, output=output)).raise_for_failures()
        reading, writing = os.pipe()
        heard = []
        def read():
            time.sleep(0.2)  # The pipe is full by now.
            while piece := os.read(reading, 1 << 16):
                heard.append(piece)
        thread = threading.Thread(target=read)
        thread.start()
        keep = os.dup(1)
        os.dup2(writing, 1)
        os.close(writing)
        report = asyncio.run(asyncdump.dump_all(dumps[:1], output="-", method="read"))
        os.dup2(keep, 1)
        thread.join()
        report.raise_for_failures()
        with open(source, "rb") as file:
            assert b"".join(heard) == file.read()
        print("ok")
        """,
        source,
        output,
    )
    assert told == "ok\n"
    assert check_receipt(output) == 24


def test_a_user_who_locks_the_folder_keeps_nobody_out(source: Path, output: Path) -> None:
    python(
        """
        import fcntl
        os.mkdir(output)
        held = os.open(output, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        asyncio.run(asyncdump.dump_all(dumps, output=output)).raise_for_failures()
        asyncio.run(asyncdump.verify_all(output)).raise_for_failures()
        """,
        source,
        output,
    )
    assert check_receipt(output) == 24


# --- what isn't there --------------------------------------------------------------------------------------------------


@contextmanager
def few_processes(most: int) -> Iterator[list[str]]:
    """Yield what runs a program in a control group with a limit of processes and threads."""
    group = Path("/sys/fs/cgroup/pids") / f"asyncdump-tests-{os.getpid()}"
    if not group.parent.is_dir():
        group = Path("/sys/fs/cgroup") / group.name
    try:
        group.mkdir()
        (group / "pids.max").write_text(str(most))
    except OSError as error:
        unavailable(f"no control group can be made: {error}", excusable=True)
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    finally:
        group.rmdir()


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 8])
def test_threads_that_can_not_be_started(most: int, source: Path, output: Path) -> None:
    """With too few there is one error; with some, the run does with them."""
    with few_processes(most) as prefix:
        told = python(
            """
            import logging
            logging.disable()
            before = descriptors()
            try:
                asyncio.run(asyncdump.dump_all(dumps, output=output)).raise_for_failures()
            except asyncdump.DumpError as error:
                assert error.hint and error.operation == "clone", error
                print("refused")
            else:
                print("done")
            assert descriptors() == before
            """,
            source,
            output,
            prefix=prefix,
        )
    assert told == ("refused\n" if most < 4 else "done\n")
    if output.exists():
        assert left(output) == set()
    if most >= 4:
        assert check_receipt(output) == 24


def test_the_command_where_no_thread_can_be_started(source: Path, output: Path) -> None:
    seccomp.require()
    manifest = output.parent / "manifest.yaml"
    manifest.write_text(f"version: 1\noutput: {output}\ndumps: [{{source: {source}}}]\n")
    command = [
        sys.executable,
        seccomp.__file__,
        "clone3=ENOSYS",
        "clone=EAGAIN",
        "--",
        sys.executable,
        "-m",
        "asyncdump",
    ]
    done = subprocess.run([*command, manifest], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode not in {0, -signal.SIGABRT}
    assert "Traceback" not in done.stderr
    assert "ulimit -u" in done.stderr


@pytest.mark.slow
def test_no_proc(source: Path, output: Path) -> None:
    if os.geteuid():
        unavailable("to unmount /proc needs root")
    for method in ("auto", "sendfile", "splice", "mmap", "direct"):
        python(
            f"""
            assert os.listdir("/proc") == []
            import shutil
            shutil.rmtree(output, ignore_errors=True)
            report = asyncio.run(asyncdump.dump_all(dumps, output=output, method="{method}"))
            report.raise_for_failures()
            if "{method}" == "direct":
                assert report.files[0].method == "direct"
            asyncio.run(asyncdump.dump_all(dumps, output=output + "-zstd", compress="zstd", overwrite=True)).raise_for_failures()
            asyncio.run(asyncdump.verify_all(output)).raise_for_failures()
            asyncio.run(asyncdump.restore_all(output, output + "-back", overwrite=True)).raise_for_failures()
            """,
            source,
            output,
            prefix=["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"],
        )
        assert check_receipt(output) == 24


def test_a_working_directory_that_was_removed(source: Path, output: Path) -> None:
    told = python(
        """
        place = output + "-gone"
        os.mkdir(place)
        os.chdir(place)
        os.rmdir(place)
        asyncio.run(asyncdump.dump_all(dumps, output=output)).raise_for_failures()
        asyncio.run(asyncdump.verify_all(output)).raise_for_failures()
        for attempt in (
            lambda: asyncdump.dump_all(dumps, output="relative"),
            lambda: asyncdump.dump_all([asyncdump.Dump(source="relative")], output=output + "2"),
            lambda: asyncdump.dump_all("relative.yaml"),
            lambda: asyncdump.verify_all("relative"),
            lambda: asyncdump.restore_all(output, "relative"),
        ):
            try:
                asyncio.run(attempt())
            except asyncdump.AsyncdumpError as error:
                print(type(error).__name__)
        """,
        source,
        output,
    )
    assert len(told.split()) == 5
    assert check_receipt(output) == 24


# --- what goes wrong inside ----------------------------------------------------------------------------------------------

RAISED = ["MemoryError()", "zstandard.ZstdError('no')", "RuntimeError('no')", "ValueError('no')", "RecursionError()"]


@pytest.mark.sample(1)
@pytest.mark.parametrize("error", RAISED)
@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_what_one_file_raises_is_its_failure(error: str, compress: str, source: Path, output: Path) -> None:
    told = python(
        f"""
        import logging, zstandard
        logging.disable()
        from asyncdump.transfer.packed import Packed
        from asyncdump.transfer.transfer import Transfer
        kind = Transfer if "{compress}" == "none" else Packed
        step = kind._step
        def stumble(self, lane):
            if self.name.startswith("dump-7"):
                raise {error}
            return step(self, lane)
        kind._step = stumble
        before = descriptors()
        report = asyncio.run(asyncdump.dump_all(dumps, output=output, compress="{compress}"))
        [failed] = report.failures
        assert isinstance(failed.error, asyncdump.DumpError)
        print(failed.name, type(failed.error.__cause__).__name__)
        assert descriptors() == before
        """,
        source,
        output,
    )
    assert told.split() == ["dump-7", error.partition("(")[0].rpartition(".")[2]]
    assert left(output) == set()


@pytest.mark.sample(2)
@pytest.mark.parametrize("place", ["publish", "append", "write_small", "next_group", "next"])
def test_what_the_end_of_a_run_raises_leaves_nothing(place: str, source: Path, output: Path) -> None:
    """A lane, the committer, the journal and the receipt: whatever they raise, the run ends and cleans up."""
    python(
        f"""
        import logging
        logging.disable()
        from asyncdump.records.journal import Journal
        from asyncdump.run.committer import Committer
        from asyncdump.run.queue import Queue
        owner = next(each for each in (Folder, Journal, Committer, Queue) if hasattr(each, "{place}"))
        def stumble(*args, **options):
            raise MemoryError
        setattr(owner, "{place}", stumble)
        before = descriptors()
        try:
            report = asyncio.run(asyncdump.dump_all(dumps, output=output))
        except MemoryError:
            assert "{place}".startswith("next")
        else:
            assert report.receipt_error or len(report.failures) == 24
        end_of_threads()
        assert descriptors() == before
        lock()
        """,
        source,
        output,
    )
    assert left(output) <= {".asyncdump-journal"}
    assert LOCK not in os.listdir(output)


@pytest.mark.sample(1)
@pytest.mark.parametrize("how", ["processor", "handler", "unpicklable"])
def test_loggers_that_raise(how: str, source: Path, output: Path) -> None:
    setup = {
        "processor": """
            import structlog
            def stumble(*args):
                raise RuntimeError("a processor of somebody")
            structlog.configure(processors=[stumble])
            """,
        "handler": """
            import logging
            class Stumbling(logging.Handler):
                def handle(self, record):
                    raise RuntimeError("a handler of somebody")
            logging.getLogger("asyncdump").addHandler(Stumbling())
            """,
        "unpicklable": """
            import sys
            sys.modules["structlog"] = None
            """,
    }[how]
    told = python(
        (
            setup,
            """
            from asyncdump.transfer.transfer import Transfer
            step = Transfer._step
            def fail(self, lane):
                if self.name == "dump-3":
                    raise OSError(5, "no")
                return step(self, lane)
            Transfer._step = fail
            def handler(event):
                raise ZeroDivisionError
            report = asyncio.run(asyncdump.dump_all(dumps, output=output, on_event=handler))
            print(len(report.failures))
            """,
        ),
        source,
        output,
    )
    assert told == "1\n"
    assert check_receipt(output) == 23
