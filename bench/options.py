"""What the commands have in common: options, and the directory that they work in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from bench.keeper import folder_in
from bench.measure import output_of
from bench.rounds import Place

Command = TypeVar("Command", bound=Callable[..., Any])

WARM = "sources warm (in memory); outputs into new directories, evicted after each run"


def common(rounds: int) -> Callable[[Command], Command]:
    """Add the options that all commands have."""

    def add(command: Command) -> Command:
        for option in (
            click.option("--settle", default=4.0, show_default=True, help="Seconds to wait after files were removed."),
            click.option(
                "--dest", default="/var/tmp", show_default=True, type=click.Path(exists=True, file_okay=False)
            ),
            click.option("--rounds", default=rounds, show_default=True, type=click.IntRange(1)),
            click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also save all runs here."),
        ):
            command = option(command)
        return command

    return add


@contextmanager
def workplace(dest: str, settle: float) -> Iterator[tuple[Place, str]]:
    """Yield the place that peers write to, and a directory for small files of the benchmark."""
    with folder_in(dest) as folder:
        outputs, scratch = os.path.join(folder, "outputs"), os.path.join(folder, "scratch")
        os.mkdir(outputs)
        os.mkdir(scratch)
        output_of([sys.executable, "-m", "asyncdump", "--help"])  # Compile the modules, as an installation does.
        yield Place(folder=outputs, settle=settle), scratch
