"""The command line of asyncdump with different constants: ``tweaked NAME=VALUE MANIFEST [OPTION]...``.

Names: ``buffer`` (buffer size of the method read, in bytes), ``lanes`` (worker threads), ``syncfs`` (the smallest group
of dumps that is synced by one syncfs), ``group`` (the largest group of dumps that the committer syncs). ``blocks=0``
computes no block digests, ``mappings=0`` doesn't search for mappings of the sources, ``records=0`` does neither.
"""

from __future__ import annotations

import sys

from asyncdump.engines.read import Read
from asyncdump.kernel import lane
from asyncdump.run import mappers, scheduler
from asyncdump.sinks import folder
from asyncdump.sinks.file import ZEROS
from asyncdump.vocabulary import digest
from asyncdump.vocabulary.digest import Hasher


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
    elif name in {"blocks", "mappings", "records"}:
        leave_out(blocks=name != "mappings", mappings=name != "blocks")
    else:
        raise SystemExit(f"{name} is not a constant")


def leave_out(*, blocks: bool, mappings: bool) -> None:
    """Switch off the costly records."""
    if blocks:
        vars(digest)["Hasher"] = Whole
    if mappings:
        vars(mappers)["find_mappings"] = lambda *_: ()


class Whole(Hasher):
    """Computes only the digest of the file."""

    def take(self, data: memoryview) -> tuple[int, memoryview]:
        self._digest.update(data)
        return 0, data[:0]

    def zeros(self, length: int) -> None:
        for done in range(0, length, len(ZEROS)):
            self._digest.update(ZEROS[: length - done])


def main() -> None:
    from asyncdump.__main__ import main as asyncdump

    name, _, value = sys.argv.pop(1).partition("=")
    tweak(name, int(value))
    asyncdump()


if __name__ == "__main__":
    main()
