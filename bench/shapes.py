"""How does asyncdump perform with thousands of small files, and with a few huge ones?"""

from __future__ import annotations

import click

from bench import peers
from bench.host import header, meminfo
from bench.options import WARM, common, workplace
from bench.rounds import run_rounds
from bench.sources import MIB, huge_files
from bench.table import Outcome

SMALL = 2


@click.command()
@click.option("--small", default=3000, show_default=True, type=click.IntRange(0), help="Most files of 2 MiB.")
@click.option("--gib", default=4, show_default=True, type=click.IntRange(0), help="Files of 1 GiB.")
@common(rounds=3)
def shapes(small: int, gib: int, rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """asyncdump compared with xargs: 3000 files of 2 MiB (as with SPDK), and files of 1 GiB."""
    outcome = Outcome("shapes", header(dest, WARM), text=["", *peers.NOTES[1:2], *peers.NOTES[-2:]])
    with workplace(dest, settle) as (place, scratch):
        for files, size in ((as_many(small), SMALL), (gib, 1024)):
            if not files:
                continue
            with huge_files(files, size) as sources:
                manifest = peers.write_manifest(scratch, sources)
                lineup = [
                    peers.asyncdump(peers.ASYNCDUMP, manifest, sources),
                    peers.asyncdump(peers.ASYNCDUMP_NONE, manifest, sources, ["--checksum", "none"]),
                    peers.xargs(sources),
                ]
                runs = run_rounds(lineup, place, rounds)
            outcome.add_runs(sources.title, runs, sources.bytes, (peers.XARGS,))
    outcome.show(json_file)


def as_many(files: int) -> int:
    """Return how many files of 2 MiB fit into half of the free memory, at most ``files``."""
    return min(files, meminfo()["MemAvailable"] // 2 // (SMALL * MIB))
