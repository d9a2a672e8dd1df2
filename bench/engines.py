"""How fast is each method, for each kind of source?"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import click

from asyncdump.engines import ENGINES
from bench import peers
from bench.host import header
from bench.keeper import folder_in
from bench.measure import evict, files_in, output_of
from bench.options import common, workplace
from bench.rounds import clear
from bench.sources import MIB, Sources, fill, huge_files
from bench.table import GIB, Outcome

STATE = "hugetlbfs and tmpfs sources warm; sources on disk cold (evicted before each run)"


@click.command()
@click.option("--files", default=64, show_default=True, type=click.IntRange(1))
@click.option("--mib", default=8, show_default=True, type=click.IntRange(1), help="MiB of each file.")
@click.option("--checksum", type=click.Choice(["none", "xxh128", "blake3", "sha256"]), default="none")
@common(rounds=3)
def engines(files: int, mib: int, checksum: str, rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """Every method with every kind of source, durable: GiB/s and CPU seconds per GiB, or the errno of the refusal."""
    outcome = Outcome("engines", header(dest, STATE))
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with workplace(dest, settle) as (place, scratch), _kinds(files, mib, dest) as kinds:
        for kind, sources in kinds.items():
            manifest = peers.write_manifest(scratch, sources)
            results[kind] = {method: [] for method in ENGINES}
            for number in range(rounds):
                methods = list(ENGINES)
                turn = number % len(methods)
                for method in (*methods[turn:], *methods[:turn]):
                    if kind == "disk":
                        for path in files_in(sources.folder):
                            evict(path)
                    output = os.path.join(place.folder, f"{method}-{number}")
                    command = [sys.executable, "-m", "bench.library", manifest, output, method, checksum]
                    results[kind][method].append(json.loads(output_of(command)))
                clear(place)
            click.echo(f"{kind} done", err=True)
    rows = [[method, *(cell(results[kind][method]) for kind in results)] for method in ENGINES]
    outcome.add_table(
        f"{files} x {mib} MiB of random bytes, checksum {checksum}: GiB/s (CPU s/GiB), medians of {rounds} rounds",
        ["", *results],
        rows,
    )
    outcome.data["engines"] = results
    outcome.show(json_file)


@contextmanager
def _kinds(files: int, mib: int, dest: str) -> Iterator[dict[str, Sources]]:
    with ExitStack() as stack:
        found = {"hugetlbfs": stack.enter_context(huge_files(files, mib))}
        for kind, place in (("tmpfs", "/dev/shm"), ("disk", dest)):
            folder = stack.enter_context(folder_in(place))
            fill(folder, files, mib * MIB)
            found[kind] = Sources(title=kind, folder=folder, files=files, bytes=files * mib * MIB, huge=False)
        yield found


def cell(runs: list[dict[str, Any]]) -> str:
    failed = [run for run in runs if "error" in run]
    if failed:
        return errno.errorcode.get(failed[0]["errno"] or 0, "refused")
    speed = median(run["bytes"] / GIB / run["seconds"] for run in runs)
    return f"{speed:.2f} ({median(run['cpu'] / run['bytes'] * GIB for run in runs):.2f})"
