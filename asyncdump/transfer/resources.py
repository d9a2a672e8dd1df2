"""What the transfers of one run share."""

from __future__ import annotations

import msgspec

from asyncdump.codecs.zstd import Compressors
from asyncdump.kernel.lane import Buffers
from asyncdump.sinks.place import Store
from asyncdump.vocabulary.stop import Stop


class Resources(msgspec.Struct, frozen=True):
    """What the transfers of one run share; each part may be used by any thread.

    Attributes:
        stop: ends the run.
        compressors: as many at work at once as there are cores.
        buffers: those that are on their way from one thread to another.
        store: where dumps are that are read back, or None where none are.
    """

    stop: Stop
    compressors: Compressors
    buffers: Buffers
    store: Store | None = None


def resources(stop: Stop, store: Store | None = None) -> Resources:
    """Return the resources of one run."""
    return Resources(stop=stop, compressors=Compressors(stop.check), buffers=Buffers(), store=store)
