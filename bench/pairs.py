"""Is this version slower than another one? Both run alternately, with a ratio for each round."""

from __future__ import annotations

import sys
from statistics import median

import click

from bench import peers
from bench.host import header
from bench.options import WARM, common, workplace
from bench.rounds import Peer, Runs, run_rounds
from bench.sources import huge_files
from bench.table import Outcome

THIS = "this version"
OTHER = "the other"

_SHAPES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "zeros": (40, 0, ()),
    "random": (0, 0, ()),
    "no checksum": (0, 0, ("--checksum", "none")),
    "zstd:1": (40, 40, ("--compress", "zstd:1")),
    "zstd:3": (40, 40, ("--compress", "zstd:3")),
}
"""Percentage of zero pages, percentage of structured pages, options."""


@click.command()
@click.argument("python", metavar="PYTHON", type=click.Path(exists=True, dir_okay=False))
@click.option("--files", default=256, show_default=True, type=click.IntRange(1))
@click.option("--mib", default=8, show_default=True, type=click.IntRange(1), help="MiB of each file.")
@click.option("--only", type=click.Choice(list(_SHAPES)), multiple=True, help="Run only these shapes; default: all.")
@common(rounds=7)
def pairs(
    python: str,
    files: int,
    mib: int,
    only: tuple[str, ...],
    rounds: int,
    dest: str,
    settle: float,
    json_file: str | None,
) -> None:
    """Compare this asyncdump with the one in another environment, whose interpreter is PYTHON."""
    outcome = Outcome("pairs", header(dest, WARM), text=["", f"{OTHER}: {python} -m asyncdump", ""])
    with workplace(dest, settle) as (place, scratch):
        for name in only or _SHAPES:
            zeros, structured, options = _SHAPES[name]
            with huge_files(files, mib, zeros=zeros, structured=structured) as sources:
                manifest = peers.write_manifest(scratch, sources)
                lineup = [
                    _peer(THIS, sys.executable, manifest, options),
                    _peer(OTHER, python, manifest, options),
                ]
                runs = run_rounds(lineup, place, rounds)
            outcome.add_runs(f"{sources.title}; {name}", runs, sources.bytes)
            outcome.text.append(_ratios(runs))
    outcome.show(json_file)


def _peer(name: str, python: str, manifest: str, options: tuple[str, ...]) -> Peer:
    def command(folder: str) -> list[str]:
        quiet = ["--progress", "none", "--quiet"]
        # -P: import what is installed in the environment, not what is in the working directory.
        return [python, "-P", "-m", "asyncdump", manifest, "--output", folder, *quiet, *options]

    return Peer(name=name, command=command, bytes=1)


def _ratios(runs: Runs) -> str:
    found = []
    for figure in ("wall", "cpu"):
        ratios = ratios_of(runs, THIS, OTHER, figure)
        found.append(f"{figure} {median(ratios):.3f} ({min(ratios):.2f} - {max(ratios):.2f})")
    return f"this version divided by the other, per round, median (min - max): {', '.join(found)}"


def ratios_of(runs: Runs, this: str, other: str, figure: str) -> list[float]:
    """Return a figure of one peer divided by that of another, for each round."""
    return [getattr(one, figure) / getattr(two, figure) for one, two in zip(runs[this], runs[other], strict=True)]
