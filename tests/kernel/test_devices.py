"""Block devices to write to: of an odd size, slow, or redirected; calls that write less than asked, or nothing."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from files import KiB, MiB, noise, unavailable

COMMAND = (sys.executable, "-m", "asyncdump")
ENOUGH = 40
SECTOR = 512

Attach = Callable[[int], Path]


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    """Makes a block device of so many bytes."""
    made: list[str] = []

    def make(size: int) -> Path:
        image = tmp_path / f"image{len(made)}"
        with image.open("wb") as file:
            file.truncate(size)
        done = subprocess.run(
            ["losetup", "--find", "--show", image], capture_output=True, text=True, check=False, timeout=ENOUGH
        )
        if done.returncode:
            unavailable(f"losetup says {done.stderr.strip()}")
        made.append(done.stdout.strip())
        return Path(made[-1])

    yield make
    for path in made:
        subprocess.run(["losetup", "--detach", path], check=True)


def run(*arguments: str | Path, cwd: Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, timeout=ENOUGH, check=False, **options)  # type: ignore[call-overload, no-any-return]


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("method", ["auto", "direct", "mmap", "read", "sendfile"])
@pytest.mark.parametrize("size", [MiB + SECTOR, MiB + 7 * SECTOR, 3 * SECTOR])
def test_a_device_whose_size_is_no_multiple_of_a_block(size, method, attach: Attach, tmp_path: Path) -> None:
    """What fits is written, to the last sector, and what doesn't is an error."""
    device = attach(size)
    data = noise(2 * MiB)
    (tmp_path / "in").write_bytes(data)
    done = run("dd", "if=in", f"of={device}", f"method={method}", "status=none", "conv=fsync", cwd=tmp_path)
    assert done.returncode == 1
    assert b"ENOSPC" in done.stderr
    if method != "sendfile":  # It copies whole pages.
        assert device.read_bytes() == data[:size]
    (tmp_path / "in").write_bytes(data[:size])
    done = run("dd", "if=in", f"of={device}", f"method={method}", "status=none", "conv=fsync", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert device.read_bytes() == data[:size]


@pytest.mark.parametrize("operands", [[], ["oflag=direct"], ["oflag=direct", "conv=sparse"]])
def test_the_same_from_a_pipe(operands, attach: Attach, tmp_path: Path) -> None:
    device = attach(MiB + SECTOR)
    data = noise(2 * MiB)
    done = run("dd", f"of={device}", *operands, "status=none", cwd=tmp_path, input=data)
    assert done.returncode == 1
    assert b"ENOSPC" in done.stderr
    done = run("dd", f"of={device}", *operands, "status=none", cwd=tmp_path, input=data[: MiB + SECTOR])
    assert (done.returncode, done.stderr) == (0, b"")
    assert device.read_bytes() == data[: MiB + SECTOR]


def test_a_dump_of_a_device_of_an_odd_size(attach: Attach, tmp_path: Path) -> None:
    device = attach(MiB + 5 * SECTOR)
    device.write_bytes(noise(MiB + 5 * SECTOR))
    (tmp_path / "m.yaml").write_text(f"version: 1\noutput: out\ndumps: [{{source: {device}, name: d}}]\n")
    assert run("m.yaml", "-q", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "d").read_bytes() == noise(MiB + 5 * SECTOR)
    assert run("verify", "out", "--against-source", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("call", "source"),
    [
        ("pwrite64", "in"),
        ("pwritev2", "in method=mmap"),
        ("sendfile", "in method=sendfile"),
        ("copy_file_range", "in method=reflink"),
        ("splice", "in method=splice"),
    ],
)
def test_a_call_that_moves_nothing(call, source, tmp_path: Path) -> None:
    """A loop that makes no progress ends, with an error or by another way."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    (tmp_path / "in").write_bytes(noise(12_345))
    command = ["strace", "-f", "-qq", "-o", "trace", "-e", f"trace={call}", "-e", f"inject={call}:retval=0"]
    command += [*COMMAND, "dd", f"if={source.split()[0]}", "of=out", *source.split()[1:], "status=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=ENOUGH, check=False)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0 or (tmp_path / "out").stat().st_size == 0
    assert done.returncode == 1 or (tmp_path / "out").read_bytes() == noise(12_345)
    if call in (tmp_path / "trace").read_text() and call != "pwrite64":  # After that the page cache takes it.
        assert done.returncode == 1


# --- standard output on a device --------------------------------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", ["", "--compress zstd", "--method read"])
def test_a_dump_goes_where_the_offset_of_a_device_is(options, attach: Attach, tmp_path: Path) -> None:
    device = attach(8 * MiB)
    data = noise(3 * MiB + 7)
    (tmp_path / "ring").write_bytes(data)
    (tmp_path / "m.yaml").write_text("version: 1\noutput: x\ndumps: [{source: ring}]\n")
    dump = f"{' '.join(COMMAND)} m.yaml --output - -q {options}"
    script = f"(printf header; {dump}; printf trailer) > {device}"
    subprocess.run(["sh", "-c", script], cwd=tmp_path, timeout=ENOUGH, check=True)
    held = device.read_bytes()
    assert held[:6] == b"header"
    stop = held.rindex(b"trailer")
    assert not any(held[stop + 7 :])
    (tmp_path / "part").write_bytes(held[6:stop])
    kind = "--zstd" if "zstd" in options else "--raw"
    assert run("cat", kind, "part", cwd=tmp_path).stdout == data


def test_cat_and_dd_go_where_the_offset_of_a_device_is(attach: Attach, tmp_path: Path) -> None:
    device = attach(8 * MiB)
    data = noise(MiB + 7)
    (tmp_path / "ring").write_bytes(data)
    ours = " ".join(COMMAND)
    script = f"(printf header; {ours} cat ring; printf -- -; {ours} dd if=ring status=none; printf trailer) > {device}"
    subprocess.run(["sh", "-c", script], cwd=tmp_path, timeout=ENOUGH, check=True)
    assert device.read_bytes()[: 2 * len(data) + 14] == b"header" + data + b"-" + data + b"trailer"


def test_a_device_that_is_full(attach: Attach, tmp_path: Path) -> None:
    device = attach(MiB)
    (tmp_path / "ring").write_bytes(noise(3 * MiB))
    (tmp_path / "m.yaml").write_text("version: 1\noutput: x\ndumps: [{source: ring}]\n")
    with device.open("r+b") as stdout:
        command = [*COMMAND, "m.yaml", "--output", "-"]
        done = subprocess.run(command, cwd=tmp_path, stdout=stdout, stderr=subprocess.PIPE, timeout=ENOUGH, check=False)
    assert done.returncode == 1
    assert b"ENOSPC" in done.stderr


# --- what can't be opened a second time -------------------------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", [[], ["--compress", "zstd"]])
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_pipe_or_terminal_that_can_not_be_opened_again(kind, options, tmp_path: Path) -> None:
    """As those of another user, and here all, for /proc is missing: a thread waits in our place, a signal ends that."""
    (tmp_path / "ring").write_bytes(noise(3 * MiB))
    (tmp_path / "m.yaml").write_text("version: 1\noutput: x\ndumps: [{source: ring}]\n")
    reading, writing = os.pipe() if kind == "pipe" else os.openpty()
    if kind == "terminal":
        tty.setraw(writing)
    command = ["unshare", "-m", "sh", "-c", 'umount -l /proc; exec "$@"', "sh"]
    command += [*COMMAND, "m.yaml", "--output", "-", "-q", *options]
    with subprocess.Popen(command, cwd=tmp_path, stdout=writing) as process:
        told = bytearray()
        while process.poll() is None or select.select([reading], [], [], 0)[0]:
            if select.select([reading], [], [], 0.05)[0]:
                told += os.read(reading, 1 << 16)
        assert process.wait(ENOUGH) == 0
    if options:
        (tmp_path / "told").write_bytes(told)
        assert run("cat", "--zstd", "told", cwd=tmp_path).stdout == noise(3 * MiB)
    else:
        assert told == noise(3 * MiB)
    with subprocess.Popen(command, cwd=tmp_path, stdout=writing) as process:
        os.read(reading, 1)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENOUGH) == 143
        assert time.monotonic() - began < 2
    assert os.get_blocking(writing)
    os.close(reading)
    os.close(writing)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "arguments",
    ["m.yaml -q", "m.yaml -q --compress zstd", "m.yaml --progress json", "verify out -q", "restore out --to back -q"],
)
def test_a_host_without_proc(arguments: str, tmp_path: Path) -> None:
    (tmp_path / "ring").write_bytes(noise(MiB))
    (tmp_path / "m.yaml").write_text("version: 1\noutput: out\ndumps: [{source: ring}]\n")
    if not arguments.startswith("m.yaml"):
        assert run("m.yaml", cwd=tmp_path).returncode == 0
    command = ["unshare", "-m", "sh", "-c", 'umount -l /proc; exec "$@"', "sh", *COMMAND, *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=ENOUGH, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# --- a slow disk ------------------------------------------------------------------------------------------------------

THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk that takes 1 MiB a second."""
    if not THROTTLE.exists():
        unavailable(f"the kernel has no {THROTTLE}")
    image, point = tmp_path / "image", tmp_path / "slow"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(512 * MiB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    loop = subprocess.run(
        ["losetup", "--direct-io=on", "--find", "--show", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    device = os.stat(loop).st_rdev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        subprocess.run(["mount", loop, point], check=True)
        try:
            subprocess.run(["sync", "-f", point], check=True)
            THROTTLE.write_text(f"{number} {MiB}")
            yield point
        finally:
            THROTTLE.write_text(f"{number} 0")
            subprocess.run(["umount", point], check=True)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--method", "read"],
        ["--method", "direct", "--checksum", "none"],
        ["--method", "mmap", "--checksum", "none"],
        ["--method", "sendfile"],
        ["--compress", "zstd"],
    ],
    ids=lambda options: "-".join(options).strip("-"),
)
def test_a_run_to_a_slow_disk_ends_soon(options, slow: Path, tmpfs: Path, tmp_path: Path) -> None:
    for number in range(4):
        (tmpfs / f"slow{number}").write_bytes(noise(32 * MiB, number))
    try:
        (tmp_path / "m.yaml").write_text(f"version: 1\noutput: {slow}/out\ndumps: [{{source: {tmpfs}/slow*}}]\n")
        command = [*COMMAND, "m.yaml", "--progress", "none", *options]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            time.sleep(4)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(ENOUGH) == 143
            assert time.monotonic() - began < 2
    finally:
        for number in range(4):
            (tmpfs / f"slow{number}").unlink()
    assert {path.name for path in (slow / "out").iterdir()} <= {"receipt.json"}


def test_a_step_is_as_long_as_ever_where_the_disk_is_fast(ext4: Path, tmpfs: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    (tmpfs / "fast").write_bytes(noise(64 * MiB))
    try:
        command = ["strace", "-f", "-qq", "-o", "trace", "-e", "trace=pwrite64", *COMMAND, "dd", f"if={tmpfs}/fast"]
        subprocess.run([*command, f"of={ext4}/fast", "method=read"], cwd=tmp_path, capture_output=True, check=True)
    finally:
        (tmpfs / "fast").unlink()
        (ext4 / "fast").unlink()
    lengths = [int(line.rpartition("= ")[2]) for line in (tmp_path / "trace").read_text().splitlines() if "= " in line]
    whole = [length for length in lengths if length == 2 * MiB]
    assert sum(lengths) == 64 * MiB
    assert len(whole) >= 29
    assert min(lengths) >= 64 * KiB
