"""Where the library's records go on the command line: to stderr, for people or for programs."""

from __future__ import annotations

import sys

from asyncdump import log


def configure_later(form: str) -> None:
    """Have structlog configured (``console`` or ``json``) when the first record comes: most runs have none."""
    log.setups.append(lambda: _configure(form))


def _configure(form: str) -> None:
    import os

    import structlog

    colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    renderer = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=colours)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=lambda *_: structlog.WriteLogger(_Stderr()),  # type: ignore[arg-type] # it only writes
    )


class _Stderr:
    """stderr as it is at the moment: the progress bar puts itself in its place to keep records above it."""

    def write(self, line: str) -> None:
        sys.stderr.write(line)

    def flush(self) -> None:
        sys.stderr.flush()
