"""What do the records cost: block digests in addition to the digest of the file, and the search for mappings?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import click
import xxhash

from asyncdump.kernel.lane import Buffer
from asyncdump.kernel.processes import find_mappings
from asyncdump.vocabulary.blocks import BLOCK
from asyncdump.vocabulary.digest import Hasher
from bench import peers
from bench.constants import tweaked
from bench.host import header
from bench.options import WARM, common, workplace
from bench.pairs import ratios_of
from bench.rounds import Peer, Runs, run_rounds
from bench.sources import Sources, huge_files
from bench.table import Bar, Outcome

ALL = "as it is"
NEITHER = "neither"
LINEUP = {
    "no digests of blocks": "blocks=0",
    "no mappings": "mappings=0",
    NEITHER: "records=0",
}
MOST_WALL, MOST_CPU = 1.02, 1.05
_TIMES, _TRIES = 400, 7


@click.command()
@click.option("--files", default=256, show_default=True, type=click.IntRange(1))
@click.option("--mib", default=8, show_default=True, type=click.IntRange(1), help="MiB of each file.")
@common(rounds=11)
def records(files: int, mib: int, rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """A raw dump with all records, and without the costly ones: at most 2 % of wall-clock time and 5 % of CPU time."""
    outcome = Outcome("records", header(dest, WARM))
    with huge_files(files, mib) as sources:
        with workplace(dest, settle) as (place, scratch):
            manifest = peers.write_manifest(scratch, sources)
            lineup = [
                _plain(manifest, sources),
                *(tweaked(name, tweak, manifest, sources) for name, tweak in LINEUP.items()),
            ]
            runs = run_rounds(lineup, place, rounds)
        outcome.add_runs(sources.title, runs, sources.bytes)
        _add_ratios(outcome, runs)
    outcome.add_table("in memory that is in the caches, by itself", ["", "us"], _by_itself())
    outcome.show(json_file)


def _plain(manifest: str, sources: Sources) -> Peer:
    def command(folder: str) -> list[str]:
        return [sys.executable, "-m", "asyncdump", manifest, "--output", folder, "--quiet"]

    return Peer(name=ALL, command=command, bytes=sources.bytes)


def _add_ratios(outcome: Outcome, runs: Runs) -> None:
    rows = []
    for name in (ALL, *LINEUP):
        found = [ratios_of(runs, name, NEITHER, figure) for figure in ("wall", "cpu")]
        rows.append([name, *(f"{median(each):.3f} ({min(each):.2f} - {max(each):.2f})" for each in found)])
    outcome.add_table(f"by {NEITHER}, round by round: median (min - max)", ["", "wall", "cpu"], rows)
    for figure, limit in (("wall", MOST_WALL), ("cpu", MOST_CPU)):
        ratio = median(ratios_of(runs, ALL, NEITHER, figure))
        outcome.bars.append(
            Bar(what=f"{figure} with all by that with {NEITHER}", value=ratio, limit=limit, at_least=False)
        )


def _by_itself() -> list[list[str]]:
    view = Buffer(BLOCK).view
    view[:] = bytes(range(256)) * (BLOCK // 256)
    whole = xxhash.xxh3_128()
    both = Hasher(xxhash.xxh3_128())
    steps: dict[str, Callable[[], object]] = {
        "the digest of the whole, for each 2 MiB": lambda: whole.update(view),
        "the digest of a block of 2 MiB": lambda: xxhash.xxh3_64_digest(view),
        "both, as a dump takes them": lambda: both.update(view),
        "both, of the first block of a file": lambda: Hasher(xxhash.xxh3_128(), halves=True).update(view),
    }
    rows = [[name, f"{1e6 * _fastest(step, _TIMES):.1f}"] for name, step in steps.items()]
    look = _fastest(lambda: list(find_mappings([(1, 1)], 60.0)), 3)
    return [*rows, ["to look who of all processes has a file mapped, once a run", f"{1e6 * look:.0f}"]]


def _fastest(step: Callable[[], object], times: int) -> float:
    """Return the seconds for one of ``times`` calls, from the fastest trial."""
    best = float("inf")
    for _ in range(_TRIES):
        began = time.perf_counter()
        for _ in range(times):
            step()
        best = min(best, (time.perf_counter() - began) / times)
    return best
