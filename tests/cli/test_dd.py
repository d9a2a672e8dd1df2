"""The one-off form beside the real dd: the same bytes, the same counts, the same exit codes."""

from __future__ import annotations

import array
import fcntl
import os
import re
import shutil
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forked
import pytest
from commands import COMMAND, ENOUGH, asyncdump, end, redirected, running
from files import PAGE, MiB, allocated, mentions, noise, unavailable, write_pages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncdump.cli.dd.command import main
from asyncdump.cli.dd.operands import parse
from asyncdump.cli.dd.summary import rate_line

REAL = shutil.which("dd") or "dd"
RECORDS = re.compile(r"(\d+\+\d+) records in\n(\d+\+\d+) records out\n")
CLOSING = re.compile(r"(\d+) bytes? (?:\(.+\) )?copied, [\d.e+-]+ s, [\d.]+ \w?B/s\n")


def real(*operands: str, cwd: Path, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        [REAL, *operands], cwd=cwd, input=data, capture_output=True, env=environment, timeout=ENOUGH, check=False
    )


def ours(*operands: str, cwd: Path, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    done = forked.run("dd", *operands, cwd=cwd, env=os.environ, data=data, timeout=ENOUGH)
    return subprocess.CompletedProcess(("dd", *operands), done.returncode, done.stdout, done.stderr)


def records(stderr: str) -> tuple[str, ...]:
    """Return the records in and out."""
    match = RECORDS.search(stderr)
    assert match, stderr
    return match.groups()


@contextmanager
def descriptors_closed() -> Iterator[None]:
    """Close what the command leaves to the end of its process."""
    before = set(os.listdir("/proc/self/fd"))
    try:
        yield
    finally:
        for fd in set(os.listdir("/proc/self/fd")) - before:
            try:
                os.close(int(fd))
            except OSError:
                assert not os.path.exists(f"/proc/self/fd/{fd}")  # It was that of the listing itself.


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder on the filesystem that the parameter names."""
    folder = request.getfixturevalue(request.param) / "dd"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


on_each_filesystem = pytest.mark.parametrize("place", ["tmpfs", "ext4"], indirect=True)


# --- operands ---------------------------------------------------------------------------------------------------------

WRONG = (
    ("bs=0", ()),
    ("count=x", ("'x'",)),
    ("skip=-1", ("'-1'",)),
    ("seek=1.5", ("'1.5'",)),
    ("conv=ucase,notrunc,swab", ("swab, ucase", "fdatasync, fsync, notrunc, sparse")),
    ("oflag=append", ("append",)),
    ("iflag=nocache,fullblock", ("nocache", "count_bytes, fullblock, skip_bytes")),
    ("iflag=direct", ("direct", "count_bytes, fullblock, skip_bytes")),
    ("status=loud", ("default, none, noxfer, progress",)),
    ("method=teleport", ("auto, reflink, direct, sendfile, splice, mmap, read, vmsplice",)),
    ("cbs=80", ("if of bs count skip seek conv iflag oflag status method compress",)),
    ("words", ("name=value",)),
    ("--sparse", ("name=value",)),
    ("bs=9999999999999P", ()),
)


def test_all_that_is_wrong_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    (tmp_path / "out").write_text("precious")
    done = asyncdump("dd", "if=in", "of=out", *(operand for operand, _ in WRONG), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == len(WRONG)
    for line, (operand, parts) in zip(lines, WRONG, strict=True):
        assert line.startswith(f"asyncdump dd: {operand}: ")
        assert mentions(line, *parts)
    assert (tmp_path / "out").read_text() == "precious"


def test_what_operands_mean() -> None:
    operands, problems = parse(
        ["if=a", "of=b=c", "bs=2K", "count=3", "skip=1", "seek=4", "conv=notrunc,fsync", "oflag=direct"]
    )
    assert problems == []
    assert (operands.source, operands.target, operands.block) == ("a", "b=c", 2048)
    assert (operands.count, operands.skip, operands.seek) == (6144, 2048, 8192)
    assert operands.conversions == {"notrunc", "fsync"}
    assert (operands.direct, operands.status, operands.method) == (True, "default", "auto")
    operands, problems = parse(["conv=sparse", "status=none", "method=mmap"])
    assert (problems, operands.conversions, operands.status, operands.method) == ([], {"sparse"}, "none", "mmap")


def test_what_is_not_said() -> None:
    operands, problems = parse([])
    assert problems == []
    assert (operands.source, operands.target, operands.block, operands.count) == (None, None, 512, None)
    assert (operands.skip, operands.seek, operands.conversions, operands.direct) == (0, 0, set(), False)
    assert (operands.status, operands.method) == ("default", "auto")


@pytest.mark.parametrize(
    ("given_operands", "count", "skip", "seek"),
    [
        ("count=3 skip=2 seek=1 bs=10", 30, 20, 10),
        ("bs=10 count=3B skip=2B seek=1B", 3, 2, 1),
        ("bs=10 iseek=2 oseek=1", None, 20, 10),
        ("bs=10 seek=3 iseek=2", None, 20, 30),
        ("bs=10 iseek=2 seek=3", None, 20, 30),
        ("bs=10 skip=3 oseek=2", None, 30, 20),
        ("ibs=10 obs=10 count=1K", 10240, 0, 0),
        ("bs=10 count=1KiB skip=1kB", 1024, 1000, 0),
        ("bs=10 count=2x3", 60, 0, 0),
        ("count=2b", 2 * 512 * 512, 0, 0),
        ("count=0", 0, 0, 0),
        ("count=1 count=2", 1024, 0, 0),
    ],
)
def test_counts_are_blocks_or_bytes(given_operands, count, skip, seek) -> None:
    operands, problems = parse(given_operands.split())
    assert problems == []
    assert (operands.count, operands.skip, operands.seek) == (count, skip, seek)


@pytest.mark.parametrize(
    "size", ["1", "512", "4c", "1w", "1b", "1K", "1k", "1kB", "1KB", "1KiB", "2M", "1MB", "2MiB", "2x3"]
)
def test_sizes_are_those_of_the_real_one(size, tmp_path: Path) -> None:
    done = real("if=/dev/zero", f"bs={size}", "count=1", cwd=tmp_path)
    assert done.returncode == 0
    operands, problems = parse([f"bs={size}"])
    assert problems == []
    assert operands.block == len(done.stdout)


# --- files, beside the real one ---------------------------------------------------------------------------------------

SIZE = 10_000
"""Neither a number of blocks nor of pages."""

CASES = (
    "",
    "bs=1000",
    "bs=4096",
    "bs=64K",
    "bs=1M count=0",
    "count=1",
    "count=3 bs=4096",
    "count=100 bs=4096",
    "skip=1",
    "skip=2 bs=4096",
    "skip=10 bs=1000",
    "skip=3 count=2",
    "seek=1",
    "seek=3 bs=4096",
    "seek=40 bs=1000",
    "seek=5 count=0",
    "conv=notrunc",
    "conv=notrunc count=1 bs=1000",
    "conv=notrunc seek=2 bs=1000 count=3",
    "conv=notrunc seek=30 bs=1000",
    "skip=1 seek=2 count=3 bs=777",
    "skip=1 seek=2 count=3 bs=777 conv=notrunc",
    "conv=notrunc,fsync skip=1",
    "conv=fdatasync seek=1 skip=1 bs=4096",
    "conv=sparse",
    "conv=sparse bs=4096 seek=1",
    "conv=sparse,notrunc bs=4096",
    "conv=notrunc seek=5 count=0",
    "conv=notrunc,sparse seek=5 count=0",
    "seek=3 iseek=2",
    "ibs=1000 obs=1000 count=2",
    "iflag=fullblock bs=1000 count=2",
)


@on_each_filesystem
@pytest.mark.parametrize("old", [None, 3000, 60_000])
@pytest.mark.parametrize("case", CASES)
def test_files_like_the_real_one(case, old, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(noise(SIZE))
    data[2048:9000] = bytes(9000 - 2048)
    (place / "in").write_bytes(data)
    if old is not None:
        for name in ("expected", "out"):
            (place / name).write_bytes(noise(old, 99))
    theirs = real("if=in", "of=expected", *case.split(), cwd=place)
    with descriptors_closed():
        code = main([f"if={place}/in", f"of={place}/out", *case.split()])
    printed = capfd.readouterr()
    assert code == theirs.returncode == 0, printed.err
    assert (place / "out").read_bytes() == (place / "expected").read_bytes()
    assert (place / "in").read_bytes() == data
    assert printed.out == ""
    assert records(printed.err) == records(theirs.stderr.decode())
    assert CLOSING.fullmatch(printed.err, printed.err.index("out\n") + 4)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=600).map(lambda piece: piece * 30),
    old=st.none() | st.binary(max_size=50).map(lambda piece: piece * 300),
    block=st.integers(1, 6000),
    count=st.none() | st.integers(0, 6),
    skip=st.integers(0, 6),
    seek=st.integers(0, 6),
    notrunc=st.booleans(),
)
def test_any_numbers_like_the_real_one(
    data, old, block, count, skip, seek, notrunc, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    operands = [f"bs={block}", f"skip={min(skip, len(data) // block)}", f"seek={seek}"]
    operands += [f"count={count}"] if count is not None else []
    operands += ["conv=notrunc"] if notrunc else []
    (tmp_path / "in").write_bytes(data)
    for name in ("expected", "out"):
        (tmp_path / name).unlink(missing_ok=True)
        if old is not None:
            (tmp_path / name).write_bytes(old)
    theirs = real("if=in", "of=expected", *operands, cwd=tmp_path)
    capfd.readouterr()
    with descriptors_closed():
        code = main([f"if={tmp_path}/in", f"of={tmp_path}/out", *operands])
    stderr = capfd.readouterr().err
    assert code == theirs.returncode == 0, stderr
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()
    assert records(stderr) == records(theirs.stderr.decode())


# --- pipes, beside the real one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    ["", "bs=1000", "count=3", "bs=1000 count=7", "count=100 bs=4096", "skip=2 bs=1000", "skip=3 count=1", "count=0"],
)
@pytest.mark.parametrize(("source", "target"), [("pipe", "file"), ("pipe", "pipe"), ("file", "pipe")])
def test_pipes_like_the_real_one(case, source, target, tmp_path: Path) -> None:
    """The real one counts the pieces that a pipe gives, unless it is told to wait for whole blocks."""
    data = noise(SIZE)
    (tmp_path / "in").write_bytes(data)
    operands = [*case.split(), *(["if=in"] if source == "file" else ["iflag=fullblock"])]
    through = data if source == "pipe" else None
    theirs = real(*operands, *(["of=expected"] if target == "file" else []), cwd=tmp_path, data=through)
    done = ours(*operands, *(["of=out"] if target == "file" else []), cwd=tmp_path, data=through)
    assert (done.returncode, theirs.returncode) == (0, 0), done.stderr
    assert done.stdout == theirs.stdout
    if target == "file":
        assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()
    assert records(done.stderr.decode()) == records(theirs.stderr.decode())


@pytest.mark.parametrize("case", ["seek=2 bs=1000", "seek=2 bs=1000 conv=notrunc", "seek=40 bs=1000 count=2"])
def test_a_pipe_into_a_place_of_a_file(case, tmp_path: Path) -> None:
    for name in ("expected", "out"):
        (tmp_path / name).write_bytes(noise(20_000, 99))
    real("of=expected", "iflag=fullblock", *case.split(), cwd=tmp_path, data=noise(SIZE))
    done = ours("of=out", *case.split(), cwd=tmp_path, data=noise(SIZE))
    assert done.returncode == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()


def test_more_than_a_pipe_holds(tmp_path: Path) -> None:
    data = noise(9 * MiB + 1)
    done = ours("bs=1M", cwd=tmp_path, data=data)
    assert done.returncode == 0
    assert done.stdout == data
    assert records(done.stderr.decode()) == ("9+1", "9+1")


def test_skip_behind_the_end_of_a_pipe(tmp_path: Path) -> None:
    done = ours("bs=1", "skip=9", cwd=tmp_path, data=b"abc")
    assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize("method", ["auto", "splice", "sendfile", "read"])
def test_methods_from_a_file_to_a_pipe(method, tmp_path: Path) -> None:
    data = noise(3 * MiB + 1)
    (tmp_path / "in").write_bytes(data)
    done = ours("if=in", "bs=4096", "skip=1", f"method={method}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, data[4096:]), done.stderr


@pytest.mark.parametrize("method", ["auto", "splice", "read"])
def test_methods_from_a_pipe_to_a_file(method, tmp_path: Path) -> None:
    data = noise(3 * MiB + 1)
    done = ours("of=out", f"method={method}", cwd=tmp_path, data=data)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.kernel
@pytest.mark.parametrize("method", ["auto", "vmsplice", "read"])
def test_methods_from_huge_pages_to_a_pipe(method, make, tmp_path: Path) -> None:
    data = noise(4 * MiB)
    done = ours(f"if={make('hugetlbfs', data)}", "bs=1000", "skip=5", f"method={method}", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, data[5000:]), done.stderr


@pytest.mark.parametrize("method", ["direct", "vmsplice"])
def test_methods_that_do_not_fit(method, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    target = ["of=out"] if method == "vmsplice" else []
    done = asyncdump("dd", "if=in", *target, f"method={method}", "status=none", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"asyncdump dd: method={method} ")


# --- files, in ways of our own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "direct", "sendfile", "splice", "mmap", "read"])
def test_methods_from_file_to_file(method, shm: Path, tmp_path: Path) -> None:
    data = noise(3 * MiB + 1)
    (shm / "in").write_bytes(data)
    done = asyncdump("dd", f"if={shm}/in", "of=out", "bs=4096", "skip=1", f"method={method}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == data[4096:]
    assert records(done.stderr) == ("767+1", "767+1")


def test_a_method_that_is_refused(shm: Path, tmp_path: Path) -> None:
    (shm / "in").write_bytes(noise(5000))
    done = asyncdump("dd", f"if={shm}/in", "of=out", "method=reflink", "status=none", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(rf"asyncdump dd: reflink .*{shm}/in: E[A-Z]+ \(.+\) \(.*method=auto\)\n", done.stderr)


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    assert asyncdump("dd", "if=in", "of=out", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


@on_each_filesystem
def test_sparse_leaves_zeros_out(place: Path) -> None:
    data = noise(MiB) + bytes(6 * MiB) + noise(MiB)
    write_pages(place / "in", data)
    done = asyncdump("dd", "if=in", "of=out", "conv=sparse", "bs=1M", "method=read", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "out").read_bytes() == data
    assert allocated(place / "out") < 3 * MiB
    assert records(done.stderr) == ("8+0", "8+0")
    assert asyncdump("dd", "if=in", "of=out", cwd=place).returncode == 0
    assert (place / "out").read_bytes() == data
    assert allocated(place / "out") >= 8 * MiB


def test_sparse_passes_over_what_is_there(tmp_path: Path) -> None:
    """As dd does it: without truncation, what lies where the zeros would go stays."""
    write_pages(tmp_path / "in", noise(PAGE) + bytes(4 * PAGE) + noise(PAGE))
    (tmp_path / "out").write_bytes(b"x" * 6 * PAGE)
    assert asyncdump("dd", "if=in", "of=out", "conv=sparse,notrunc", "method=read", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out").read_bytes() == noise(PAGE) + b"x" * 4 * PAGE + noise(PAGE)


@on_each_filesystem
@pytest.mark.parametrize("through", ["file", "pipe", "stdout"])
@pytest.mark.parametrize("notrunc", ["", ",notrunc"])
def test_sparse_passes_over_zeros_whatever_auto_picks(notrunc, through, place: Path) -> None:
    data = noise(MiB) + bytes(2 * MiB) + noise(5000) + bytes(3 * MiB)
    (place / "in").write_bytes(data)
    for name in ("expected", "out"):
        (place / name).write_bytes(b"x" * 8 * MiB)
    operands = [f"conv=sparse{notrunc}", "bs=4096"]
    if through == "stdout":
        for name, program in (("expected", [REAL]), ("out", [*COMMAND, "dd"])):
            with (place / name).open("r+b") as stdout:
                subprocess.run([*program, "if=in", *operands], cwd=place, stdout=stdout, check=True)
    elif through == "pipe":
        real("of=expected", "iflag=fullblock", *operands, cwd=place, data=data)
        assert ours("of=out", *operands, cwd=place, data=data).returncode == 0
    else:
        real("if=in", "of=expected", *operands, cwd=place)
        assert ours("if=in", "of=out", *operands, cwd=place).returncode == 0
    assert (place / "out").read_bytes() == (place / "expected").read_bytes()
    assert allocated(place / "out") <= allocated(place / "expected")


def test_sparse_needs_a_method_that_looks(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(bytes(5000))
    done = asyncdump("dd", "if=in", "of=out", "conv=sparse", "method=mmap", "status=none", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert mentions(line, "conv=sparse", "method=read", "mmap")


def test_sparse_ends_where_the_source_does(tmp_path: Path) -> None:
    write_pages(tmp_path / "in", noise(PAGE) + bytes(MiB), holes=True)
    assert asyncdump("dd", "if=in", "of=out", "conv=sparse", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out").read_bytes() == noise(PAGE) + bytes(MiB)


def test_a_hole_of_the_source_erases_what_is_there(tmp_path: Path) -> None:
    write_pages(tmp_path / "in", noise(PAGE) + bytes(4 * PAGE) + noise(PAGE), holes=True)
    (tmp_path / "out").write_bytes(b"x" * 7 * PAGE)
    assert asyncdump("dd", "if=in", "of=out", "conv=notrunc", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes() + b"x" * PAGE


def test_sparse_into_a_pipe_is_an_error(tmp_path: Path) -> None:
    done = asyncdump("dd", "if=/dev/null", "conv=sparse", "status=none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("asyncdump dd: conv=sparse ")


def calls(folder: Path, *operands: str, names: str) -> str:
    """Return what strace saw of the system calls with ``names``."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    command = ["strace", "-f", "-y", "-qq", "-o", "trace", "-e", f"trace={names}", *COMMAND, "dd", *operands]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=ENOUGH, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "trace").read_text()


@pytest.mark.kernel
@pytest.mark.parametrize("conversion", ["fsync", "fdatasync", "notrunc"])
@pytest.mark.parametrize("source", ["file", "pipe"])
def test_it_is_made_durable_where_that_is_asked_for(conversion, source, shm: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=[noise(5000)])
    if source == "pipe":
        writer.start()
    operands = (f"if={'in' if source == 'file' else 'fifo'}", "of=out", f"conv={conversion}")
    trace = calls(tmp_path, *operands, names="fsync,fdatasync,write,pwrite64,pwritev2,splice,sendfile")
    if source == "pipe":
        writer.join()
    last = [line for line in trace.splitlines() if "/out>" in line][-1]
    assert bool(re.search(r" f(data)?sync\(", last)) == (conversion != "notrunc")
    assert (tmp_path / "out").read_bytes() == noise(5000)


@on_each_filesystem
def test_direct_output(place: Path) -> None:
    data = noise(3 * MiB + 1)
    (place / "in").write_bytes(data)
    done = asyncdump("dd", "if=in", "of=out", "oflag=direct", cwd=place)
    if done.returncode:
        assert done.stderr.startswith("asyncdump dd: out: oflag=direct, but its filesystem does not support O_DIRECT\n")
        with pytest.raises(OSError, match="Invalid argument"):
            os.open(place / "other", os.O_CREAT | os.O_WRONLY | os.O_DIRECT)
    else:
        assert (place / "out").read_bytes() == data


@on_each_filesystem
@pytest.mark.parametrize("operands", ["", "bs=4096 seek=2", "bs=1000 count=4000", "bs=1000 seek=1 conv=notrunc,fsync"])
def test_direct_output_out_of_a_pipe(operands, place: Path) -> None:
    data = noise(5 * MiB + 1)
    for name in ("expected", "out"):
        (place / name).write_bytes(b"x" * 6 * MiB)
    real("of=expected", "iflag=fullblock", *operands.split(), cwd=place, data=data)
    done = ours("of=out", "oflag=direct", *operands.split(), cwd=place, data=data)
    if done.returncode:
        assert b"takes no O_DIRECT" in done.stderr
    else:
        assert (place / "out").read_bytes() == (place / "expected").read_bytes()


@pytest.mark.kernel
def test_direct_output_out_of_a_pipe_is_direct(ext4: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=[noise(3 * MiB)])
    writer.start()
    trace = calls(tmp_path, "if=fifo", f"of={ext4}/direct", "oflag=direct", names="pwrite64,pwritev2,splice")
    writer.join()
    assert re.findall(r"(\w+)\(\d+<[^>]*/direct>, .+, (\d+), \d+\) = ", trace) == [
        ("pwrite64", str(2 * MiB)),
        ("pwrite64", str(MiB)),
    ]


# --- what is printed --------------------------------------------------------------------------------------------------


def copy(*operands: str, cwd: Path) -> str:
    """Copy 2 MiB and return stderr."""
    (cwd / "in").write_bytes(noise(2 * MiB))
    done = asyncdump("dd", "if=in", "of=out", "bs=1M", *operands, cwd=cwd)
    assert (done.returncode, done.stdout) == (0, "")
    return done.stderr


def test_the_summary(tmp_path: Path) -> None:
    lines = copy(cwd=tmp_path).splitlines()
    assert lines[:2] == ["2+0 records in", "2+0 records out"]
    assert re.fullmatch(r"2097152 bytes \(2\.1 MB, 2\.0 MiB\) copied, [\d.e-]+ s, [\d.]+ [kMG]B/s", lines[2])
    assert len(lines) == 3


def test_status_none(tmp_path: Path) -> None:
    assert copy("status=none", cwd=tmp_path) == ""


def test_status_noxfer(tmp_path: Path) -> None:
    assert copy("status=noxfer", cwd=tmp_path) == "2+0 records in\n2+0 records out\n"


def test_status_progress_of_a_short_copy(tmp_path: Path) -> None:
    lines = copy("status=progress", cwd=tmp_path).splitlines()
    assert lines[:-1] == ["2+0 records in", "2+0 records out"]
    assert lines[-1].startswith("2097152 bytes (2.1 MB, 2.0 MiB) copied, ")


def test_status_progress(endless: Path, tmp_path: Path) -> None:
    """A line each second, over the one before; then Ctrl-C."""
    with running("dd", f"if={endless}", "of=/dev/null", "status=progress", cwd=tmp_path) as process:
        assert process.stderr is not None
        shown = b""
        while not shown.endswith(b"B/s"):
            more = os.read(process.stderr.fileno(), 100)
            assert more, shown
            shown += more
        rest = end(process, signal.SIGINT)
    assert re.fullmatch(rb"\r\d+ bytes \([\d.]+ [GT]B, [\d.]+ [GT]iB\) copied, 1(\.\d+)? s, [\d.]+ [MG]B/s", shown)
    assert rest.returncode == 130
    assert re.match(r"\n\d+\+\d records in\n\d+\+\d records out\n\d+ bytes .+ copied, ", rest.stderr)
    assert len(rest.stderr.splitlines()) == 4


@pytest.mark.parametrize(
    ("count", "seconds", "line"),
    [
        (0, 0.5, "0 bytes copied, 0.5 s, 0 B/s"),
        (1, 1.0, "1 byte copied, 1 s, 1 B/s"),
        (999, 1.0, "999 bytes copied, 1 s, 999 B/s"),
        (2097152, 0.0012, "2097152 bytes (2.1 MB, 2.0 MiB) copied, 0.0012 s, 1.7 GB/s"),
        (10 * MiB, 2.0, "10485760 bytes (10 MB, 10 MiB) copied, 2 s, 5.2 MB/s"),
    ],
)
def test_the_line_with_the_rate(count, seconds, line) -> None:
    assert rate_line(count, seconds) == line


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operands", "said"),
    [
        (["if=nothing", "of=out"], ["open", "nothing: ENOENT"]),
        (["if=in", "of=no/where"], ["open", "no/where: ENOENT"]),
        (["if=in", "of=."], ["open", ".: EISDIR"]),
        (["if=in", "of=out", "skip=99"], ["skip=50688", "5000"]),
        (["if=in", "of=/dev/full"], ["write", "/dev/full: ENOSPC"]),
        (["if=.", "of=out"], ["read", ".: EISDIR"]),
        (["if=in", "of=fifo", "seek=1"], ["lseek", "fifo: ESPIPE"]),
        (["if=in", "of=/dev/null", "oflag=direct"], ["/dev/null", "oflag=direct"]),
        (["if=in", "of=fifo", "oflag=direct"], ["fifo", "oflag=direct"]),
    ],
)
def test_a_call_that_fails(operands, said, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    done = asyncdump("dd", *operands, "status=noxfer", cwd=tmp_path)
    os.close(reader)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert mentions(lines[0], "asyncdump dd: ", *said)
    assert lines[1:] == ["0+0 records in", "0+0 records out"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("alias", ["in", "./in", "link", "symlink"])
@pytest.mark.parametrize("conversion", [[], ["conv=notrunc"]])
def test_a_file_onto_itself(conversion, alias, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    os.link(tmp_path / "in", tmp_path / "link")
    (tmp_path / "symlink").symlink_to("in")
    done = asyncdump("dd", "if=in", f"of={alias}", *conversion, "status=none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"asyncdump dd: {alias} ")
    assert (tmp_path / "in").read_bytes() == noise(5000)


def test_a_reader_that_goes_away(endless: Path, tmp_path: Path) -> None:
    with running("dd", f"if={endless}", "bs=1M", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == "\0" * 10
        process.stdout.close()
        assert process.wait(ENOUGH) == 1
        lines = process.stderr.read().splitlines()
    assert mentions(lines[0], "asyncdump dd: ", "EPIPE")
    assert len(lines) == 4
    assert re.fullmatch(r"\d+\+\d records in", lines[1])


def test_a_reader_of_a_fifo_that_goes_away(endless: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with running("dd", f"if={endless}", "of=fifo", "status=none", cwd=tmp_path) as process:
        assert process.stderr is not None
        with (tmp_path / "fifo").open("rb") as reader:
            assert reader.read(10) == bytes(10)
        assert process.wait(ENOUGH) == 1
        assert mentions(process.stderr.read(), "asyncdump dd: ", "fifo: EPIPE")


@pytest.mark.parametrize("target", [[], ["of=out"], ["of=/dev/null"]])
def test_ctrl_c_while_a_pipe_is_silent(target, tmp_path: Path) -> None:
    """What has come until then is counted."""
    with running("dd", "bs=1", "status=noxfer", *target, cwd=tmp_path, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("abc")
        process.stdin.flush()
        deadline = time.monotonic() + ENOUGH
        # The three bytes are gone from the pipe: it has started, and waits for more.
        while not _is_empty(process.stdin.fileno()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        rest = end(process, signal.SIGINT)
    assert rest.returncode == 130
    assert records(rest.stderr) in {("3+0", "3+0"), ("0+0", "0+0")}
    assert "Traceback" not in rest.stderr


def _is_empty(pipe: int) -> bool:
    waiting = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return waiting[0] == 0


# --- special files ----------------------------------------------------------------------------------------------------


def test_into_nowhere(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(SIZE))
    done = asyncdump("dd", "if=in", "of=/dev/null", "bs=1000", cwd=tmp_path)
    assert done.returncode == 0
    assert records(done.stderr) == ("10+0", "10+0")


def test_from_a_device_without_an_end(tmp_path: Path) -> None:
    done = asyncdump("dd", "if=/dev/zero", "of=out", "bs=1000", "count=7", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "out").read_bytes() == bytes(7000)
    assert records(done.stderr) == ("7+0", "7+0")


@pytest.mark.parametrize("method", ["auto", "splice", "sendfile", "read"])
def test_into_a_fifo(method, tmp_path: Path) -> None:
    data = noise(3 * MiB + 1)
    (tmp_path / "in").write_bytes(data)
    os.mkfifo(tmp_path / "fifo")
    with running("dd", "if=in", "of=fifo", f"method={method}", "status=none", cwd=tmp_path) as process:
        assert (tmp_path / "fifo").read_bytes() == data
        assert process.wait(ENOUGH) == 0


def test_out_of_a_fifo(tmp_path: Path) -> None:
    data = noise(3 * MiB + 1)
    os.mkfifo(tmp_path / "fifo")
    with running("dd", "if=fifo", "of=out", "bs=1M", "status=noxfer", cwd=tmp_path) as process:
        (tmp_path / "fifo").write_bytes(data)
        assert process.wait(ENOUGH) == 0
        assert process.stderr is not None
        assert process.stderr.read() == "3+1 records in\n3+1 records out\n"
    assert (tmp_path / "out").read_bytes() == data


def test_standard_input_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(SIZE))
    with (tmp_path / "in").open("rb") as stdin:
        done = asyncdump("dd", "of=out", "bs=1000", "skip=1", "count=2", cwd=tmp_path, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == noise(SIZE)[1000:3000]


def test_standard_output_that_is_a_file(tmp_path: Path) -> None:
    """What is in it already stays: whoever opened it has said where writing starts."""
    (tmp_path / "in").write_bytes(noise(SIZE))
    with (tmp_path / "out").open("wb") as stdout:
        stdout.write(b"before ")
        stdout.flush()
        done = asyncdump("dd", "if=in", cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == b"before " + noise(SIZE)


REDIRECTED = (
    "",
    "bs=1000 seek=2",
    "bs=1000 seek=2 conv=notrunc",
    "bs=1000 seek=40 count=2",
    "seek=5 count=0",
    "bs=1000 count=0",
    "bs=1000 skip=1 count=3 conv=fsync",
    "bs=4096 seek=1 conv=sparse",
)


@pytest.mark.sample(5)
@pytest.mark.parametrize("case", REDIRECTED)
@pytest.mark.parametrize("source", ["file", "pipe"])
@pytest.mark.parametrize("how", [">", ">>", "1<>"])
def test_redirected_standard_output_like_the_real_one(how, source, case, tmp_path: Path) -> None:
    """What is in it stays, and who shares it goes on behind what was written."""
    (tmp_path / "in").write_bytes(noise(SIZE))
    for name, program in (("expected", REAL), ("out", " ".join([*COMMAND, "dd"]))):
        (tmp_path / name).write_bytes(noise(30_000, 99))
        copy = (
            f"{'cat in | ' if source == 'pipe' else ''}{program} {'if=in' if source == 'file' else 'iflag=fullblock'}"
        )
        script = f"(printf before; {copy} {case}; code=$?; printf after; exit $code) {how} {name}"
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, timeout=ENOUGH, check=False)
        assert done.returncode == int(how == ">>" and "sparse" in case and name == "out"), done.stderr
    if done.returncode == 0:
        assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()


def test_direct_output_redirected(ext4: Path, tmp_path: Path) -> None:
    data = noise(3 * MiB + 1)
    (tmp_path / "in").write_bytes(data)
    with (ext4 / "redirected").open("wb") as stdout:
        done = asyncdump("dd", "if=in", "oflag=direct", cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert (ext4 / "redirected").read_bytes() == data
    with (ext4 / "redirected").open("ab") as stdout:
        done = asyncdump("dd", "if=in", "oflag=direct", cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert mentions(done.stderr, "asyncdump dd: ", "oflag=direct")


@pytest.mark.parametrize(
    ("operands", "said"),
    [
        ("seek=1", ["lseek", ": ESPIPE"]),
        ("conv=fsync", ["fsync", ": EINVAL"]),
        ("oflag=direct", ["oflag=direct"]),
    ],
)
def test_what_a_pipe_does_not_take(operands, said, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    done = asyncdump("dd", "if=in", operands, "status=none", cwd=tmp_path)
    assert done.returncode == 1
    assert mentions(done.stderr, "asyncdump dd: ", *said)


@pytest.mark.sample(2)
@pytest.mark.parametrize("operands", ["", "skip=1", "count=0", "of=/dev/null"])
def test_standard_input_goes_on_where_it_is(operands, tmp_path: Path) -> None:
    """As it does from one dd to the next."""
    (tmp_path / "in").write_bytes(noise(SIZE))
    for name, program in (("expected", REAL), ("out", " ".join([*COMMAND, "dd"]))):
        script = f"({program} bs=10 count=1; {program} bs=1000 count=2 {operands}; {program} bs=7) < in > {name}"
        subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, timeout=ENOUGH, check=True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()


@pytest.mark.parametrize(
    ("how", "operands", "said"),
    [
        (">&-", "if=in", "write"),
        (">&-", "if=/dev/null", "write"),
        (">&-", "if=in method=splice", "write"),
        ("<&-", "of=out", "read"),
        ("1<in", "if=/dev/zero count=1", "write"),
    ],
)
def test_a_descriptor_that_is_closed(how, operands, said, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    done = redirected(how, "dd", *operands.split(), "status=none", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert mentions(line, f"asyncdump dd: {said} ", ": EBADF")
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_closed_descriptors_that_are_not_needed(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    assert redirected("<&- >&- 2>&-", "dd", "if=in", "of=out", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out").read_bytes() == noise(5000)


@pytest.mark.parametrize(
    ("operands", "code", "said"),
    [
        ("bs=1P seek=1P", 2, "seek=1P: "),
        ("bs=1P skip=1P count=1P", 2, "skip=1P: "),
        ("seek=8191P bs=1", 1, "out: EFBIG"),
        ("seek=9223372036854775807B conv=notrunc", 1, "E"),
    ],
)
def test_numbers_that_are_too_large(operands, code, said, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(5000))
    done = asyncdump("dd", "if=in", "of=out", *operands.split(), "status=none", cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.sample(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_the_summary(number, endless: Path, tmp_path: Path) -> None:
    with running("dd", f"if={endless}", "of=/dev/null", "status=progress", cwd=tmp_path) as process:
        assert process.stderr is not None
        os.read(process.stderr.fileno(), 100)
        rest = end(process, number)
    assert rest.returncode == 128 + number
    assert records(rest.stderr)


def test_an_odd_name(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xe9", "wb") as file:
        file.write(noise(5000))
    assert asyncdump("dd", b"if=\xe9", b"of=\xfc", cwd=tmp_path).returncode == 0
    with open(os.fsencode(tmp_path) + b"/\xfc", "rb") as file:
        assert file.read() == noise(5000)
    done = asyncdump("dd", b"if=\xff", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "ENOENT" in done.stderr


def test_a_file_in_the_memory_of_a_process(memfd, tmp_path: Path) -> None:
    done = asyncdump("dd", f"if={memfd(noise(SIZE))}", "of=out", "bs=64KiB", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == noise(SIZE)
