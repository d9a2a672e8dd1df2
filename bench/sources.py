"""The files that are dumped: random, structured and zero pages, all of them allocated."""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import click

from bench.keeper import huge_pages
from bench.measure import files_in

MIB = 1 << 20
PAGE = 2 * MIB
FIO_BUFFERS = 64 * MIB
"""Additional huge pages for fio's buffers: 16 of 2 MiB, and some spare ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files in one directory.

    Attributes:
        title: a description for tables.
        huge: whether the directory is on the hugetlbfs of this benchmark, with space for fio's buffers.
    """

    title: str
    folder: str
    files: int
    bytes: int
    huge: bool = True


@contextmanager
def huge_files(files: int, mib: int, *, zeros: int = 0, structured: int = 0) -> Iterator[Sources]:
    """Create files on a separate hugetlbfs. ``zeros`` and ``structured`` are percentages; the rest is random."""
    size = mib * MIB
    with huge_pages(files * (-(-size // PAGE) * PAGE) + FIO_BUFFERS) as folder:
        # A separate directory, because fio's buffers are a file on this mount too.
        folder = os.path.join(folder, "files")  # noqa: PLW2901 (the mount itself isn't needed)
        os.mkdir(folder)
        click.echo(f"filling {files} x {mib} MiB of huge pages ...", err=True)
        fill(folder, files, size, zeros=zeros, structured=structured)
        kind = f"{zeros} % of the pages zero" if zeros else "random pages"
        if structured:
            kind = f"pages {zeros} % zero, {structured} % structured, {100 - zeros - structured} % random"
        yield Sources(title=f"{files} x {mib} MiB on hugetlbfs, {kind}", folder=folder, files=files, bytes=files * size)


def found_files(folder: str) -> Sources:
    """Use the existing files in a directory."""
    sizes = [os.stat(path).st_size for path in files_in(folder)]
    if not sizes:
        raise click.ClickException(f"{folder} contains no files")
    title = f"{len(sizes)} files in {folder}, {sum(sizes) / (1 << 30):.2f} GiB"
    return Sources(title=title, folder=os.path.abspath(folder), files=len(sizes), bytes=sum(sizes), huge=False)


def fill(folder: str, files: int, size: int, *, zeros: int = 0, structured: int = 0) -> None:
    """Create ``mem_0000`` and so on. Zero pages are allocated like all others, because holes are a different case."""
    pages = files * -(-size // PAGE)
    order = random.Random(0).sample(range(pages), pages)
    blank = frozenset(order[: pages * zeros // 100])
    records = frozenset(order[len(blank) : len(blank) + pages * structured // 100])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [
            pool.submit(_fill, os.path.join(folder, f"mem_{index:04}"), size, index * -(-size // PAGE), blank, records)
            for index in range(files)
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fill(path: str, size: int, first: int, blank: frozenset[int], records: frozenset[int]) -> None:
    with open(path, "xb+", buffering=0) as file, open("/dev/urandom", "rb", buffering=0) as noise:
        os.posix_fallocate(file.fileno(), 0, size)
        with mmap.mmap(file.fileno(), size) as mapping, memoryview(mapping) as view:
            for index, offset in enumerate(range(0, size, PAGE), first):
                with view[offset : offset + PAGE] as page:
                    if index in records:
                        page[:] = _records(index, len(page))
                    elif index not in blank:
                        noise.readinto(page)


def _records(seed: int, size: int) -> bytes:
    """Return data like that of a packet processor: descriptors with counters, addresses and flags, and some payload."""
    chance = random.Random(seed)
    ring = []
    for queue in range(512):
        address, length = 0x100000000 + 2048 * chance.randrange(1 << 16), 64 + chance.randrange(1400)
        descriptor = struct.pack("<QQIHHBB6s", address, 0, length, 1, queue % 16, 3, 0, b"")
        ring.append(descriptor + chance.randbytes(chance.choice((0, 8, 24))) + bytes(40))
    pieces: list[bytes] = []
    held = 0
    while held < size:
        piece = ring[chance.randrange(512)] + struct.pack("<I", len(pieces))
        pieces.append(piece)
        held += len(piece)
    return b"".join(pieces)[:size]
