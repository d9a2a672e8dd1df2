"""How long does it take to dump huge pages to disk, compared with other programs?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import click

from bench import peers
from bench.host import header
from bench.options import WARM, common, workplace
from bench.rounds import Runs, run_rounds
from bench.sources import Sources, found_files, huge_files
from bench.table import MIB, Bar, Median, Outcome

BASELINES = (peers.XARGS, peers.DD, peers.FIO)


@click.command()
@click.option("--files", default=256, show_default=True, type=click.IntRange(1))
@click.option("--mib", default=8, show_default=True, type=click.IntRange(1), help="MiB of each file.")
@click.option("--zeros", type=click.IntRange(0, 100), multiple=True, default=(40, 0), help="Percent of zero pages.")
@click.option("--source", type=click.Path(exists=True, file_okay=False), help="Dump the files in this directory.")
@common(rounds=5)
def raw(
    files: int,
    mib: int,
    zeros: tuple[int, ...],
    source: str | None,
    rounds: int,
    dest: str,
    settle: float,
    json_file: str | None,
) -> None:
    """asyncdump compared with dd, xargs, cp and fio: 256 files of 8 MiB on hugetlbfs, durable."""
    outcome = Outcome("raw", header(dest, WARM), text=["", *peers.NOTES])
    with workplace(dest, settle) as (place, scratch):
        for percent in zeros if source is None else (None,):
            with _sources(files, mib, percent, source) as sources:
                manifest = peers.write_manifest(scratch, sources)
                lineup = [
                    peers.asyncdump(peers.ASYNCDUMP, manifest, sources),
                    peers.asyncdump(peers.ASYNCDUMP_NONE, manifest, sources, ["--checksum", "none"]),
                    peers.xargs(sources),
                    peers.dd(sources),
                    peers.cp(sources),
                    *peers.fio(sources),
                ]
                runs = run_rounds(lineup, place, rounds)
            outcome.add_runs(sources.title, runs, sources.bytes, BASELINES)
            if percent is not None:
                outcome.bars += bars(runs, percent)
    outcome.show(json_file)


@contextmanager
def _sources(files: int, mib: int, percent: int | None, source: str | None) -> Iterator[Sources]:
    made = huge_files(files, mib, zeros=percent or 0) if source is None else nullcontext(found_files(source))
    with made as sources:
        yield sources


def bars(runs: Runs, percent: int) -> list[Bar]:
    """Return the performance limits, for 40 % zero pages or for random pages."""
    medians = {name: Median.of(taken) for name, taken in runs.items()}
    ours, bare, shell = medians[peers.ASYNCDUMP], medians[peers.ASYNCDUMP_NONE], medians[peers.XARGS]
    label = f"{percent} % zero" if percent else "random"

    def bar(what: str, value: float, limit: float, *, at_least: bool = True, unit: str = "x") -> Bar:
        return Bar(what=f"{label}, {what}", value=value, limit=limit, at_least=at_least, unit=unit)

    found = [bar("throughput against xargs", shell.wall / ours.wall, 1.35 if percent else 1.15)]
    if percent:
        found.append(bar("throughput against dd bs=4096", medians[peers.DD].wall / ours.wall, 4))
    else:
        found += [
            bar("checksum none, throughput against xargs", shell.wall / bare.wall, 1.3),
            bar("checksum none, CPU against xargs", bare.cpu / shell.cpu, 0.45, at_least=False),
        ]
    return [
        *found,
        bar("CPU against xargs", ours.cpu / shell.cpu, 0.6, at_least=False),
        bar("output left in the page cache", ours.resident / MIB, 64, at_least=False, unit="MiB"),
        bar("growth of the host's page cache", ours.cached / MIB, 64, at_least=False, unit="MiB"),
        bar("peak memory", ours.rss / MIB, 120, at_least=False, unit="MiB"),
    ]
