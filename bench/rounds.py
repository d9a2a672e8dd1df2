"""Rounds of peers: each runs once a round, and the first peer of a round is the last one of the next."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import click

from bench.measure import Measurement, evict, files_in, measure

_MOST_ON_DISK: Final = 14 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A program to compare.

    Attributes:
        command: returns the command line that writes into a new, empty directory.
        bytes: the least number of bytes in that directory at the end. Otherwise a peer that fails silently would win.
    """

    name: str
    command: Callable[[str], list[str]]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where peers write to.

    Attributes:
        folder: the directory in which each run gets its own directory.
        settle: seconds to wait after files were removed. During that time, free blocks are discarded on the device, and
            an ext4 directory whose files were just removed is slower to write to.
    """

    folder: str
    settle: float


Runs = dict[str, list[Measurement]]


def run_rounds(peers: Sequence[Peer], place: Place, rounds: int) -> Runs:
    """Run each peer once a round, with the host in a similar state before each run, and remove all outputs."""
    room = _room(peers, place.folder)
    runs: Runs = {peer.name: [] for peer in peers}
    for number in range(rounds):
        turn, used = number % len(peers), 0
        for peer in (*peers[turn:], *peers[:turn]):
            if used + peer.bytes > room:
                clear(place)
                used = 0
            used += peer.bytes
            taken = _run(peer, place, number)
            runs[peer.name].append(taken)
            click.echo(f"round {number + 1}/{rounds}: {taken.wall:8.3f} s  {peer.name}", err=True)
        clear(place)
    return runs


def clear(place: Place) -> None:
    """Remove all outputs, and wait until the disk has processed that."""
    for entry in os.scandir(place.folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
    os.sync()
    time.sleep(place.settle)


def _run(peer: Peer, place: Place, number: int) -> Measurement:
    folder = os.path.join(place.folder, f"{number}-{len(os.listdir(place.folder))}")
    os.mkdir(folder, 0o700)
    os.sync()
    time.sleep(place.settle / 4)
    taken = measure(peer.command(folder), folder)
    written = files_in(folder)
    size = sum(os.stat(path).st_size for path in written)
    if size < peer.bytes:
        raise click.ClickException(f"{peer.name} wrote {size} bytes of {peer.bytes}")
    for path in written:
        evict(path)
    return taken


def _room(peers: Sequence[Peer], folder: str) -> int:
    """Return the number of bytes that may be on disk at the same time."""
    free = shutil.disk_usage(folder).free
    largest = max(peer.bytes for peer in peers)
    if largest > free:
        raise click.ClickException(f"{folder} has {free >> 20} MiB free, but a run needs {largest >> 20} MiB")
    return min(_MOST_ON_DISK, free)
