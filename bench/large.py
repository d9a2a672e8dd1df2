"""How close does asyncdump get to the device limit?"""

from __future__ import annotations

import click

from bench import peers
from bench.host import header
from bench.options import WARM, common, workplace
from bench.rounds import run_rounds
from bench.sources import huge_files
from bench.table import Bar, Median, Outcome


@click.command()
@click.option("--mib", default=4096, show_default=True, type=click.IntRange(64), help="MiB in total.")
@common(rounds=5)
def large(mib: int, rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """asyncdump compared with fio: 4 GiB of random huge pages, as 512 files and as a single file."""
    outcome = Outcome("large", header(dest, WARM), text=["", *peers.NOTES[-4:]])
    with workplace(dest, settle) as (place, scratch):
        for files, size in ((mib // 8, 8), (1, mib)):
            with huge_files(files, size) as sources:
                manifest = peers.write_manifest(scratch, sources)
                lineup = [
                    peers.asyncdump(peers.ASYNCDUMP, manifest, sources),
                    peers.asyncdump(peers.ASYNCDUMP_NONE, manifest, sources, ["--checksum", "none"]),
                    *peers.fio(sources),
                ]
                runs = run_rounds(lineup, place, rounds)
            outcome.add_runs(sources.title, runs, sources.bytes, (peers.FIO,))
            if peers.FIO in runs:
                value = Median.of(runs[peers.FIO]).wall / Median.of(runs[peers.ASYNCDUMP]).wall
                outcome.bars.append(Bar(what=f"{sources.title}, throughput against fio", value=value, limit=0.85))
    outcome.show(json_file)
