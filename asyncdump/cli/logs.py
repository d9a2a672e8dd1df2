"""Log records on the command line: they go to stderr, as text or as JSON."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any

from asyncdump import log


def configure_later(form: str, *, summary: bool) -> None:
    """Configure structlog (``console`` or ``json``) when the first record is logged: most runs don't log any.

    If a ``summary`` will list the failures, the console doesn't: 200 files that fail for one reason would be 200 lines.
    """
    log.setups.append(lambda: _configure(form, summary=summary))


def _configure(form: str, *, summary: bool) -> None:
    import os

    import structlog

    def drop_failures(_logger: Any, _method: str, record: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if summary and form == "console" and record["event"] == "dump_failed":
            raise structlog.DropEvent
        return record

    colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    renderer = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=colours)
    structlog.configure(
        processors=[
            drop_failures,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=lambda *_: structlog.WriteLogger(_Stderr()),  # type: ignore[arg-type] # it only writes
    )


class _Stderr:
    """The current ``sys.stderr``: the progress bar replaces it to keep records above the bar."""

    def write(self, line: str) -> None:
        sys.stderr.write(line)

    def flush(self) -> None:
        sys.stderr.flush()
