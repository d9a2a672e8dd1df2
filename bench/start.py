"""What does starting asyncdump cost?"""

from __future__ import annotations

import os
import sys

import click

from bench import peers
from bench.host import header
from bench.measure import measure
from bench.options import common, workplace
from bench.rounds import Runs
from bench.sources import found_files
from bench.table import Bar, Median, Outcome

VERSION = "asyncdump --version"


@click.command()
@common(rounds=20)
def start(rounds: int, dest: str, settle: float, json_file: str | None) -> None:
    """The start-up time of the command line: --version, --help, and the dump of one file of 4 KiB."""
    outcome = Outcome("start", header(dest, "warm: modules are compiled and in the page cache"))
    us = [sys.executable, "-m", "asyncdump"]
    with workplace(dest, settle) as (place, scratch):
        source = os.path.join(scratch, "source")
        os.mkdir(source)
        with open(os.path.join(source, "page"), "wb") as file:
            file.write(os.urandom(4096))
        manifest = peers.write_manifest(scratch, found_files(source))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            VERSION: [*us, "--version"],
            "asyncdump --help": [*us, "--help"],
            "a dump of 4 KiB": [*us, manifest, "--quiet", "--output"],
        }
        runs: Runs = {name: [] for name in commands}
        for number in range(rounds):
            for name, command in commands.items():
                output = [os.path.join(place.folder, str(number))] if command[-1] == "--output" else []
                runs[name].append(measure([*command, *output]))
    rows = [
        [name, *(f"{value * 1000:.1f}" for value in (middle.wall, middle.cpu)), f"{middle.rss / (1 << 20):.0f}"]
        for name, middle in ((name, Median.of(taken)) for name, taken in runs.items())
    ]
    outcome.add_table(f"start-up: medians of {rounds} rounds", ["", "wall ms", "cpu ms", "RSS MiB"], rows)
    outcome.add_data("starting", runs)
    wall = Median.of(runs[VERSION]).wall * 1000
    outcome.bars.append(Bar(what=VERSION, value=wall, limit=100, at_least=False, unit="ms"))
    outcome.show(json_file)
