"""The resources that all transfers of a run share."""

from __future__ import annotations

import msgspec

from asyncdump.codecs.compressors import Compressors
from asyncdump.kernel.lane import Buffers
from asyncdump.sinks.place import Store
from asyncdump.vocabulary.stop import Stop


class Resources(msgspec.Struct, frozen=True):
    """The resources that all transfers of a run share; any thread may use them.

    Attributes:
        stop: the flag that stops the run.
        compressors: compressors, of which as many are in use at a time as there are cores.
        buffers: buffers that one thread fills and another one empties.
        store: the store with the dumps that are read back, or None if there are none.
    """

    stop: Stop
    compressors: Compressors
    buffers: Buffers
    store: Store | None = None


def resources(stop: Stop, store: Store | None = None) -> Resources:
    """Return the resources of a new run."""
    return Resources(stop=stop, compressors=Compressors(stop.check), buffers=Buffers(), store=store)
