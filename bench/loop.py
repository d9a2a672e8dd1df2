"""Does the event loop stay responsive?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import click

from bench import peers
from bench.host import header
from bench.measure import output_of
from bench.options import WARM, common, workplace
from bench.rounds import clear
from bench.sources import huge_files
from bench.table import GIB, Bar, Outcome

LOOPS = ("asyncio", "uvloop")
STATES = ("idle", "busy")


@click.command()
@click.option("--files", default=256, show_default=True, type=click.IntRange(1))
@click.option("--mib", default=8, show_default=True, type=click.IntRange(1), help="MiB of each file.")
@click.option("--compress", type=click.Choice(["none", "zstd", "lz4"]), default="none", show_default=True)
@common(rounds=5)
def loop(files: int, mib: int, compress: str, rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """How late does a heartbeat of 1 ms fire while `await dump_all()` dumps 256 files with checksums?"""
    outcome = Outcome("loop", header(dest, WARM))
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in LOOPS}
    speeds: dict[str, list[float]] = {name: [] for name in LOOPS}
    with workplace(dest, settle) as (place, scratch), huge_files(files, mib, zeros=40, structured=40) as sources:
        manifest = peers.write_manifest(scratch, sources)
        for number in range(rounds):
            for name in LOOPS if number % 2 else LOOPS[::-1]:
                output = os.path.join(place.folder, f"{name}-{number}")
                taken = json.loads(output_of([sys.executable, "-m", "bench.heart", name, manifest, output, compress]))
                found[name].append({state: taken[state] for state in STATES})
                speeds[name].append(taken["bytes"] / GIB / taken["seconds"])
            clear(place)
    rows = []
    for name in LOOPS:
        for state in STATES:
            lags = sorted(lag * 1000 for run in found[name] for lag in run[state])
            speed = f"{sorted(speeds[name])[rounds // 2]:.2f}" if state == "busy" else ""
            values = (percentile(lags, 50), percentile(lags, 99), lags[-1])
            rows.append([f"{name}, {state}", str(len(lags)), *(f"{value:.2f}" for value in values), speed])
            if state == "busy":
                what = f"{name}, lag p99 over {sources.title}"
                outcome.bars.append(Bar(what=what, value=values[1], limit=5, at_least=False, unit="ms"))
    outcome.add_table(
        f"lag of a 1 ms heartbeat, ms, all beats of {rounds} rounds: {sources.title}, compress: {compress}",
        ["", "beats", "p50", "p99", "max", "GiB/s"],
        rows,
    )
    outcome.data["lags"] = found
    outcome.show(json_file)


def percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
