"""Which constants are best? Each constant in the code names the command here that determined it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import click

from bench import peers
from bench.host import header
from bench.options import WARM, common, workplace
from bench.rounds import Peer, run_rounds
from bench.sources import Sources, huge_files
from bench.table import Outcome

LEAST_KIB, MOST_KIB = 256, 8192
LANES = (1, 2, 3, 4, 6, 8)
GROUPS = {
    "syncfs, groups of at most 64": "group=64",
    "syncfs, groups of at most 16": "group=16",
    "syncfs, groups of at most 256": "group=256",
    "fdatasync for each file": f"syncfs={1 << 30}",
}


@click.command()
@click.option("--files", default=256, show_default=True, type=click.IntRange(1))
@click.option("--mib", default=8, show_default=True, type=click.IntRange(1), help="MiB of each file.")
@click.option("--zeros", default=0, show_default=True, type=click.IntRange(0, 100), help="Percent of zero pages.")
@common(rounds=5)
def chunk(files: int, mib: int, zeros: int, rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """The buffer size of the method read, from 256 KiB to 8 MiB."""
    sizes = [LEAST_KIB << step for step in range((MOST_KIB // LEAST_KIB).bit_length())]
    outcome = Outcome("chunk", header(dest, WARM))
    tweaks = {f"{size} KiB": f"buffer={size << 10}" for size in sizes}
    with huge_files(files, mib, zeros=zeros) as sources:
        compare(outcome, sources, tweaks, rounds=rounds, dest=dest, settle=settle)
    outcome.show(json_file)


@click.command()
@click.option("--files", default=256, show_default=True, type=click.IntRange(1))
@click.option("--mib", default=8, show_default=True, type=click.IntRange(1), help="MiB of each file.")
@common(rounds=5)
def lanes(files: int, mib: int, rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """The number of worker threads, from 1 to 8."""
    outcome = Outcome("lanes", header(dest, WARM))
    tweaks = {f"{number} lanes": f"lanes={number}" for number in LANES}
    with huge_files(files, mib) as sources:
        compare(outcome, sources, tweaks, rounds=rounds, dest=dest, settle=settle)
    outcome.show(json_file)


@click.command()
@click.option("--files", default=3000, show_default=True, type=click.IntRange(1))
@click.option("--mib", default=2, show_default=True, type=click.IntRange(1), help="MiB of each file.")
@common(rounds=3)
def group(files: int, mib: int, rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """Durability: one syncfs per group or one fdatasync per file, with 3000 files of 2 MiB."""
    outcome = Outcome("group", header(dest, WARM))
    with huge_files(files, mib) as sources:
        compare(outcome, sources, GROUPS, rounds=rounds, dest=dest, settle=settle)
    outcome.show(json_file)


def compare(
    outcome: Outcome, sources: Sources, tweaks: Mapping[str, str], *, rounds: int, dest: str, settle: float
) -> None:
    """Run asyncdump with one tweak after another."""
    with workplace(dest, settle) as (place, scratch):
        manifest = peers.write_manifest(scratch, sources)
        lineup = [tweaked(name, tweak, manifest, sources) for name, tweak in tweaks.items()]
        runs = run_rounds(lineup, place, rounds)
    outcome.add_runs(sources.title, runs, sources.bytes)


def tweaked(name: str, tweak: str, manifest: str, sources: Sources) -> Peer:
    def command(folder: str) -> list[str]:
        return [sys.executable, "-m", "bench.tweaked", tweak, manifest, "--output", folder, "--quiet"]

    return Peer(name=name, command=command, bytes=sources.bytes)
