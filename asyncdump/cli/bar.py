"""The progress bar: a line for the total, and below it a line for each file in flight."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncdump.cli.listener import DUMPING, Listener, Words
from asyncdump.run.tally import Tally
from asyncdump.text import text
from asyncdump.vocabulary.size import format_size
from asyncdump.vocabulary.tables import cut

_MOST_LINES = 8
_NARROW = 60


class Bar(Tally, Listener):
    """Draws on stderr four times a second; log records appear above it."""

    def __init__(self, words: Words = DUMPING) -> None:
        super().__init__()
        self.words: Final = words
        self._console = Console(stderr=True)
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def _draw(self) -> RenderableType:
        width = self._console.width
        narrow = width < _NARROW
        room = max(0, min(_MOST_LINES, self._console.height - 4))
        return Group(self._total(narrow=narrow), *self._files(room, width, narrow=narrow))

    def _total(self, *, narrow: bool) -> RenderableType:
        share = self.moved / self.total if self.total else 1.0
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(ratio=1)
        cells: list[RenderableType] = [ProgressBar(total=1.0, completed=share)]
        figures = [f"{share:4.0%}", f"{format_size(self.rate)}/s", _eta(self.total - self.moved, self.rate)]
        if not narrow:
            figures.insert(1, f"{format_size(self.moved)} of {format_size(self.total)}")
        cells += [Text(figure, no_wrap=True) for figure in figures]
        for _ in figures:
            line.add_column(no_wrap=True)
        line.add_row(*cells)
        counts = f"{self.finished} of {self.files} files {self.words.done}"
        failed = Text(f", {self.failed} failed", style="red") if self.failed else Text("")
        return Group(line, Text(counts, style="dim", no_wrap=True).append_text(failed))

    def _files(self, room: int, width: int, *, narrow: bool) -> list[RenderableType]:
        lines: list[RenderableType] = []
        for progress in self.flying[-room:] if room else []:
            share = progress.done / progress.total if progress.total else 1.0
            figures = f"{share:4.0%}" if narrow else f"{share:4.0%}  {format_size(progress.total):>10}"
            tail = f"{figures}  {self.methods.get(progress.name, '')}"
            name = cut(text(progress.name), max(8, width - len(tail) - 4))
            lines.append(Text(f"  {name:<{max(8, width - len(tail) - 4)}}{tail}", no_wrap=True, overflow="crop"))
        return lines


def _eta(left: int, rate: float) -> str:
    if rate <= 0:
        return "-:--"
    minutes, seconds = divmod(round(left / rate), 60)
    return f"{minutes}:{seconds:02d} left"
