"""One run of one process: its cost, and how much it leaves in the page cache."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import click

from asyncdump.kernel.linux import map_for_kernel, unmap
from bench.host import page_cache

_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "child.py")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_mincore = ctypes.CDLL(None, use_errno=True).mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The cost of a process and all its children, including start-up.

    Attributes:
        wall: wall-clock time, in seconds.
        user, system: CPU seconds.
        rss: peak memory of the largest single process, in bytes.
        cached: growth of the host's page cache, in bytes; other running programs disturb it.
        resident: bytes of the output that are in the page cache.
        written: bytes of the output, by the sizes of its files.
    """

    wall: float
    user: float
    system: float
    rss: int
    cached: int = 0
    resident: int = 0
    written: int = 0

    @property
    def cpu(self) -> float:
        return self.user + self.system


def environment() -> dict[str, str]:
    """Return the environment of the processes. Modules may be compiled once, as an installation does."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@contextmanager
def _group(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """Start a process group, and kill what remains of it at the end of the block."""
    process = subprocess.Popen(command, process_group=0, env=environment(), text=True, **options)  # type: ignore[call-overload] # options of Popen
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(command: Sequence[str], folder: str | None = None) -> Measurement:
    """Run a command that writes into ``folder``, and return its cost.

    Raises:
        click.ClickException: the command failed.
    """
    reading, writing = os.pipe()
    cached = page_cache()
    helper = [sys.executable, "-I", "-S", _CHILD, str(writing), *command]
    with os.fdopen(reading) as answer, tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        try:
            with _group(helper, pass_fds=(writing,), stdout=subprocess.DEVNULL, stderr=errors) as process:
                code = process.wait()
        finally:
            os.close(writing)
        if code:
            errors.seek(0)
            raise click.ClickException(f"{' '.join(command)}\nfailed with {code}: {errors.read()[-2000:]}")
        wall, user, system, rss = answer.read().split()
    return Measurement(
        wall=float(wall),
        user=float(user),
        system=float(system),
        rss=int(rss),
        cached=page_cache() - cached,
        resident=sum(map(resident, files_in(folder))) if folder else 0,
        written=sum(os.stat(path).st_size for path in files_in(folder)) if folder else 0,
    )


def output_of(command: Sequence[str]) -> str:
    """Run a command and return its output.

    Raises:
        click.ClickException: the command failed.
    """
    with _group(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        output, errors = process.communicate()
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)}\nfailed with {process.returncode}: {errors[-2000:]}")
    return str(output)


def files_in(folder: str) -> list[str]:
    return [entry.path for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]


def resident(path: str) -> int:
    """Return the number of bytes of a file that are in the page cache (mincore(2)). Mapping the file adds none."""
    size = os.stat(path).st_size
    if not size:
        return 0
    pages = ctypes.create_string_buffer(-(-size // _PAGE))
    fd = os.open(path, os.O_RDONLY)
    try:
        address = map_for_kernel(fd, size, 0)
        try:
            if _mincore(address, size, pages):
                raise OSError(ctypes.get_errno(), "mincore", path)
        finally:
            unmap(address, size)
    finally:
        os.close(fd)
    return sum(1 for page in pages.raw if page & 1) * _PAGE


def evict(path: str) -> None:
    """Drop a file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
