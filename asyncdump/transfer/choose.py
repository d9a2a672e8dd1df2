"""The choice of a transfer for a planned dump."""

from __future__ import annotations

from asyncdump.plan.plan import PlannedDump
from asyncdump.sinks.place import Place
from asyncdump.transfer.packed import Packed
from asyncdump.transfer.piped import Piped
from asyncdump.transfer.proof import Proof
from asyncdump.transfer.resources import Resources
from asyncdump.transfer.transfer import Transfer


def transfer_of(planned: PlannedDump, place: Place, resources: Resources) -> Transfer:
    """Return a new transfer for a planned dump into a place."""
    if planned.expected is not None:
        return Proof(planned, resources)
    if planned.filters or (place.streams and planned.compression is None):
        return Piped(planned, resources)
    if planned.compression is not None:
        return Packed(planned, resources)
    return Transfer(planned, resources)
