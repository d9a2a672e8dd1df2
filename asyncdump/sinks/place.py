"""What a sink and a place are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from asyncdump.errors import DumpError
from asyncdump.sinks.file import Sink


class Synced(Protocol):
    """What can be made durable: ``sync`` returns the error, if any."""

    def sync(self) -> DumpError | None: ...


class Place(Protocol):
    """Where sinks are made and get their names: a `Folder`, or what stands for one.

    Attributes:
        path: what reports call it.
        filesystem: as statfs(2) names it, or what stands for that.
        sequential: whether its sinks take bytes only one behind the other.
    """

    @property
    def path(self) -> str: ...

    @property
    def filesystem(self) -> str: ...

    @property
    def sequential(self) -> bool: ...

    def create(self, name: str) -> Sink:
        """Return the sink for a name."""

    def publish(
        self, sinks: Any, *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Make sinks durable and give them their names; return the error of each, or None."""

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Write small files of our own."""

    def close(self) -> None:
        """Give back what it holds."""
