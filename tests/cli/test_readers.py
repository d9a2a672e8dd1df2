"""Readers that stand still: a dump doesn't wait for them, a signal ends whatever does, and no line is torn."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import COMMAND, ENOUGH, asyncdump, environment, receipt, running, write_manifest
from files import MiB, noise

SOON = 2.0
"""Seconds from a signal to the end of a command that waits for its reader."""

FILES = 150
KINDS = ("pipe", "socket", "terminal")


class Stopped:
    """Something to write to that holds all it can and isn't read, with its two ends."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        if kind == "pipe":
            self.reading, self.writing = os.pipe()
        elif kind == "socket":
            self._sockets = socket.socketpair()
            self.reading, self.writing = (end.fileno() for end in self._sockets)
        else:
            self.reading, self.writing = pty.openpty()
        self._fill()
        # The flag belongs to the open file, which the command gets too.
        assert os.get_blocking(self.writing)

    def _fill(self) -> None:
        os.set_blocking(self.writing, False)
        for size in (64, 1, 1, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(self.writing, b"." * size)
            if self.kind == "terminal":
                time.sleep(0.02)  # What the kernel takes to its other end makes room.
        os.set_blocking(self.writing, True)

    def read(self) -> bytes:
        """Read on, until all that could write has ended; without what it was filled with."""
        told = b""
        with contextlib.suppress(OSError):  # A terminal that nobody has open any more: EIO.
            while piece := os.read(self.reading, 1 << 16):
                told += piece
        return told.lstrip(b".")

    def close(self) -> None:
        for descriptor in (self.reading, self.writing):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if self.kind == "socket":
            for each in self._sockets:
                each.detach()

    def let_go(self) -> None:
        """Close the end for writing, that reading may come to an end."""
        os.close(self.writing)
        if self.kind == "socket":
            self._sockets[1].detach()


@contextmanager
def stopped(kind: str) -> Iterator[Stopped]:
    made = Stopped(kind)
    try:
        yield made
    finally:
        made.close()


def wait_until_idle(process: subprocess.Popen[str]) -> None:
    """Wait until the command has no more to do than to wait."""
    deadline = time.monotonic() + ENOUGH
    last, since = "", time.monotonic()
    while time.monotonic() - since < 0.15:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it never rests"
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        spent = " ".join(fields[11:13])
        caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        if spent != last or not int(caught, 16) & 1 << signal.SIGTERM - 1:
            last, since = spent, time.monotonic()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in ``out`` that has plenty to tell."""
    folder = tmp_path_factory.mktemp("readers")
    (folder / "sources").mkdir()
    for number in range(FILES):
        (folder / "sources" / f"{number:03}{'n' * 150}").write_bytes(noise(5000, number))
    (folder / "big").write_bytes(noise(3 * MiB))
    write_manifest(folder, folder / "sources" / "*")
    write_manifest(folder, folder / "big", name="one.yaml")
    assert asyncdump("m.yaml", "-q", "--no-durable", cwd=folder).returncode == 0
    assert asyncdump("dd", "if=big", "of=big.zst", "compress=zstd", cwd=folder).returncode == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """The same in a folder of its own."""
    for name in ("m.yaml", "one.yaml", "sources", "big", "big.zst"):
        (tmp_path / name).symlink_to(made / name)
    shutil.copytree(made / "out", tmp_path / "out")
    (tmp_path / "again.yaml").write_bytes((made / "m.yaml").read_bytes().replace(b'"out"', b'"again"'))
    return tmp_path


PRINTING = (
    ("again.yaml --progress json", "stdout"),
    ("again.yaml --progress none", "stdout"),
    ("again.yaml --progress plain", "stderr"),
    ("again.yaml --dry-run", "stdout"),
    ("missing.yaml", "stderr"),
    ("again.yaml --output out", "stderr"),
    ("verify out --json", "stdout"),
    ("verify out --progress json", "stdout"),
    ("verify out --progress plain", "stderr"),
    ("restore out --to back --progress json", "stdout"),
    ("info big.zst --json", "stdout"),
    ("probe big .", "stdout"),
    ("schema", "stdout"),
    ("--help", "stdout"),
    ("cat big", "stdout"),
    ("cat big.zst", "stdout"),
    ("dd if=big bs=1M", "stdout"),
    ("dd if=big of=/dev/null", "stderr"),
    ("dd if=/dev/zero of=/dev/null status=progress", "stderr"),
    ("dd if=big compress=zstd", "stdout"),
    ("one.yaml --output -", "stdout"),
    ("one.yaml --output - --compress zstd", "stdout"),
)


OTHER_KINDS = ("again.yaml --progress json", "again.yaml --progress plain", "cat big.zst", "one.yaml --output -")


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("arguments", "stream", "kind"),
    [(arguments, stream, "pipe") for arguments, stream in PRINTING]
    + [(arguments, stream, kind) for arguments, stream in PRINTING if arguments in OTHER_KINDS for kind in KINDS[1:]],
)
def test_a_signal_ends_what_waits_for_a_reader(arguments, stream, kind, run: Path) -> None:
    with stopped(kind) as reader:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: reader.writing}
        with running(*arguments.split(), cwd=run, **streams) as process:
            wait_until_idle(process) if "if=/dev/zero" not in arguments else time.sleep(1.2)
            number = signal.SIGINT if "json" in arguments else signal.SIGTERM
            began = time.monotonic()
            process.send_signal(number)
            assert process.wait(ENOUGH) == 128 + number
            assert time.monotonic() - began < SOON


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
def test_a_dump_does_not_wait_for_the_reader_of_its_events(both, kind, run: Path) -> None:
    """Its receipt is there while nobody reads; who reads on is told of each file, and of the end."""
    with stopped(kind) as reader:
        streams = {"stdout": reader.writing, "stderr": reader.writing if both else subprocess.DEVNULL}
        with running("again.yaml", "--progress", "json", cwd=run, **streams) as process:
            _await_receipt(run / "again", process)
            reader.let_go()
            lines = reader.read().decode().splitlines()
            assert process.wait(ENOUGH) == 0
    told = [json.loads(line) for line in lines]
    assert [event["event"] for event in told].count("file_finished") == FILES
    assert told[-1]["event"] == "run_finished"


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("progress", ["plain", "bar"])
def test_a_dump_does_not_wait_for_the_reader_of_its_lines(progress, kind, run: Path) -> None:
    with stopped(kind) as reader:
        streams = {"stdout": subprocess.PIPE, "stderr": reader.writing}
        with running("again.yaml", "--progress", progress, cwd=run, **streams) as process:
            _await_receipt(run / "again", process)
            reader.let_go()
            told = reader.read()
            assert process.wait(ENOUGH) == 0
            assert process.stdout is not None
            assert process.stdout.read().startswith(f"{FILES} of {FILES} files ")
    if progress == "plain":
        assert str(FILES).encode() in told


def test_logs_do_not_wait_for_their_reader(run: Path) -> None:
    """They are written by the threads that dump."""
    for path in (run / "out").iterdir():
        if path.name.startswith("0"):
            path.write_bytes(b"spoilt")
    with stopped("pipe") as reader:
        arguments = ["m.yaml", "--resume", "--trust-receipt", "--log-format", "json", "--progress", "none"]
        with running(*arguments, cwd=run, stdout=subprocess.DEVNULL, stderr=reader.writing) as process:
            deadline = time.monotonic() + ENOUGH
            while len(list((run / "out").glob("0*"))) < 100 or any(
                p.read_bytes() == b"spoilt" for p in (run / "out").glob("0*")
            ):
                assert time.monotonic() < deadline
                assert process.poll() is None
            reader.let_go()
            lines = reader.read().splitlines()
            assert process.wait(ENOUGH) == 0
    assert [json.loads(line)["event"] for line in lines] == ["dumped_again"] * 100


def _await_receipt(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + ENOUGH
    while not (folder / "receipt.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline, "the dump waits for its reader"
        time.sleep(0.01)
    assert receipt(folder)["ok"]


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_reader_gets_whole_lines_of_both_streams(kind, run: Path) -> None:
    """Of one pipe for both, as 2>&1 makes it: nothing is lost where little is kept."""
    for path in (run / "out").iterdir():
        if path.name.startswith("0"):
            path.write_bytes(b"spoilt")
    told = b""
    with stopped(kind) as reader:
        arguments = ["m.yaml", "--resume", "--trust-receipt", "--log-format", "json", "--progress", "json"]
        with running(*arguments, cwd=run, stdout=reader.writing, stderr=reader.writing) as process:
            reader.let_go()
            with contextlib.suppress(OSError):
                while piece := os.read(reader.reading, 777):
                    told += piece
                    time.sleep(0.001)
            assert process.wait(ENOUGH) == 0
    kinds = [json.loads(line)["event"] for line in told.lstrip(b".").splitlines()]
    assert kinds.count("file_kept") == FILES - 100
    assert kinds.count("file_finished") == 100
    assert kinds.count("dumped_again") == 100


@pytest.mark.slow
def test_what_is_left_out_is_counted(run: Path) -> None:
    """Only 256 KiB are kept for a reader of what is logged."""
    (run / "more").mkdir()
    for number in range(1500):
        (run / "more" / f"x{number:04}{'n' * 200}").write_bytes(b"x")
    (run / "m.yaml").unlink()
    write_manifest(run, run / "more" / "*")
    assert asyncdump("m.yaml", "-q", "--overwrite", "--no-durable", cwd=run).returncode == 0
    for path in (run / "out").glob("x*"):
        path.write_bytes(b"")
    with stopped("pipe") as reader:
        arguments = ["m.yaml", "--resume", "--trust-receipt", "--log-format", "json", "--progress", "none", "-q"]
        with running(*arguments, cwd=run, stdout=subprocess.DEVNULL, stderr=reader.writing) as process:
            deadline = time.monotonic() + ENOUGH
            while any(not path.stat().st_size for path in (run / "out").glob("x*")):
                assert time.monotonic() < deadline
            reader.let_go()
            lines = reader.read().splitlines()
            assert process.wait(ENOUGH) == 0
    logged = [line for line in lines if line.startswith(b"{")]
    assert {json.loads(line)["event"] for line in logged} == {"dumped_again"}
    assert len(logged) < 1500


STUBBORN = """
import time
from asyncdump.cli.output import take_over
from asyncdump.cli.signals import ending
take_over()
with ending(lambda name: print(name, flush=True)):
    print("ready", flush=True)
    while True:
        time.sleep(1)
"""


class Killing:
    """Leaves no process behind a test that failed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.close = process.kill


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_what_takes_long_to_end(second) -> None:
    command = [sys.executable, "-c", STUBBORN]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        contextlib.closing(Killing(process)),
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)  # The same again, as a wrapper passes it on.
        assert process.stdout.readline() in {"SIGTERM\n", "SIGINT\n"}
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.4)
        process.send_signal(second)
        assert process.wait(ENOUGH) == 128 + second
        (line,) = process.stderr.read().splitlines()
        assert line.endswith(second.name)


# --- the dump itself --------------------------------------------------------------------------------------------------

USER = 65534  # nobody


@pytest.mark.parametrize("options", [[], ["--compress", "zstd"], ["--method", "read"]])
def test_a_dump_into_a_socket(options, tmp_path: Path) -> None:
    data = noise(5 * MiB + 3)
    (tmp_path / "ring").write_bytes(data)
    write_manifest(tmp_path, tmp_path / "ring")
    ours, theirs = socket.socketpair()
    with ours, running("m.yaml", "--output", "-", *options, cwd=tmp_path, stdout=theirs) as process:
        blocking = os.get_blocking(theirs.fileno())
        theirs.close()
        told = b""
        while piece := ours.recv(1 << 16):
            told += piece
        assert process.wait(ENOUGH) == 0
    assert blocking
    (tmp_path / "told").write_bytes(told)
    if options[:1] == ["--compress"]:
        done = subprocess.run([*COMMAND, "cat", "--zstd", "told"], cwd=tmp_path, capture_output=True, check=True)
        told = done.stdout
    assert told == data


@pytest.mark.sample(1)
@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_goes_away_is_a_failure(kind, endless: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, endless)
    with stopped(kind) as reader, running("m.yaml", "--output", "-", cwd=tmp_path, stdout=reader.writing) as process:
        wait_until_idle(process)
        reader.let_go()
        os.close(reader.reading)
        if kind == "socket":
            reader._sockets[0].detach()
        _, stderr = process.communicate(timeout=ENOUGH)
        assert process.returncode == 1 if kind != "terminal" else process.returncode in {1, 129}
        assert "Traceback" not in stderr


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_signal_ends_a_dump_whose_reader_has_begun_and_stopped(kind, endless: Path, tmp_path: Path) -> None:
    """There is room for a part of what is to be written: no write may wait for the rest of it."""
    write_manifest(tmp_path, endless)
    with stopped(kind) as reader, running("m.yaml", "--output", "-", cwd=tmp_path, stdout=reader.writing) as process:
        wait_until_idle(process)
        os.read(reader.reading, 3 << 10)
        wait_until_idle(process)
        os.read(reader.reading, 100 << 10)
        wait_until_idle(process)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENOUGH) == 143
        assert time.monotonic() - began < SOON


HEADERS = ("> out", ">> out", "1<> out")


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", ["", "--compress zstd", "--method read"])
@pytest.mark.parametrize("how", HEADERS)
def test_a_dump_goes_where_the_offset_is_and_the_next_command_goes_on(how, options, tmp_path: Path) -> None:
    data = noise(3 * MiB + 7)
    (tmp_path / "ring").write_bytes(data)
    (tmp_path / "out").write_bytes(b"old " * MiB)
    write_manifest(tmp_path, tmp_path / "ring")
    command = f"{' '.join(COMMAND)} m.yaml --output - -q {options}"
    subprocess.run(["sh", "-c", f"(printf header; {command}; printf trailer) {how}"], cwd=tmp_path, check=True)
    held = (tmp_path / "out").read_bytes()
    begin = len(b"old " * MiB) if how == ">> out" else 0
    assert held[begin : begin + 6] == b"header"
    stop = held.index(b"trailer", begin)
    (tmp_path / "part").write_bytes(held[begin + 6 : stop])
    way = ["--zstd"] if options.startswith("--compress") else ["--raw"]
    done = subprocess.run([*COMMAND, "cat", *way, "part"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == data
    if how != "1<> out":
        assert held.endswith(b"trailer")


# --- a terminal -------------------------------------------------------------------------------------------------------


def test_a_bar_is_drawn_from_a_snapshot() -> None:
    """The dictionary changes while another thread draws."""
    import asyncdump as library
    from asyncdump.cli.bar import Bar

    bar = Bar()
    over = threading.Event()
    failures: list[BaseException] = []

    def draw() -> None:
        while not over.is_set():
            try:
                bar._draw()
                _ = bar.moved
            except RuntimeError as error:
                failures.append(error)
                return

    drawing = threading.Thread(target=draw)
    drawing.start()
    until = time.monotonic() + 1.5
    while time.monotonic() < until and not failures:
        for number in range(300):
            bar.tell(library.Progress(at=0.0, name=str(number), done=1, total=2, phase="move"))
        for number in range(300):
            bar._forget(str(number))
    over.set()
    drawing.join()
    assert failures == []


def test_a_terminal_that_is_stopped(endless: Path, tmp_path: Path) -> None:
    """Ctrl-S, and then a signal."""
    write_manifest(tmp_path, endless)
    master, slave = pty.openpty()
    try:
        env = environment(TERM="xterm")
        with running("m.yaml", cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave, env=env) as process:
            shown = b""
            while b"\x1b" not in shown:
                shown += os.read(master, 1 << 16)
            termios.tcflow(slave, termios.TCOOFF)
            time.sleep(1)  # Some frames of the bar are drawn, or wait.
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(ENOUGH) == 143
            assert time.monotonic() - began < SOON
    finally:
        termios.tcflow(slave, termios.TCOON)
        os.close(slave)
        os.close(master)


def test_stdout_that_others_have_made_non_blocking(tmp_path: Path) -> None:
    """A program that shares the pipe has: nothing is lost, and nothing fails."""
    (tmp_path / "big").write_bytes(noise(3 * MiB))
    for arguments in (["cat", "big"], ["dd", "if=big", "status=none"], ["dd", "if=big", "method=read", "status=none"]):
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with running(*arguments, cwd=tmp_path, stdout=writing) as process:
            os.close(writing)
            told = b""
            time.sleep(0.2)
            while piece := os.read(reading, 1 << 16):
                told += piece
            os.close(reading)
            assert process.wait(ENOUGH) == 0
        assert told == noise(3 * MiB)
        assert fcntl.fcntl(0, fcntl.F_GETFL) >= 0
