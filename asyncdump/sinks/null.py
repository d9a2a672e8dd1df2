"""A sink and a place that keep nothing: what is written to them is only looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final

from asyncdump.errors import DumpError
from asyncdump.sinks.file import Sink
from asyncdump.sinks.place import Synced


class NullSink(Sink):
    """Takes bytes and forgets them."""

    def __init__(self, path: str) -> None:
        super().__init__(-1, path, direct=False)

    def status(self) -> tuple[int, int]:
        return 0, 0

    def resize(self, size: int) -> None:
        """Nothing: it has no size."""

    def write(self, data: memoryview, offset: int) -> None:
        self._count(len(data))

    def write_cached(self, data: memoryview, offset: int, flags: int = 0) -> None:
        self.write(data, offset)

    def flush_behind(self, offset: int, length: int) -> None:
        """Nothing: there is nothing to flush."""


class NullPlace:
    """Stands for the output folder where dumps are only read."""

    filesystem: Final = "nowhere"
    sequential: Final = False

    def __init__(self, path: str) -> None:
        self.path: Final = path

    def create(self, name: str) -> NullSink:
        return NullSink(os.path.join(self.path, name))

    def publish(
        self, sinks: Sequence[Sink], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Close the sinks."""
        for sink in sinks:
            sink.close()
        return [None] * len(sinks)

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
