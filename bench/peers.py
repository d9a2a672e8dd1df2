"""The command lines that are compared."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence

import click

from bench.rounds import Peer
from bench.sources import FIO_BUFFERS, Sources

ASYNCDUMP = "asyncdump"
ASYNCDUMP_NONE = "asyncdump --checksum none"
DD = "dd bs=4096"
XARGS = "xargs -P8 dd direct"
CP = "cp + sync"
FIO = "fio io_uring direct"

NOTES = (
    "dd: for f in *; do dd if=$f of=... bs=4096 conv=fsync; done",
    "xargs: printf '%s\\0' * | xargs -0 -P8 -I{} dd if={} of=... bs=2M oflag=direct conv=fsync",
    "cp: cp * ... && sync",
    "fio: --ioengine=io_uring --direct=1 --rw=write --bs=2M --iodepth=16 --end_fsync=1, one file, same total size;",
    "     its buffers are filled once (no refill_buffers), and are on huge pages if the sources are",
    "times are of the entire process, durable at the end; CPU is user + system of the process and its children;",
    "memory is the peak of the largest single process (values below about 10 MiB are not reliable)",
)


def write_manifest(folder: str, sources: Sources) -> str:
    """Write the manifest of all sources and return its path. Each run specifies its own output directory."""
    path = os.path.join(folder, "manifest.yaml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"version: 1\noutput: unused\ndumps:\n  - source: {sources.folder}/*\n")
    return path


def asyncdump(name: str, manifest: str, sources: Sources, options: Sequence[str] = ()) -> Peer:
    def command(folder: str) -> list[str]:
        quiet = ["--progress", "none", "--quiet"]
        return [sys.executable, "-m", "asyncdump", manifest, "--output", folder, *quiet, *options]

    return Peer(name=name, command=command, bytes=sources.bytes)


def dd(sources: Sources) -> Peer:
    return _shell(DD, sources, 'for f in *; do dd if="$f" of={out}/"$f" bs=4096 conv=fsync status=none || exit; done')


def xargs(sources: Sources) -> Peer:
    line = "dd if={{}} of={out}/{{}} bs=2M oflag=direct conv=fsync status=none"
    return _shell(XARGS, sources, rf"printf '%s\0' * | xargs -0 -P8 -I{{{{}}}} {line}")


def cp(sources: Sources) -> Peer:
    return _shell(CP, sources, "cp -- * {out} && sync")


def _shell(name: str, sources: Sources, script: str) -> Peer:
    def command(folder: str) -> list[str]:
        inside = f"cd {shlex.quote(sources.folder)} && {script.format(out=shlex.quote(folder))}"
        return ["sh", "-c", inside]

    return Peer(name=name, command=command, bytes=sources.bytes)


def fio(sources: Sources) -> list[Peer]:
    """Return fio, which measures the device limit, or nothing if it is not installed."""
    if shutil.which("fio") is None:
        click.echo("fio is not installed: the device limit is not measured", err=True)
        return []
    mount = os.path.dirname(sources.folder)
    memory = [f"--mem=mmaphuge:{mount}/fio"] if sources.huge else []

    def command(folder: str) -> list[str]:
        job = ["fio", "--name=w", f"--directory={folder}", f"--size={sources.bytes}", "--end_fsync=1"]
        return [*job, "--ioengine=io_uring", "--direct=1", "--rw=write", "--bs=2M", "--iodepth=16", *memory]

    assert FIO_BUFFERS >= 16 << 21
    return [Peer(name=FIO, command=command, bytes=sources.bytes)]
