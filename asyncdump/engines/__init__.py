"""The ways to move bytes, one file each, and the choice between them."""

from __future__ import annotations

import errno
from typing import Final

from asyncdump.engines.base import Engine, Refusal, Refused, Route
from asyncdump.engines.direct import Direct
from asyncdump.engines.feed import Splice as FeedBySplice
from asyncdump.engines.mmap import Mmap
from asyncdump.engines.read import Read
from asyncdump.engines.reflink import Reflink
from asyncdump.engines.sendfile import Sendfile
from asyncdump.engines.splice import Splice
from asyncdump.errors import describe_errno
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import TRUE_ERRORS
from asyncdump.sinks.file import ALIGNMENT
from asyncdump.vocabulary.values import MEMORY, Choice, Method, Span

__all__ = [
    "ENGINES",
    "FEEDS",
    "REFUSALS",
    "Choice",
    "Engine",
    "Method",
    "Refusal",
    "Refused",
    "Route",
    "accepting",
    "candidates",
    "is_refusal",
    "refusal_of",
]


ENGINES: Final[dict[Method, Engine]] = {
    "reflink": Reflink(),
    "direct": Direct(),
    "sendfile": Sendfile(),
    "splice": Splice(),
    "mmap": Mmap(),
    "read": Read(),
}

FEEDS: Final[dict[str, Engine]] = {"read": Read(), "splice": FeedBySplice()}
"""The ways to bring bytes to a stage."""

REFUSALS: Final = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.ENODEV, errno.ETXTBSY, errno.EBADF}
)
"""What the kernel answers to a call that it doesn't do for these two files: reason to try the next engine."""

_CLONING: Final = frozenset({"xfs", "btrfs", "bcachefs", "ocfs2", "nfs", "smb", "cifs", "zfs"})


def candidates(
    choice: Choice, *, source: str, destination: str, hashing: bool, cloning: bool = True, descriptor: bool = True
) -> list[Engine]:
    """Return the engines to try, the fastest first; ``source`` and ``destination`` name filesystems.

    This only orders them: the first call on the real files decides. ``read`` is always last, and never refused.
    With ``hashing``, an engine that passes bytes by user space would need a second look for the digest, and the owner
    may write between two looks; a clone is the exception, for the sink can be read at leisure. Without ``cloning``
    there is none: nobody reads what is cloned, and so nobody learns what of it can't be read. Without a ``descriptor``
    of the sink only ``read`` can serve it.
    """
    if choice != "auto":
        return [ENGINES[choice]]
    if not descriptor:
        return [ENGINES["read"]]
    methods: list[Method] = []
    if cloning and source == destination and source in _CLONING:
        methods.append("reflink")
    if not hashing and source in MEMORY:
        methods.append("direct")
    methods.append("read")
    return [ENGINES[method] for method in methods]


def accepting(route: Route, lane: Lane) -> list[Method]:
    """Return the methods that the kernel accepts for a route, tried on its first bytes; the sink is spoilt by it."""
    length = min(route.source.size - route.start, ALIGNMENT)
    span = Span(offset=route.start, length=length)
    return [method for method, engine in ENGINES.items() if length and refusal_of(engine, route, span, lane) is None]


def refusal_of(engine: Engine, route: Route, span: Span, lane: Lane) -> Refusal | None:
    """Move one span with an engine; return why that is refused, or None if the span was moved.

    Raises:
        OSError: the call failed for a reason that's no refusal.
    """
    if (refusal := engine.refuses(route)) is not None:
        return refusal
    try:
        engine.store(route, span, lane, engine.load(route, span, lane))
    except Refused as refused:
        return refused.refusal
    except OSError as error:
        if not is_refusal(engine.method, error):
            raise
        return Refusal(reason=describe_errno(error.errno or 0), errno=error.errno)
    return None


def is_refusal(method: str, error: OSError) -> bool:
    """Tell whether the first call of a way to move bytes failed for a reason to try the next.

    A sandbox may answer anything to calls that it doesn't allow; of plain reads and writes it's an error of the file.
    """
    return error.errno in REFUSALS or (method != "read" and error.errno not in TRUE_ERRORS)
