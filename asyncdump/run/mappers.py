"""Which processes have the sources of a run mapped: searched once, in a separate thread, while dumping begins."""

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
"""The maximum number of mappings recorded for one source; of any others, only the number is recorded."""

SECONDS: Final = 0.5
"""The time limit of the search: 100 processes take about 5 ms."""


class Mappers:
    """The mappings of the sources of one run, from /proc. Failures are not errors: such mappings are not recorded.

    Call `start` once the lanes of the run have been started: they need their threads more. `of` waits until the search
    is finished, which takes at most `SECONDS` from then; its result is final. Call `end` when the run ends.
    """

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._files = {(source.device, source.inode) for source in sources if source.inode}
        self._found: Final[defaultdict[FileKey, list[ProcessMapping]]] = defaultdict(list)
        self._left_out: Final[Counter[FileKey]] = Counter()
        self._over: Final = Event()
        if not self._files:
            self._over.set()
        self._ended = False
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin the search, once."""
        if self._files and self._thread is None:
            try:
                self._thread = start(self._look)
            except DumpError as error:
                self._over.set()
                logger().info("mappings_unknown", error=str(error))

    def end(self) -> None:
        """Stop the search and wait for its thread."""
        self._ended = True
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def of(self, source: Source) -> tuple[tuple[ProcessMapping, ...], int]:
        """Return the recorded mappings of a source, and the number of the others."""
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
        except Exception as error:  # noqa: BLE001 (any error: the dumps don't need the mappings)
            logger().info("mappings_unknown", error=str(error) or type(error).__name__)
        finally:
            self._files = set()  # The garbage collector would traverse it in each full collection.
            self._over.set()
