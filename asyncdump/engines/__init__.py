"""The engines, which move bytes from a source into a sink, and the choice between them.

`candidates` orders the engines for a source and a destination; the first system call of an engine decides whether it
can be used. An engine loads a span, unless only the kernel sees the bytes, and stores it.

- `base`: the protocol of an engine, its route, and a refusal
- `direct`, `mmap`: a mapping of the source is written, with O_DIRECT or through the page cache
- `read`: bytes are read into a buffer and written from there; the only engine that sees them
- `reflink`, `sendfile`, `splice`: the kernel moves the bytes between descriptors
- `feed`: bytes for a compressor, a filter or a pipe
"""

from __future__ import annotations

import errno
from typing import Final

from asyncdump.engines.base import Engine, Refusal, Refused, Route
from asyncdump.engines.direct import Direct
from asyncdump.engines.feed import FeedBySplice
from asyncdump.engines.mmap import Mmap
from asyncdump.engines.read import Read
from asyncdump.engines.reflink import Reflink
from asyncdump.engines.sendfile import Sendfile
from asyncdump.engines.splice import Splice
from asyncdump.errors import describe_errno
from asyncdump.kernel.filesystems import traits
from asyncdump.kernel.lane import Lane
from asyncdump.kernel.linux import TRUE_ERRORS
from asyncdump.sinks.file import ALIGNMENT
from asyncdump.vocabulary.values import Choice, Method, Span

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
"""The engines that feed a stage, by method."""

REFUSALS: Final = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.ENODEV, errno.ETXTBSY, errno.EBADF}
)
"""The errnos of a call that the kernel doesn't support for these two files: the next engine is tried."""


def candidates(
    choice: Choice, *, source: str, destination: str, hashing: bool, cloning: bool = True, descriptor: bool = True
) -> list[Engine]:
    """Return the engines to try, the fastest first; ``source`` and ``destination`` are names of filesystems.

    This is only the order: the first call on the real files decides. ``read`` is always the last, and never refused.
    With ``hashing``, an engine whose bytes bypass user space would need a second read for the digest, and the owner may
    write between the two reads. Clones are the exception, because the sink shares the blocks that are read back.
    Without ``cloning``, reflink isn't tried: cloning reads no data, so unreadable blocks would go unnoticed. For a sink
    without a ``descriptor``, only ``read`` is possible.
    """
    if choice != "auto":
        return [ENGINES[choice]]
    if not descriptor:
        return [ENGINES["read"]]
    methods: list[Method] = []
    if cloning and source == destination and traits(source).clones:
        methods.append("reflink")
    if not hashing and traits(source).in_memory:
        methods.append("direct")
    methods.append("read")
    return [ENGINES[method] for method in methods]


def accepting(route: Route, lane: Lane) -> list[Method]:
    """Return the methods that the kernel accepts for a route, tried on its first bytes; this spoils the sink."""
    length = min(route.source.size - route.start, ALIGNMENT)
    span = Span(offset=route.start, length=length)
    return [method for method, engine in ENGINES.items() if length and refusal_of(engine, route, span, lane) is None]


def refusal_of(engine: Engine, route: Route, span: Span, lane: Lane) -> Refusal | None:
    """Move one span with an engine; return why it is refused, or None if the span was moved.

    Raises:
        OSError: the call failed, but it isn't a refusal.
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
    """Return whether an error of the first call of a method is a refusal, so that the next method is tried.

    A sandbox may deny a call with any errno. For plain reads and writes, that is an error of the file.
    """
    return error.errno in REFUSALS or (method != "read" and error.errno not in TRUE_ERRORS)
