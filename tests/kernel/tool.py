"""Run the command under strace, kill it, resume it, and check what always holds for its output directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import forked
import zstandard
from files import leftovers, read, unavailable

from asyncdump.records.journal import read_journal
from asyncdump.records.report import FileReport
from asyncdump.vocabulary.names import JOURNAL

COMMAND = (sys.executable, "-m", "asyncdump")
ENOUGH = 60
"""Seconds after which a command is considered to hang."""

_CALL = re.compile(
    r"^(?P<thread>\d+) +(?:\+\+\+|---|(?P<name>\w+)\((?P<args>.*)|<\.\.\. (?P<resumed>\w+) resumed>(?P<rest>.*))"
)

Done = subprocess.CompletedProcess[str]


class Dumps(NamedTuple):
    """A manifest and its expected result: the content of each dump, by name."""

    manifest: Path
    output: Path
    expected: dict[str, bytes]


def write_manifest(path: Path, output: Path, dumps: Iterable[Mapping[str, Any]], **head: Any) -> Path:
    """Write a manifest; JSON is YAML too."""
    path.write_text(json.dumps({"version": 1, "output": str(output), **head, "dumps": list(dumps)}))
    return path


def asyncdump(*arguments: str | Path, **options: Any) -> Done:
    """Run the command to its end; it may fail, but not with a traceback."""
    if not options:
        done = forked.run(*map(str, arguments), cwd=os.getcwd(), env=os.environ, timeout=ENOUGH)
        said = (stream.decode() for stream in (done.stdout, done.stderr))
        return checked(Done([*COMMAND, *arguments], done.returncode, *said))
    return checked(run(COMMAND, *arguments, **options))


def run(*arguments: Any, **options: Any) -> Done:
    flat = [str(part) for each in arguments for part in ([each] if isinstance(each, str | Path) else each)]
    if not {"stdout", "stderr"} & options.keys():
        options["capture_output"] = True
    return subprocess.run(flat, text=True, stdin=subprocess.DEVNULL, timeout=ENOUGH, check=False, **options)


def checked(done: Done) -> Done:
    for said in (done.stdout, done.stderr):
        assert "Traceback" not in (said or ""), said
    return done


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command with JSON events, and kill it at the end of the block."""
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--progress", "json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """Return the next event of that kind."""
    assert process.stdout is not None
    for line in process.stdout:
        told: dict[str, Any] = json.loads(line)
        if told["event"] == event:
            return told
    raise AssertionError(f"it ended without {event}: {process.communicate()}")


class Gate:
    """A filter program that copies its input, and exits only after `open`."""

    def __init__(self, folder: Path) -> None:
        self._fifo = folder / "gate"
        os.mkfifo(self._fifo)
        self.program = folder / "wait"
        self.program.write_text(f"#!/bin/sh\ncat\ncat < {self._fifo} >&2\n")
        self.program.chmod(0o700)

    def open(self) -> None:
        """Let the waiting program exit; wait until there is one."""
        with self._fifo.open("wb"):  # The program has opened the other end now, and reads to the end.
            self._fifo.unlink()
            os.mkfifo(self._fifo)  # For the filter of another run.


class Call(NamedTuple):
    """One system call: its thread, and its number among the calls of that name in that thread, from 1."""

    thread: int
    name: str
    number: int
    args: str

    @property
    def injected(self) -> bool:
        return "(INJECTED)" in self.args

    @property
    def failed(self) -> bool:
        return "= -1 " in self.args


def traced(
    log: Path,
    calls: Iterable[str],
    *arguments: str | Path,
    faults: Iterable[str] = (),
    on: Iterable[Path] = (),
    **options: Any,
) -> tuple[Done, list[Call]]:
    """Run the command under strace; ``faults`` are values of --inject, ``on`` limits the trace to these files."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    flags = ["-f", "--seccomp-bpf", "-y", "-s", "200", "-o", str(log), f"--trace={','.join(calls)}"]
    if paths := [f"--trace-path={path}" for path in on]:
        flags.remove("--seccomp-bpf")  # It filters by call, not by file.
        flags += paths
    flags += [f"--inject={fault}" for fault in faults]
    done = run("strace", flags, COMMAND, arguments, **options)
    return checked(done), parse(log.read_text(errors="replace"))


def parse(log: str) -> list[Call]:
    """Return the calls of a log in the order in which they began, each with its result."""
    calls: list[Call] = []
    counts: dict[tuple[int, str], int] = {}
    open_calls: dict[int, int] = {}
    for line in log.splitlines():
        if (match := _CALL.match(line)) is None:
            continue
        thread = int(match["thread"])
        if match["resumed"]:
            place = open_calls.pop(thread)
            calls[place] = calls[place]._replace(args=calls[place].args + match["rest"])
        elif match["name"]:
            counts[thread, match["name"]] = number = counts.get((thread, match["name"]), 0) + 1
            open_calls[thread] = len(calls)
            calls.append(Call(thread, match["name"], number, match["args"]))
    return calls


def content_of(path: str | Path) -> bytes:
    """Return the content of a dump; a .zst is decompressed by the zstandard library."""
    stored = read(path)
    if not str(path).endswith(".zst"):
        return stored
    with zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True) as stream:
        return stream.read()


def check_whole(folder: Path, expected: Mapping[str, bytes]) -> set[str]:
    """Assert that every file under the name of a dump is complete; return the names of these files."""
    present = set(os.listdir(folder)) & set(expected) if folder.is_dir() else set()
    for name in present:
        assert content_of(folder / name) == expected[name], f"{name} is not whole"
    return present


def journal_of(folder: Path) -> dict[str, FileReport] | None:
    """Return the records of a journal by name; None if there is no journal, or its first line is truncated."""
    path = folder / JOURNAL
    found = read_journal(read(path), str(folder)) if path.exists() else None
    return None if found is None else {file.name: file for file in (*found.earlier, *found.files)}


def receipt_of(folder: Path) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(read(folder / "receipt.json"))
    return receipt


def check_complete(dumps: Dumps, *options: str) -> None:
    """Assert that all dumps are complete and verify, and that nothing is left over; ``options`` are those of verify."""
    assert check_whole(dumps.output, dumps.expected) == set(dumps.expected)
    assert leftovers(dumps.output) == []
    assert not (dumps.output / JOURNAL).exists()
    receipt = receipt_of(dumps.output)
    assert receipt["ok"]
    assert {file["name"] for file in receipt["files"]} == set(dumps.expected)
    verified = asyncdump("verify", dumps.output, "-q", *options)
    assert verified.returncode == 0, verified.stderr


def resume(dumps: Dumps, *options: str) -> dict[str, bool]:
    """Resume a run to its end; return whether each dump was kept."""
    done = asyncdump(dumps.manifest, "--resume", "-q", *options)
    assert done.returncode == 0, done.stderr
    check_complete(dumps)
    return {file["name"]: file["kept"] for file in receipt_of(dumps.output)["files"]}


def failing_until_retried(
    log: Path, calls: Iterable[str], manifest: Path, *, faults: Iterable[str], on: Iterable[Path] = ()
) -> str:
    """Run the command with failing calls until a file is to be retried; return the calls that failed.

    strace counts calls for each thread, so it can't let only the first call of a process fail. Instead, the tracer is
    killed (strace -D) after the first failure. A call that it was about to fail then fails with ENOSYS, because its
    number was already replaced: such a run says nothing, and is repeated.
    """
    options = [f"--trace={','.join(calls)}", *(f"--inject={fault}" for fault in faults)]
    options += [part for path in on for part in ("-P", str(path))]
    command = ["strace", "-D", "-f", "-o", str(log), *options, *COMMAND, str(manifest), "--progress", "json"]
    for _ in range(5):
        code, errors = _run_until_retried(command)
        if "ENOSYS" not in errors:
            break
        command = [*command, "--overwrite"]
    assert code == 0, errors
    return "".join(line for line in log.read_text().splitlines(keepends=True) if "INJECTED" in line)


def _run_until_retried(command: list[str]) -> tuple[int, str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert next((line for line in process.stdout if json.loads(line)["event"] == "file_retried"), None)
        (tracer,) = re.findall(r"TracerPid:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        os.kill(int(tracer), signal.SIGKILL)
        _, errors = process.communicate(timeout=ENOUGH)
    return process.returncode, errors
