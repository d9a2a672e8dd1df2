"""``python -m bench COMMAND``: each command answers one question."""

from __future__ import annotations

import signal

import click

from bench.codecs import lz4, zstd
from bench.constants import chunk, group, lanes
from bench.cores import cores
from bench.engines import engines
from bench.filter import filters
from bench.house import house
from bench.large import large
from bench.loop import loop
from bench.pairs import pairs
from bench.raw import raw
from bench.records import records
from bench.shapes import shapes
from bench.start import start
from bench.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Benchmarks of asyncdump and of other programs, measured in one run. Prints a table; --json FILE saves all runs.

    Most commands need root: they reserve huge pages and mount their own hugetlbfs, and always release both.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


for command in (
    raw,
    pairs,
    zstd,
    lz4,
    cores,
    filters,
    verify,
    large,
    shapes,
    loop,
    engines,
    chunk,
    lanes,
    group,
    start,
    records,
    house,
):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="python -m bench")
