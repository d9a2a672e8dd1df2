"""The targets of a restore, instead of an output directory."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Final

from asyncdump.errors import DumpError
from asyncdump.sinks.place import PlacedSink, Store, Synced


class TargetsPlace:
    """A place in which each dump has its own target, in one of several stores."""

    streams: ClassVar[bool] = False

    def __init__(self, path: str, paths: Mapping[str, str], opened: Callable[[str], Store]) -> None:
        """Open and lock the directories of ``paths``, which maps the names of dumps to the paths of targets.

        Raises:
            DumpError: a directory can't be created or opened, or another run is using it.
        """
        self.path: Final = path
        self.sequential: Final = False
        self._paths: Final = paths
        self._stores: Final[dict[str, Store]] = {}
        try:
            for place in sorted({os.path.dirname(target) for target in paths.values()} | {path}):
                store = self._stores[place] = opened(place)
                store.lock()
                store.sweep()
        except BaseException:
            self.close()
            raise
        kinds = {store.filesystem for store in self._stores.values()}
        self.filesystem: Final = kinds.pop() if len(kinds) == 1 else "several"

    def store(self, name: str) -> Store:
        """Return the store of the target of a dump."""
        return self._stores[os.path.dirname(self._paths[name])]

    def create(self, name: str) -> PlacedSink:
        return self.store(name).create(os.path.basename(self._paths[name]))

    def publish(
        self, sinks: Sequence[PlacedSink], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Publish the sinks of each store together."""
        errors: list[DumpError | None] = [None] * len(sinks)
        groups: dict[str, list[int]] = defaultdict(list)
        for number, sink in enumerate(sinks):
            groups[os.path.dirname(sink.path)].append(number)
        for place, numbers in groups.items():
            group = [sinks[number] for number in numbers]
            found = self._stores[place].publish(group, durable=durable, overwrite=overwrite, journal=journal)
            for number, error in zip(numbers, found, strict=True):
                errors[number] = error
        return errors

    def clashes(self) -> Iterator[str]:
        """Yield complaints about targets whose names are the same to their filesystem."""
        names: dict[str, list[str]] = defaultdict(list)
        for path in self._paths.values():
            names[os.path.dirname(path)].append(os.path.basename(path))
        for place, those in names.items():
            for name, other in self._stores[place].clashes(those):
                same = f"{name} and {other} are the same name on the filesystem of {place}"
                yield f"{same}: choose a different target for one of them"

    def close(self) -> None:
        for store in self._stores.values():
            store.close()
