"""The progress line and the closing lines of dd."""

from __future__ import annotations

import sys
import time

from asyncdump.cli.dd.operands import Operands
from asyncdump.transfer.copy import Copied


class Ticker:
    """Shows the progress of a copy once a second, each time over the previous line."""

    def __init__(self, tally: Copied, began: float) -> None:
        self.shown = False
        self._tally = tally
        self._began = self._last = began

    def __call__(self) -> None:
        if (now := time.perf_counter()) - self._last >= 1:
            self.shown, self._last = True, now
            print(f"\r{rate_line(self._tally.bytes, now - self._began)}", end="", file=sys.stderr, flush=True)


def summary(count: int, operands: Operands, seconds: float) -> list[str]:
    """Return dd's closing lines."""
    if operands.status == "none":
        return []
    records = f"{count // operands.block}+{int(count % operands.block > 0)} records"
    lines = [f"{records} in", f"{records} out"]
    return lines if operands.status == "noxfer" else [*lines, rate_line(count, seconds)]


def rate_line(count: int, seconds: float) -> str:
    """Return ``2097152 bytes (2.1 MB, 2.0 MiB) copied, 0.0012 s, 1.7 GB/s``."""
    sizes = f" ({_human(count, 1000)}, {_human(count, 1024)})" if count >= 1000 else ""  # noqa: PLR2004
    noun = "byte" if count == 1 else "bytes"
    return f"{count} {noun}{sizes} copied, {seconds:.6g} s, {_human(count / max(seconds, 1e-9), 1000)}/s"


def _human(count: float, base: int) -> str:
    units = ("B", "kB", "MB", "GB", "TB") if base == 1000 else ("B", "KiB", "MiB", "GiB", "TiB")  # noqa: PLR2004
    power = 0
    while count >= base and power < len(units) - 1:
        count /= base
        power += 1
    return f"{count:.1f} {units[power]}" if count < 10 and power else f"{count:.0f} {units[power]}"  # noqa: PLR2004
