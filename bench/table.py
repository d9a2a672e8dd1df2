"""The output of a benchmark: a header, tables, and limits with PASS or FAIL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import click

from bench.measure import Measurement
from bench.rounds import Runs

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """The medians of the rounds of a peer, each computed separately."""

    wall: float
    cpu: float
    rss: float
    cached: float
    resident: float

    @classmethod
    def of(cls, runs: Sequence[Measurement]) -> Median:
        return cls(**{name: median(getattr(run, name) for run in runs) for name in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A performance limit and the measured value, which must be at least (or at most) the limit."""

    what: str
    value: float
    limit: float
    at_least: bool = True
    unit: str = "x"

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "PASS" if self.passed else "FAIL"
        return f"{verdict}  {self.what}: {self.value:.2f} {self.unit} (limit: {sign} {self.limit:g})"


@dataclass(slots=True)
class Outcome:
    """The results of one command, in the order in which they are printed. ``data`` is only in the JSON file."""

    command: str
    header: dict[str, str]
    text: list[str] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def add_table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.text += ["", title, *layout(head, rows)]

    def add_runs(self, title: str, runs: Runs, size: int, baselines: Sequence[str] = ()) -> None:
        """Add a table of peers. A column for each baseline shows the throughput as a multiple of it."""
        medians = {name: Median.of(taken) for name, taken in runs.items()}
        known = [name for name in baselines if name in medians]
        head = ["", "wall s", "min - max", "GiB/s", "cpu s", "RSS MiB", "cache +MiB", "output cached MiB"]
        rows = []
        for name, middle in medians.items():
            walls = [run.wall for run in runs[name]]
            rows.append(
                [
                    name,
                    f"{middle.wall:.3f}",
                    f"{min(walls):.2f} - {max(walls):.2f}",
                    f"{size / GIB / middle.wall:.2f}",
                    f"{middle.cpu:.2f}",
                    f"{middle.rss / MIB:.0f}",
                    f"{middle.cached / MIB:.0f}",
                    f"{middle.resident / MIB:.0f}",
                    *(f"{medians[other].wall / middle.wall:.2f}x" for other in known),
                ]
            )
        rounds = len(next(iter(runs.values())))
        self.add_table(
            f"{title}: medians of {rounds} rounds", [*head, *(f"vs {name.split()[0]}" for name in known)], rows
        )
        self.add_data(title, runs)

    def add_data(self, title: str, runs: Runs) -> None:
        self.data[title] = {name: [asdict(run) for run in taken] for name, taken in runs.items()}

    def show(self, path: str | None) -> None:
        width = max(map(len, self.header))
        for name, value in self.header.items():
            click.echo(f"{name:{width}}  {value}")
        for line in (*self.text, "", *map(str, self.bars)):
            click.echo(line.rstrip())
        if path is not None:
            self._save(path)

    def _save(self, path: str) -> None:
        bars = [{**asdict(bar), "passed": bar.passed} for bar in self.bars]
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"command": self.command, "header": self.header, "runs": self.data, "bars": bars}, file, indent=1)
            file.write("\n")


def layout(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a table as lines of text, with the first column left-aligned and the others right-aligned."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
