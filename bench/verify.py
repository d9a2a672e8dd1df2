"""How long do verify and restore take with a cold cache?"""

from __future__ import annotations

import os
import shlex
import shutil
import sys

import click

from bench import peers
from bench.host import header
from bench.measure import evict, files_in, measure, output_of
from bench.options import common, workplace
from bench.rounds import Runs
from bench.sources import huge_files
from bench.table import Outcome

COLD = "dumps cold: evicted from the page cache before each run"
NOTES = (
    "xxhsum: xxhsum --quiet -c XXH128SUMS, one process; zstd: printf '%s\\0' *.zst | xargs -0 -P2 -n16 zstd -tq",
    "cp: cp * ... && sync, into a separate directory, like restore",
)


@click.command()
@common(rounds=5)
def verify(rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """`asyncdump verify` and `restore` compared with xxhsum -c, zstd -t and cp: 256 dumps of 8 MiB, 40 % zero pages."""
    outcome = Outcome("verify", header(dest, COLD), text=["", *NOTES])
    with workplace(dest, settle) as (place, scratch), huge_files(256, 8, zeros=40) as sources:
        manifest = peers.write_manifest(scratch, sources)
        for how in ("none", "zstd:1"):
            dumps = os.path.join(place.folder, how)
            output_of([sys.executable, "-m", "asyncdump", manifest, "--output", dumps, "-q", "--compress", how])
            lineup = _lineup(dumps, os.path.join(scratch, "back"), raw=how == "none")
            runs: Runs = {name: [] for name in lineup}
            for number in range(rounds):
                for name, command in lineup.items():
                    for path in files_in(dumps):
                        evict(path)
                    taken = measure(command)
                    runs[name].append(taken)
                    click.echo(f"round {number + 1}/{rounds}: {taken.wall:8.3f} s  {name}", err=True)
                    shutil.rmtree(os.path.join(scratch, "back"), ignore_errors=True)
            outcome.add_runs(f"{sources.title}, stored {'raw' if how == 'none' else how}", runs, sources.bytes, ())
    outcome.show(json_file)


def _lineup(dumps: str, target: str, *, raw: bool) -> dict[str, list[str]]:
    """Return the command lines by name."""
    ours = [sys.executable, "-m", "asyncdump"]
    place, back = shlex.quote(dumps), shlex.quote(target)
    lineup = {
        "asyncdump verify": [*ours, "verify", dumps, "-q"],
        "asyncdump restore": [*ours, "restore", dumps, "--to", target, "-q"],
    }
    if raw:
        lineup["xxhsum -c"] = ["sh", "-c", f"cd {place} && xxhsum --quiet -c XXH128SUMS"]
        lineup["cp + sync"] = ["sh", "-c", f"mkdir {back} && cd {place} && cp -- * {back} && sync"]
    else:
        script = "printf '%s\\0' *.zst | xargs -0 -P2 -n16 zstd -tq"
        lineup["xargs -P2 zstd -t"] = ["sh", "-c", f"cd {place} && {script}"]
    return lineup
