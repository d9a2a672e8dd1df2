"""The targets of a restore in the place of an output folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from asyncdump.errors import DumpError
from asyncdump.sinks.clash import clashes
from asyncdump.sinks.folder import Draft, Folder
from asyncdump.sinks.place import Synced


class Targets:
    """Stands for the output folder where each dump has a target of its own."""

    def __init__(self, path: str, paths: Mapping[str, str]) -> None:
        """Open the folders of ``paths``, from the names of dumps to those of targets, and keep other restores out.

        Raises:
            DumpError: one can't be created or opened, or another restore is at work in it.
        """
        self.path: Final = path
        self.sequential: Final = False
        self._paths: Final = paths
        self._folders: Final[dict[str, Folder]] = {}
        try:
            for place in sorted({os.path.dirname(target) for target in paths.values()} | {path}):
                folder = self._folders[place] = Folder(place)
                folder.lock()
                folder.sweep()
        except BaseException:
            self.close()
            raise
        kinds = {folder.filesystem for folder in self._folders.values()}
        self.filesystem: Final = kinds.pop() if len(kinds) == 1 else "several"

    def folder(self, name: str) -> Folder:
        """Return the folder that a dump goes to."""
        return self._folders[os.path.dirname(self._paths[name])]

    def create(self, name: str) -> Draft:
        return self.folder(name).create(os.path.basename(self._paths[name]))

    def publish(
        self, sinks: Sequence[Draft], *, durable: bool, overwrite: bool, journal: Synced | None = None
    ) -> list[DumpError | None]:
        """Do as `Folder.publish` does, in each folder."""
        errors: list[DumpError | None] = [None] * len(sinks)
        for folder in self._folders.values():
            places = [place for place, sink in enumerate(sinks) if sink.folder is folder]
            if places:
                found = folder.publish([sinks[place] for place in places], durable=durable, overwrite=overwrite)
                for place, error in zip(places, found, strict=True):
                    errors[place] = error
        return errors

    def clashes(self) -> Iterator[str]:
        """Yield the complaints about targets that are one file to their filesystem."""
        names: dict[str, list[str]] = defaultdict(list)
        for path in self._paths.values():
            names[os.path.dirname(path)].append(os.path.basename(path))
        for place, those in names.items():
            for name, other in clashes(self._folders[place], those):
                yield f"{name} and {other} are one name to the filesystem of {place}: map one elsewhere"

    def write_small(self, files: Mapping[str, bytes]) -> None:
        """Nothing: what is restored needs no receipt."""

    def close(self) -> None:
        for folder in self._folders.values():
            folder.close()
