"""The command line of asyncdump with different constants: ``tweaked NAME=VALUE MANIFEST [OPTION]...``.

Names: ``buffer`` (buffer size of the method read, in bytes), ``lanes`` (worker threads), ``syncfs`` (the smallest group
of dumps that is synced by one syncfs), ``group`` (the largest group of dumps that the committer syncs).
"""

from __future__ import annotations

import sys

from asyncdump.engines.read import Read
from asyncdump.kernel import lane
from asyncdump.run import scheduler
from asyncdump.sinks import folder


def tweak(name: str, value: int) -> None:
    if name == "buffer":
        lane.BUFFER = value  # type: ignore[misc] # overriding a Final is the purpose
        lane.Buffer.__init__.__defaults__ = (value,)
        Read.span = value
    elif name == "lanes":
        vars(scheduler)["default_lanes"] = lambda _: value
    elif name == "syncfs":
        folder._GROUP_FOR_SYNCFS = value  # type: ignore[misc] # noqa: SLF001 (the constant in question)
    elif name == "group":
        scheduler._GROUP = value  # type: ignore[misc] # noqa: SLF001 (the constant in question)
    else:
        raise SystemExit(f"{name} is not a constant")


def main() -> None:
    from asyncdump.__main__ import main as asyncdump

    name, _, value = sys.argv.pop(1).partition("=")
    tweak(name, int(value))
    asyncdump()


if __name__ == "__main__":
    main()
