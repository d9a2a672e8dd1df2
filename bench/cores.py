"""How fast is a codec on one core?"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

import click

from asyncdump.codecs.codec import FRAME, Compression
from asyncdump.codecs.registry import parse_compression
from bench.host import header
from bench.options import common
from bench.sources import fill
from bench.table import Outcome

_MOST = 32
"""Frames of each content: 64 MiB."""

CODECS = ("lz4:1", "zstd:1", "zstd:3", "lz4:9")


def pages() -> bytes:
    """Pages of which a third is random and the rest structured: those of the other benchmarks, without the zeros."""
    with tempfile.TemporaryDirectory() as folder:
        fill(folder, 1, _MOST * FRAME, structured=67)
        return (Path(folder) / "mem_0000").read_bytes()


def _joined(paths: Iterable[Path]) -> bytes:
    content = bytearray()
    for path in paths:
        content += path.read_bytes()
        if len(content) >= _MOST * FRAME:
            break
    return bytes(content[: _MOST * FRAME])


def libraries() -> bytes:
    """The shared libraries of the system."""
    return _joined(sorted(Path("/usr/lib").rglob("*.so*")))


def text() -> bytes:
    """The source code of the standard library."""
    return _joined(sorted(Path(os.__file__).parent.rglob("*.py")))


CONTENTS: dict[str, Callable[[], bytes]] = {"pages": pages, "shared libraries": libraries, "source code": text}


@click.command()
@click.option("--codec", default=CODECS, multiple=True, show_default=True, help="NAME:LEVEL")
@common(rounds=5)
def cores(codec: Sequence[str], rounds: int, dest: str, settle: float, json_file: str | None) -> None:  # noqa: ARG001
    """CPU time of one core to compress and decompress frames of 2 MiB with checksums: medians, and the ratio."""
    outcome = Outcome("cores", header(dest, "in memory"))
    rows = []
    for name, make in CONTENTS.items():
        content = make()
        frames = [memoryview(content)[start : start + FRAME] for start in range(0, len(content), FRAME)]
        rows += [[name, each, *_measure(_parsed(each), frames, rounds)] for each in codec]
        print(f"{name} done", file=sys.stderr)
    head = ["content", "codec", "compress GiB/s", "decompress GiB/s", "ratio"]
    outcome.add_table("one core, CPU time", head, rows)
    outcome.show(json_file)


def _parsed(text: str) -> Compression:
    found = parse_compression(text)
    if found is None:
        raise click.BadParameter("none compresses nothing")
    return found


def _measure(compression: Compression, frames: Sequence[memoryview], rounds: int) -> list[str]:
    compress, codec = compression.new_compressor(), compression.codec
    size = sum(map(len, frames))
    stored = [memoryview(compress(frame)) for frame in frames]
    target = memoryview(bytearray(FRAME))
    there, back = [], []
    for _ in range(rounds):
        began = time.thread_time()
        for frame in frames:
            compress(frame)
        there.append(size / (time.thread_time() - began) / (1 << 30))
        began = time.thread_time()
        for frame, each in zip(frames, stored, strict=True):
            codec.decompress(each, target[: len(frame)])
        back.append(size / (time.thread_time() - began) / (1 << 30))
    return [f"{median(there):.2f}", f"{median(back):.2f}", f"{size / sum(map(len, stored)):.2f}"]
