"""The one-off form: dd's operands, dd's summary, moved by the kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from signal import Signals
from typing import Any, Final, get_args

import msgspec

from asyncdump.cli.output import check_stdout, dumping, hurry
from asyncdump.cli.signals import exit_code, heeding
from asyncdump.codecs.zstd import LEVELS, ZstdOptions
from asyncdump.engines import Choice
from asyncdump.errors import AsyncdumpError, DumpError, explain
from asyncdump.sinks.file import Sink
from asyncdump.sources.file import Source, describe, open_source
from asyncdump.text import text
from asyncdump.transfer.copy import StreamMethod, Tally, compress_stream, copy_in_blocks, copy_in_place, copy_stream
from asyncdump.vocabulary.size import MAXIMUM, parse_size, refuse_zero_times

_CONVERSIONS: Final = {"fsync", "fdatasync", "notrunc", "sparse"}
_STATUSES: Final = ("default", "none", "noxfer", "progress")
_METHODS: Final = tuple(dict.fromkeys(get_args(Choice) + get_args(StreamMethod)))
_ALIASES: Final = {"iseek": "skip", "oseek": "seek"}
_FLAGGED: Final = {"count_bytes": "count", "skip_bytes": "skip", "seek_bytes": "seek"}
_NUMBERS: Final = frozenset({"bs", "ibs", "obs", "count", "skip", "seek", "iseek", "oseek"})
_USAGE: Final = 2
_STDIN: Final = 0
_STDOUT: Final = 1


class Operands(msgspec.Struct):
    """What was asked for; ``skip``, ``seek`` and ``count`` in bytes."""

    source: str | None = None
    target: str | None = None
    block: int = 512
    skip: int = 0
    seek: int = 0
    count: int | None = None
    conversions: set[str] = msgspec.field(default_factory=set)
    direct: bool = False
    status: str = "default"
    method: Any = "auto"
    zstd: ZstdOptions | None = None


def main(arguments: Sequence[str]) -> int:
    """Copy, and return the exit code: 0, 1 when a call failed, 2 for wrong operands, 130 for Ctrl-C."""
    operands, problems = parse(arguments)
    if problems:
        for problem in problems:
            print(f"asyncdump dd: {text(problem)}", file=sys.stderr)
        return _USAGE
    tally = Tally()
    began = time.perf_counter()
    ticker = _Ticker(tally, began)
    if operands.status == "progress":
        tally.tick = ticker
    code, failure = 0, ""
    try:
        with heeding(_interrupt), dumping():
            _copy(operands, tally)
    except AsyncdumpError as error:
        failure = f"{error}{f' ({error.hint})' if error.hint else ''}"
    except KeyboardInterrupt as interrupt:
        code = exit_code(interrupt.args[0])
    if ticker.shown:
        print(file=sys.stderr)
    if failure:
        code = 1
        print(f"asyncdump dd: {text(failure)}", file=sys.stderr)
    for line in summary(tally.bytes, operands, time.perf_counter() - began):
        print(line, file=sys.stderr)
    return code


def _interrupt(number: Signals) -> None:
    hurry(number)
    raise KeyboardInterrupt(number)


def parse(arguments: Sequence[str]) -> tuple[Operands, list[str]]:
    """Return the operands, and all that is wrong with them."""
    operands, problems, numbers = Operands(), [], {}
    flagged: set[str] = set()
    for argument in arguments:
        name, equals, value = argument.partition("=")
        try:
            if not equals:
                raise ValueError("dd's operands have the form name=value")
            if name in _NUMBERS:
                refuse_zero_times(value)
            match name:
                case "if":
                    operands.source = value
                case "of":
                    operands.target = value
                case "bs" | "ibs" | "obs":
                    operands.block = parse_size(value)
                    if operands.block == 0:
                        raise ValueError("a block has at least one byte")
                case "skip" | "iseek" | "seek" | "oseek" | "count":
                    numbers[_ALIASES.get(name, name)] = value
                    parse_size(value)
                case "conv":
                    operands.conversions = _words(value, _CONVERSIONS)
                case "oflag":
                    flags = _words(value, {"direct", "fullblock", "seek_bytes"})
                    operands.direct |= "direct" in flags
                    flagged |= {_FLAGGED[flag] for flag in flags & _FLAGGED.keys()}
                case "iflag":
                    flags = _words(value, {"fullblock", "count_bytes", "skip_bytes"})
                    flagged |= {_FLAGGED[flag] for flag in flags & _FLAGGED.keys()}
                case "status":
                    operands.status = _one(value, _STATUSES)
                case "compress":
                    operands.zstd = _zstd(value)
                case "method":
                    operands.method = _one(value, _METHODS)
                case _:
                    raise ValueError(
                        "unknown operand; known are if of bs count skip seek conv iflag oflag status method compress"
                    )
        except ValueError as error:
            problems.append(f"{argument}: {error}")
    for name, value in numbers.items():
        # A count of bytes, as coreutils has it: skip=4096B, count=8KiB, iflag=count_bytes.
        in_bytes = "B" in value or name in flagged
        size = parse_size(value) * (1 if in_bytes else operands.block) if not problems else 0
        if size > MAXIMUM:
            problems.append(f"{name}={value}: is more than a file can hold, in blocks of {operands.block} bytes")
        setattr(operands, name, size)
    return operands, problems


def _words(value: str, known: set[str]) -> set[str]:
    words = set(value.split(","))
    if unknown := words - known:
        raise ValueError(f"{', '.join(sorted(unknown))} unknown; known are {', '.join(sorted(known))}")
    return words


def _one(value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"unknown; known are {', '.join(known)}")
    return value


class _Input(msgspec.Struct):
    """What is read: ``source`` where it is a file, ``start`` the first byte of it that is copied."""

    fd: int
    path: str
    source: Source | None
    start: int


class _Output(msgspec.Struct):
    """What is written: ``place`` is the first byte of it that is, ``file`` whether it takes bytes in any order."""

    fd: int
    path: str
    place: int
    file: bool


def _copy(operands: Operands, tally: Tally) -> None:
    reading = _input(operands)
    try:
        writing = _output(operands, reading.source)
        with explain("write", writing.path):
            _move(operands, tally, reading, writing)
        if operands.conversions & {"fsync", "fdatasync"}:
            with explain("fsync", writing.path):
                os.fsync(writing.fd)
        with explain("close", writing.path):
            os.close(os.dup(writing.fd))  # What a server refuses is told by a close, and one at the end by nobody.
    finally:
        if reading.source is not None:
            # Whoever shares the descriptor goes on behind what was copied.
            os.lseek(reading.fd, reading.start + tally.bytes, os.SEEK_SET)


def _move(operands: Operands, tally: Tally, reading: _Input, writing: _Output) -> None:
    if operands.zstd is not None:
        _compressed(operands, operands.zstd, tally, reading, writing)
        return
    if writing.file and reading.source is not None:
        _in_place(operands, tally, reading, reading.source, writing)
    elif writing.file and (operands.direct or "sparse" in operands.conversions):
        _in_blocks(operands, tally, reading, writing)
    else:
        _stream(operands, tally, reading, writing)


def _input(operands: Operands) -> _Input:
    path = operands.source or "standard input"
    fd = _STDIN if operands.source is None else _open_input(operands.source)
    with explain("read", path):
        os.read(fd, 0)  # What is a folder, or closed, is noticed before an output is made.
        if not _is_file(fd):
            _discard(fd, operands.skip)
            return _Input(fd=fd, path=path, source=None, start=0)
        begin = os.lseek(fd, 0, os.SEEK_CUR)
    source = describe(fd, path)
    if not source.sized:
        with explain("read", path):
            _discard(fd, operands.skip)
        return _Input(fd=fd, path=path, source=None, start=0)
    if operands.skip and begin + operands.skip > source.size:
        raise DumpError(f"skip={operands.skip} bytes is behind the end of {path} ({source.size - begin} bytes)")
    return _Input(fd=fd, path=path, source=source, start=begin + operands.skip)


def _open_input(path: str) -> int:
    with explain("open", path):
        if stat.S_ISREG(os.stat(path).st_mode) or stat.S_ISBLK(os.stat(path).st_mode):
            return open_source(path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _output(operands: Operands, source: Source | None) -> _Output:
    if operands.target is None:
        check_stdout()
        path, fd = "standard output", _STDOUT
    else:
        path, fd = operands.target, _open_output(operands.target)
    status = os.fstat(fd)
    if source is not None and (status.st_dev, status.st_ino) == (source.device, source.inode):
        raise DumpError(f"{path} is the source itself", path=path, operation="open")
    if operands.target is not None and stat.S_ISREG(status.st_mode) and "notrunc" not in operands.conversions:
        with explain("ftruncate", path):
            os.ftruncate(fd, operands.seek)
    file = _is_file(fd) and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    if operands.direct and not file:
        raise DumpError(f"{path}: oflag=direct needs a file to write to, and one that isn't appended to")
    place = 0
    if file or operands.seek:
        with explain("lseek", path):
            place = os.lseek(fd, operands.seek, os.SEEK_CUR)
    return _Output(fd=fd, path=path, place=place, file=file)


def _open_output(path: str) -> int:
    with explain("open", path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC if _may_read(path) else os.O_WRONLY, 0o600)


def _may_read(path: str) -> bool:
    """Tell whether an output can be opened for reading as well: a fifo mustn't, it would have no other reader."""
    return not os.path.exists(path) or stat.S_ISREG(os.stat(path).st_mode) or stat.S_ISBLK(os.stat(path).st_mode)


def _is_file(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _in_place(operands: Operands, tally: Tally, reading: _Input, source: Source, writing: _Output) -> None:
    if operands.method == "vmsplice":
        raise DumpError("method=vmsplice needs a pipe to write to: use direct or mmap")
    method = operands.method
    if "sparse" in operands.conversions:
        if method not in {"auto", "read"}:
            raise DumpError(f"conv=sparse needs method=read: {method} doesn't look at the bytes")
        method = "read"
    rest = max(0, source.size - reading.start)
    length = rest if operands.count is None else min(rest, operands.count)
    with _ending(operands, tally, writing) as sink:
        copy_in_place(
            reading.fd,
            source,
            sink,
            tally,
            start=reading.start,
            length=length,
            seek=writing.place,
            method=method,
            sparse="sparse" in operands.conversions,
        )


def _in_blocks(operands: Operands, tally: Tally, reading: _Input, writing: _Output) -> None:
    if operands.method not in {"auto", "read"}:
        raise DumpError("oflag=direct and conv=sparse from a pipe need method=read")
    sparse = "sparse" in operands.conversions
    with _ending(operands, tally, writing) as sink:
        copy_in_blocks(
            reading.fd, sink, tally, path=reading.path, seek=writing.place, length=operands.count, sparse=sparse
        )


@contextmanager
def _ending(operands: Operands, tally: Tally, writing: _Output) -> Iterator[Sink]:
    """Give the sink for a block, and have the output end where the copy did, however that ended.

    The size grows with what is written, so that a copy that is killed leaves no zeros behind either.
    """
    sink = Sink(writing.fd, writing.path)
    if operands.direct and sink.direct is None:
        raise DumpError(f"{sink.path}: oflag=direct, but its filesystem takes no O_DIRECT")
    before = os.fstat(writing.fd).st_size
    try:
        yield sink
    except OverflowError as error:  # There is no such offset.
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG)) from error
    finally:
        end = writing.place + tally.bytes
        size = max(end, before) if tally.bytes else before
        status = os.fstat(writing.fd)
        if max(size, end) > MAXIMUM:  # Holes that were passed over.
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        # Longer: by a part of the step that failed. Shorter: by the hole that the copy ends with.
        if stat.S_ISREG(status.st_mode) and status.st_size != size:
            sink.resize(size)
        os.lseek(writing.fd, end, os.SEEK_SET)


def _compressed(operands: Operands, zstd: ZstdOptions, tally: Tally, reading: _Input, writing: _Output) -> None:
    if operands.method != "auto" or operands.direct or "sparse" in operands.conversions:
        raise DumpError("compress= goes without method=, oflag=direct and conv=sparse: what is read is written anew")
    if operands.target is not None and operands.seek and _is_file(writing.fd):
        os.lseek(writing.fd, operands.seek, os.SEEK_SET)
    compress_stream(
        reading.fd,
        writing.fd,
        tally,
        path=reading.path,
        source=reading.source,
        zstd=zstd,
        start=reading.start,
        length=operands.count,
    )


def _zstd(value: str) -> ZstdOptions | None:
    name, _, level = value.partition(":")
    if value == "none":
        return None
    if name != "zstd" or (level and not re.fullmatch(r"-?[0-9]{1,3}", level)):
        raise ValueError("unknown; known are zstd, zstd:LEVEL, none")
    if not LEVELS[0] <= int(level or 3) <= LEVELS[1]:
        raise ValueError(f"a level is from {LEVELS[0]} to {LEVELS[1]}")
    return ZstdOptions(level=int(level or 3))


def _stream(operands: Operands, tally: Tally, reading: _Input, writing: _Output) -> None:
    if operands.method not in get_args(StreamMethod):
        raise DumpError(
            f"method={operands.method} needs a file to write to and a file to read from: "
            f"a pipe takes {', '.join(get_args(StreamMethod))}"
        )
    if "sparse" in operands.conversions:
        raise DumpError("conv=sparse needs a file to write to: a pipe has no holes")
    copy_stream(
        reading.fd,
        writing.fd,
        tally,
        path=reading.path,
        source=reading.source,
        start=reading.start,
        length=operands.count,
        method=operands.method,
    )


def _discard(fd: int, count: int) -> None:
    while count > 0:
        got = len(os.read(fd, min(count, 1 << 20)))
        if got == 0:
            return
        count -= got


class _Ticker:
    """Shows how far a copy is, once a second, each time over the line before."""

    def __init__(self, tally: Tally, began: float) -> None:
        self.shown = False
        self._tally = tally
        self._began = self._last = began

    def __call__(self) -> None:
        if (now := time.perf_counter()) - self._last >= 1:
            self.shown, self._last = True, now
            print(f"\r{rate_line(self._tally.bytes, now - self._began)}", end="", file=sys.stderr, flush=True)


def summary(count: int, operands: Operands, seconds: float) -> list[str]:
    """Return dd's closing lines."""
    if operands.status == "none":
        return []
    records = f"{count // operands.block}+{int(count % operands.block > 0)} records"
    lines = [f"{records} in", f"{records} out"]
    return lines if operands.status == "noxfer" else [*lines, rate_line(count, seconds)]


def rate_line(count: int, seconds: float) -> str:
    """Return ``2097152 bytes (2.1 MB, 2.0 MiB) copied, 0.0012 s, 1.7 GB/s``."""
    sizes = f" ({_human(count, 1000)}, {_human(count, 1024)})" if count >= 1000 else ""  # noqa: PLR2004
    noun = "byte" if count == 1 else "bytes"
    return f"{count} {noun}{sizes} copied, {seconds:.6g} s, {_human(count / max(seconds, 1e-9), 1000)}/s"


def _human(count: float, base: int) -> str:
    units = ("B", "kB", "MB", "GB", "TB") if base == 1000 else ("B", "KiB", "MiB", "GiB", "TiB")  # noqa: PLR2004
    power = 0
    while count >= base and power < len(units) - 1:
        count /= base
        power += 1
    return f"{count:.1f} {units[power]}" if count < 10 and power else f"{count:.0f} {units[power]}"  # noqa: PLR2004
