"""Which methods the kernel accepts for a source and a directory, and how fast they are; all of this is tried."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from asyncdump.engines import ENGINES, Method, Refusal, Route, candidates, refusal_of
from asyncdump.errors import DumpError, ManifestError, Problem, explain
from asyncdump.kernel.lane import Lane
from asyncdump.plan.plan import PlannedDump
from asyncdump.run.threads import in_thread
from asyncdump.sinks.file import ALIGNMENT, FileSink
from asyncdump.sinks.folder import Folder
from asyncdump.sinks.output import local_folder
from asyncdump.sources.file import open_now, path_of
from asyncdump.sources.opening import open_planned
from asyncdump.sources.source import OpenSource
from asyncdump.vocabulary.stop import Stop
from asyncdump.vocabulary.values import STANDARD_OUTPUT, UNREADABLE, Span

_LONGEST: Final = 1.0
"""The time limit for measuring a method, in seconds; then the rate is that of the bytes moved until then."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result for one method.

    Attributes:
        method: the method that was tried.
        refusal: why it can't be used here, or None if it can.
        bytes: the number of bytes that were moved and made durable by one thread to measure it.
        seconds: the wall-clock time of that, in seconds.
        cpu_seconds: the CPU time of that, in seconds.
        chosen: ``auto`` picks it ``with a checksum``, ``without`` one, ``always`` or ``never``.
    """

    method: Method
    refusal: Refusal | None
    bytes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    chosen: str = "never"

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0


async def probe(source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> list[Finding]:
    """Try each method on ``source``, with an unnamed file in the directory ``folder``; nothing is left there.

    Raises:
        DumpError: the source can't be opened, or the directory can't be written to.
    """
    stop = Stop()
    return await in_thread(lambda: probe_all(source, folder, stop), give_up=stop.request)


def probe_all(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], stop: Stop | None = None
) -> list[Finding]:
    """Do the same as `probe`, but block; after a stop, the result is empty."""
    source, folder = path_of(source), path_of(folder)
    if not os.path.isdir(folder):
        raise DumpError(f"{folder} is not a directory", path=folder, operation="open")
    origin = open_now(source)
    place = Folder(folder)
    lane = Lane()
    try:
        picks = {hashing: _pick(origin, place, lane, hashing=hashing) for hashing in (True, False)}
        return [_try(method, origin, place, lane, _chosen(method, picks), stop or Stop()) for method in ENGINES]
    finally:
        lane.close()
        place.close()
        origin.close()


def _chosen(method: Method, picks: dict[bool, Method]) -> str:
    answers = {(True, True): "always", (True, False): "with a checksum", (False, True): "without a checksum"}
    return answers.get((picks[True] == method, picks[False] == method), "never")


def _pick(
    origin: OpenSource, folder: Folder, lane: Lane, *, hashing: bool, start: int = 0, cloning: bool = True
) -> Method:
    engines = candidates(
        "auto", source=origin.described.filesystem, destination=folder.filesystem, hashing=hashing, cloning=cloning
    )
    for engine in engines[:-1]:
        if _refusal(engine.method, origin, folder, lane, start) is None:
            return engine.method
    return engines[-1].method


def _refusal(method: Method, origin: OpenSource, folder: Folder, lane: Lane, start: int) -> Refusal | None:
    """Try a method on the first block of a source."""
    sink = folder.scratch()
    try:
        span = Span(offset=start, length=min(ALIGNMENT, origin.described.size - start))
        route = Route(origin=origin, sink=sink, start=start)
        if span.length == 0:
            return ENGINES[method].refuses(route)
        with explain(method, origin.described.path):
            try:
                return refusal_of(ENGINES[method], route, span, lane)
            except OSError as error:
                if error.errno not in UNREADABLE:
                    raise
                return None  # An unreadable page isn't a refusal: the dump will report it.
    finally:
        sink.close()


def _try(method: Method, origin: OpenSource, folder: Folder, lane: Lane, chosen: str, stop: Stop) -> Finding:
    stop.check()
    if (refusal := _refusal(method, origin, folder, lane, 0)) is not None:
        return Finding(method=method, refusal=refusal)
    sink = folder.scratch()
    try:
        began, cpu = time.perf_counter(), time.thread_time()
        with explain(method, origin.described.path):
            moved = _measure(method, origin, sink, lane, began, stop)
            if (failure := sink.sync()) is not None:
                raise failure
        seconds, cpu = time.perf_counter() - began, time.thread_time() - cpu
    finally:
        sink.close()
    return Finding(method=method, refusal=None, bytes=moved, seconds=seconds, cpu_seconds=cpu, chosen=chosen)


def _measure(method: Method, origin: OpenSource, sink: FileSink, lane: Lane, began: float, stop: Stop) -> int:
    engine = ENGINES[method]
    route = Route(origin=origin, sink=sink, sparse=False)
    size = origin.described.size
    sink.resize(size)
    moved = 0
    for extent in origin.spans(0, size):
        for offset in range(extent.offset, extent.end, engine.span):
            span = Span(offset=offset, length=min(engine.span, extent.end - offset))
            if not extent.hole:
                engine.store(route, span, lane, engine.load(route, span, lane))
                moved += span.length
            stop.check()
            if time.perf_counter() - began > _LONGEST:
                return moved
    return moved


def expected_methods(dumps: Sequence[PlannedDump], output: str) -> list[str]:
    """Return the method that each planned dump would use, tried with an unnamed file next to the output directory.

    Raises:
        ManifestError: the output directory, or its parent, can't be written to.
    """
    if output == STANDARD_OUTPUT:
        return [f"fails: {dump.error}" if dump.error is not None else _fed(dump) for dump in dumps]
    if (path := local_folder(output)) is None:  # Without a descriptor, only ``read`` is possible (`candidates`).
        return [f"fails: {dump.error}" if dump.error else ", ".join(("read", *dump.stages)) for dump in dumps]
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    lane = Lane()
    try:
        folder = Folder(path)
        try:
            return [_expected(dump, folder, lane) for dump in dumps]
        finally:
            folder.close()
    except DumpError as error:
        raise ManifestError(Problem(key="output", message=str(error))) from error
    finally:
        lane.close()


def _expected(dump: PlannedDump, folder: Folder, lane: Lane) -> str:
    if dump.error is not None:
        return f"fails: {dump.error}"
    if dump.stages:
        return _fed(dump)
    if not dump.source.sized:  # It is read into memory first, and its method is tried then.
        return dump.method if dump.method != "auto" else "read"
    if dump.method == "auto" and dump.checksum != "none" and dump.source.in_memory:
        return "read"  # It is the only candidate.
    origin = open_planned(dump.source)
    try:
        if dump.method == "auto":
            hashing, cloning = dump.checksum != "none", dump.on_read_error == "fail"
            return _pick(origin, folder, lane, hashing=hashing, start=dump.offset, cloning=cloning)
        refusal = _refusal(dump.method, origin, folder, lane, dump.offset)
        return dump.method if refusal is None else f"{dump.method} is refused: {refusal.reason}"
    finally:
        origin.close()


def _fed(dump: PlannedDump) -> str:
    """Return how bytes get to the first stage or into a pipe, and the stages."""
    feed = dump.method
    if feed == "auto":
        feed = "read" if dump.compression and not dump.compress_last else "splice"
    return ", ".join((feed, *dump.stages))
