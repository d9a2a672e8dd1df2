"""The choice of how progress is shown: a bar, plain lines, JSON, or not at all."""

from __future__ import annotations

import os
import sys

from asyncdump.cli.json_lines import Json
from asyncdump.cli.listener import DUMPING, Listener, Words
from asyncdump.cli.plain import Plain


def new_listener(progress: str, words: Words = DUMPING) -> Listener:
    """Return the listener of that name; ``auto`` is a bar on a terminal and plain lines otherwise."""
    if progress == "auto":
        progress = "bar" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "plain"
    match progress:
        case "bar":
            from asyncdump.cli.bar import Bar

            return Bar(words)
        case "plain":
            return Plain(words)
        case "json":
            return Json()
        case _:
            return Listener()
