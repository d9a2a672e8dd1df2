"""Operands of dd beside the real one's: a table of them, each carried out by both, or refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from commands import COMMAND, ENOUGH, environment, running
from files import MiB, noise, unavailable

REAL = shutil.which("dd") or "dd"
SIZE = 200_000

EQUAL = (
    "bs=10 count=8KiB",
    "bs=10 count=1kB",
    "bs=10 count=1KB skip=1kiB seek=1KiB",
    "bs=10 count=1K",
    "bs=10 count=2b",
    "bs=10 count=2Bx3",
    "bs=10 count=0B",
    "bs=10 count=1MB",
    "bs=1KB count=1",
    "bs=10 count=5c skip=3w",
    "bs=10 count=25 iflag=count_bytes",
    "bs=10 count=2K skip=3 iflag=count_bytes,skip_bytes,fullblock",
    "iflag=skip_bytes bs=10 skip=25 count=2",
    "bs=10 seek=13 oflag=seek_bytes count=1",
    "bs=10 seek=13 oflag=seek_bytes count=1 conv=notrunc",
    "iseek=3B oseek=1kB bs=10 count=1",
    "bs=7x2 count=2",
    "seek=3 count=0",
    "seek=3B count=0 conv=notrunc",
    "seek=400 count=0 conv=notrunc",
    "skip=390",
)


@pytest.mark.sample(5)
@pytest.mark.parametrize("operands", EQUAL)
def test_like_the_real_one(operands: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(noise(SIZE))
    for name, program in (("expected", [REAL]), ("out", [*COMMAND, "dd"])):
        (tmp_path / name).write_bytes(noise(30_000, 9))
        command = [*program, "if=in", f"of={name}", *operands.split(), "status=noxfer"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=ENOUGH, check=False, env=environment()
        )
        assert done.returncode == 0, done.stderr
        (tmp_path / f"{name}.told").write_text(done.stderr)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "expected").read_bytes()
    assert (tmp_path / "out.told").read_text() == (tmp_path / "expected.told").read_text()


# --- a copy that fails ------------------------------------------------------------------------------------------------


def limited(size: int, *operands: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Copy with a limit to the size of files (setrlimit(2), RLIMIT_FSIZE)."""
    return subprocess.run(
        ["prlimit", f"--fsize={size}", *COMMAND, "dd", *operands],
        cwd=cwd,
        capture_output=True,
        timeout=ENOUGH,
        check=False,
    )


@pytest.mark.sample(5)
@pytest.mark.parametrize("method", ["auto", "direct", "sendfile", "mmap", "read"])
@pytest.mark.parametrize(
    ("operands", "before", "seek"),
    [("", 0, 0), ("conv=notrunc", MiB, 0), ("conv=notrunc seek=8", MiB, 4096), ("seek=8", MiB, 4096)],
)
def test_what_is_left_of_a_copy_that_fails(operands, before, seek, method, ext4: Path) -> None:
    """No zeros where the copy never came to; what was there before and was to be kept is there still."""
    if shutil.which("prlimit") is None:
        unavailable("prlimit is not installed")
    data, old = noise(9 * MiB + 5), noise(before, 77)
    out = ext4 / "failed"
    (ext4 / "in").write_bytes(data)
    out.write_bytes(old)
    done = limited(5 * MiB, "if=in", "of=failed", f"method={method}", *operands.split(), cwd=ext4)
    assert done.returncode == 1
    assert b"EFBIG" in done.stderr
    left = out.read_bytes()
    assert int(done.stderr.splitlines()[-1].split()[0]) == len(left) - seek  # As many as it says.
    assert seek + 2 * MiB <= len(left) <= 5 * MiB
    assert left[seek:] == data[: len(left) - seek]
    assert left[:seek] == old[:seek]
    out.unlink()


@pytest.mark.parametrize("method", ["auto", "direct", "sendfile", "mmap", "read"])
def test_what_is_behind_a_failed_copy_and_was_to_be_kept(method, ext4: Path) -> None:
    data, old = noise(4 * MiB), noise(8 * MiB, 77)
    (ext4 / "in").write_bytes(data)
    (ext4 / "failed").write_bytes(old)
    with (ext4 / "in").open("r+b") as file:
        file.truncate(4 * MiB)
    done = limited(3 * MiB, "if=in", "of=failed", f"method={method}", "conv=notrunc", "status=none", cwd=ext4)
    assert done.returncode == 1
    left = (ext4 / "failed").read_bytes()
    assert len(left) == 8 * MiB
    assert left[: 2 * MiB] == data[: 2 * MiB]
    assert left[3 * MiB :] == old[3 * MiB :]
    (ext4 / "failed").unlink()


def test_a_copy_that_is_killed_leaves_no_zeros_behind(tmp_path: Path) -> None:
    with (tmp_path / "endless").open("wb") as file:
        file.write(noise(MiB))
        file.truncate(1 << 40)
    command = ["dd", "if=endless", "of=out", "method=read", "count=64GiB"]
    with running(*command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "out").exists() or os.stat(tmp_path / "out").st_size < 16 * MiB:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait(ENOUGH)
    assert os.stat(tmp_path / "out").st_size < 32 << 30
    (tmp_path / "out").unlink()


def test_a_hole_at_the_end(tmp_path: Path) -> None:
    with (tmp_path / "in").open("wb") as file:
        file.write(noise(5000))
        file.truncate(3 * MiB)
    done = subprocess.run(
        [*COMMAND, "dd", "if=in", "of=out", "status=none", "seek=1"], cwd=tmp_path, timeout=ENOUGH, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "out").read_bytes() == bytes(512) + (tmp_path / "in").read_bytes()
