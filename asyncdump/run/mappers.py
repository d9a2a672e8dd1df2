"""Who has the sources of a run mapped: looked up once, by a thread of its own, while the first bytes are moved."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from threading import Event, Thread
from typing import Final

from asyncdump.errors import DumpError
from asyncdump.kernel.processes import FileKey, find_mappings
from asyncdump.log import logger
from asyncdump.run.threads import start
from asyncdump.text import text
from asyncdump.vocabulary.values import ProcessMapping, Source

MOST: Final = 64
"""Mappings that are recorded of one source; of more there is the number."""

SECONDS: Final = 0.5
"""How long processes are looked at: 100 of them take some 5 ms."""


class Mappers:
    """What /proc says of the sources of one run. Nothing of it is an error: what isn't found is not recorded.

    `start` it when the run begins, and `end` it with the run. Between the two, `of` waits until the look is over, which
    is `SECONDS` at most; what it returns doesn't change any more then.
    """

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._files = {(source.device, source.inode) for source in sources if source.inode}
        self._found: Final[defaultdict[FileKey, list[ProcessMapping]]] = defaultdict(list)
        self._left_out: Final[Counter[FileKey]] = Counter()
        self._over: Final = Event()
        self._over.set()
        self._ended = False
        self._thread: Thread | None = None

    def start(self) -> None:
        if self._files:
            self._over.clear()
            try:
                self._thread = start(self._look)
            except DumpError as error:
                self._over.set()
                logger().warning("mappings_unknown", error=str(error))

    def end(self) -> None:
        """Give up what isn't known yet; the thread has ended when this returns."""
        self._ended = True
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def of(self, source: Source) -> tuple[tuple[ProcessMapping, ...], int]:
        """Return which mappings of a source there were, and how many more."""
        self._over.wait()
        file = (source.device, source.inode)
        return tuple(self._found.get(file, ())), self._left_out[file]

    def _look(self) -> None:
        try:
            for file, found in find_mappings(self._files, SECONDS, lambda: self._ended):
                if len(self._found[file]) == MOST:
                    self._left_out[file] += 1
                    continue
                mapping = ProcessMapping(
                    pid=found.pid,
                    comm=text(found.comm.decode(errors="surrogateescape")),
                    started=found.started,
                    address=found.address,
                    offset=found.offset,
                    length=found.length,
                    inode=file[1],
                    shared=found.shared,
                )
                self._found[file].append(mapping)
        except Exception as error:  # noqa: BLE001 (whatever it is, the dumps don't need it)
            logger().warning("mappings_unknown", error=str(error) or type(error).__name__)
        finally:
            self._files = set()  # Nothing that grows with the files is kept for the garbage collector to look at.
            self._over.set()
