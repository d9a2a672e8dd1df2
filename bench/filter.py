"""What does a filter cost?"""

from __future__ import annotations

import json
import os
import shlex
import sys
from statistics import median

import click

from bench import peers
from bench.host import header
from bench.measure import output_of
from bench.options import WARM, common, workplace
from bench.rounds import Peer, run_rounds
from bench.sources import Sources, huge_files
from bench.table import Bar, Median, Outcome

NOTE = "dd: dd if=FILE bs=1M | cat | dd of=... bs=1M iflag=fullblock oflag=direct conv=fsync, one file at a time"


@click.command("filter")
@common(rounds=5)
def filters(rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """`cat` as a filter, compared with dd | cat | dd: one file of 2 GiB, and 256 files of 8 MiB; durable."""
    outcome = Outcome("filter", header(dest, WARM), text=["", NOTE])
    with workplace(dest, settle) as (place, scratch):
        for files, mib in ((1, 2048), (256, 8)):
            with huge_files(files, mib) as sources:
                manifest = _manifest(scratch, sources)
                ours = peers.asyncdump("asyncdump, filter: cat", manifest, sources, ["--allow-filters"])
                bare = ["--allow-filters", "--checksum", "none"]
                lineup = [ours, peers.asyncdump("the same, checksum none", manifest, sources, bare), _theirs(sources)]
                runs = run_rounds(lineup, place, rounds)
                outcome.add_runs(sources.title, runs, sources.bytes, (lineup[-1].name,))
                own = [_own(manifest, os.path.join(place.folder, f"own-{number}")) for number in range(rounds)]
            medians = [Median.of(runs[peer.name]) for peer in lineup]
            what = f"{sources.title}: throughput against dd | cat | dd"
            for middle, how in zip(medians, ("", ", checksum none"), strict=False):
                outcome.bars.append(Bar(what=what + how, value=medians[-1].wall / middle.wall, limit=1.2))
            for kind in ("user", "system"):
                share = 100 * median(taken[kind] / taken["seconds"] for taken in own)
                what = f"{sources.title}: {kind} CPU of this process, relative to the wall clock, checksum none"
                outcome.bars.append(Bar(what=what, value=share, limit=5, at_least=False, unit="%"))
    outcome.show(json_file)


def _manifest(scratch: str, sources: Sources) -> str:
    path = os.path.join(scratch, "filter.yaml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"version: 1\noutput: unused\ndumps:\n  - source: {sources.folder}/*\n    filter: [[cat]]\n")
    return path


def _theirs(sources: Sources) -> Peer:
    def command(folder: str) -> list[str]:
        read, write = 'dd if="$f" bs=1M status=none', "bs=1M iflag=fullblock oflag=direct conv=fsync status=none"
        loop = f'for f in *; do {read} | cat | dd of={shlex.quote(folder)}/"$f" {write} || exit; done'
        return ["sh", "-c", f"cd {shlex.quote(sources.folder)} && {loop}"]

    return Peer(name="dd | cat | dd", command=command, bytes=sources.bytes)


def _own(manifest: str, output: str) -> dict[str, float]:
    """Return the CPU seconds of a dump that the asyncdump process used, without those of the filters."""
    taken: dict[str, float] = json.loads(output_of([sys.executable, "-m", "bench.own", manifest, output]))
    return taken
