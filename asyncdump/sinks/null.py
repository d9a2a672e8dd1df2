"""A sink and a place that discard everything: dumps are only read, to verify them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar, Final

from asyncdump.errors import DumpError
from asyncdump.sinks.place import PlacedSink, Synced
from asyncdump.sinks.plain import PlainSink


class NullSink(PlainSink):
    """Counts the bytes and discards them."""

    def write(self, data: memoryview, offset: int) -> None:
        self._count(len(data))


class NullPlace:
    """A place for dumps that are only read."""

    filesystem: ClassVar[str] = "nowhere"
    streams: ClassVar[bool] = False

    def __init__(self, path: str) -> None:
        self.path: Final = path

    def create(self, name: str) -> PlacedSink:
        return NullSink(os.path.join(self.path, name))

    def publish(
        self, sinks: Sequence[PlacedSink], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        for sink in sinks:
            sink.close()
        return [sink.lost for sink in sinks]

    def close(self) -> None:
        """Do nothing: nothing is open."""
