"""The command ``dd``: the operands and the summary of dd, with bytes that the kernel moves."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from signal import Signals
from typing import Final, get_args

import msgspec

from asyncdump.cli.dd.operands import Operands, parse
from asyncdump.cli.dd.summary import Ticker, summary
from asyncdump.cli.output import check_stdout, dumping, hurry
from asyncdump.cli.signals import exit_code, heeding
from asyncdump.codecs.codec import Compression
from asyncdump.errors import AsyncdumpError, DumpError, explain
from asyncdump.sinks.file import FileSink
from asyncdump.sources.describe import describe
from asyncdump.sources.file import open_source
from asyncdump.text import text
from asyncdump.transfer.copy import Copied, copy_in_blocks, copy_in_place
from asyncdump.transfer.stream import StreamMethod, compress_stream, copy_stream
from asyncdump.vocabulary.size import MAXIMUM
from asyncdump.vocabulary.values import Source

_USAGE: Final = 2
_STDIN: Final = 0
_STDOUT: Final = 1


def main(arguments: Sequence[str]) -> int:
    """Copy and return the exit code: 0; 1 if a call failed; 2 for invalid operands; 130 for Ctrl-C."""
    operands, problems = parse(arguments)
    if problems:
        for problem in problems:
            print(f"asyncdump dd: {text(problem)}", file=sys.stderr)
        return _USAGE
    tally = Copied()
    began = time.perf_counter()
    ticker = Ticker(tally, began)
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


class _Input(msgspec.Struct):
    """The input: ``source`` if it is a file, and ``start``, the first byte that is copied."""

    fd: int
    path: str
    source: Source | None
    start: int


class _Output(msgspec.Struct):
    """The output: ``place`` is the first byte that is written, ``file`` whether it accepts bytes in any order."""

    fd: int
    path: str
    place: int
    file: bool


def _copy(operands: Operands, tally: Copied) -> None:
    reading = _input(operands)
    try:
        writing = _output(operands, reading.source)
        with explain("write", writing.path):
            _move(operands, tally, reading, writing)
        if operands.conversions & {"fsync", "fdatasync"}:
            with explain("fsync", writing.path):
                os.fsync(writing.fd)
        with explain("close", writing.path):
            os.close(os.dup(writing.fd))  # A server reports lost writes on close(2), and the last close isn't checked.
    finally:
        if reading.source is not None:
            # Processes that share the descriptor continue after the copied bytes.
            os.lseek(reading.fd, reading.start + tally.bytes, os.SEEK_SET)


def _move(operands: Operands, tally: Copied, reading: _Input, writing: _Output) -> None:
    if operands.compression is not None:
        _compressed(operands, operands.compression, tally, reading, writing)
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
        os.read(fd, 0)  # Detects a directory or a closed descriptor before the output is created.
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
        raise DumpError(f"skip={operands.skip} bytes is past the end of {path} ({source.size - begin} bytes)")
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
    """Return whether an output may be opened for reading, too: not a fifo, which would then have a reader."""
    return not os.path.exists(path) or stat.S_ISREG(os.stat(path).st_mode) or stat.S_ISBLK(os.stat(path).st_mode)


def _is_file(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _in_place(operands: Operands, tally: Copied, reading: _Input, source: Source, writing: _Output) -> None:
    if operands.method == "vmsplice":
        raise DumpError("method=vmsplice needs a pipe to write to: use direct or mmap")
    method = operands.method
    if "sparse" in operands.conversions:
        if method not in {"auto", "read"}:
            raise DumpError(f"conv=sparse needs method=read: {method} doesn't see the bytes")
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


def _in_blocks(operands: Operands, tally: Copied, reading: _Input, writing: _Output) -> None:
    if operands.method not in {"auto", "read"}:
        raise DumpError("oflag=direct and conv=sparse from a pipe need method=read")
    sparse = "sparse" in operands.conversions
    with _ending(operands, tally, writing) as sink:
        copy_in_blocks(
            reading.fd, sink, tally, path=reading.path, seek=writing.place, length=operands.count, sparse=sparse
        )


@contextmanager
def _ending(operands: Operands, tally: Copied, writing: _Output) -> Iterator[FileSink]:
    """Yield the sink, and set the end of the output to the end of the copy, even after an error.

    The size grows with the written bytes, so that a copy that is killed doesn't leave zeros at the end either.
    """
    sink = FileSink(writing.fd, writing.path)
    if operands.direct and sink.direct is None:
        raise DumpError(f"{sink.path}: oflag=direct, but its filesystem does not support O_DIRECT")
    before = os.fstat(writing.fd).st_size
    try:
        yield sink
    except OverflowError as error:  # The offset exceeds off_t.
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG)) from error
    finally:
        end = writing.place + tally.bytes
        size = max(end, before) if tally.bytes else before
        status = os.fstat(writing.fd)
        if max(size, end) > MAXIMUM:  # Skipped holes count, too.
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        # It may be longer, by a part of a failed write, or shorter, by a hole at the end of the copy.
        if stat.S_ISREG(status.st_mode) and status.st_size != size:
            sink.resize(size)
        os.lseek(writing.fd, end, os.SEEK_SET)


def _compressed(operands: Operands, compression: Compression, tally: Copied, reading: _Input, writing: _Output) -> None:
    if operands.method != "auto" or operands.direct or "sparse" in operands.conversions:
        raise DumpError("compress= can't be combined with method=, oflag=direct or conv=sparse")
    if operands.target is not None and operands.seek and _is_file(writing.fd):
        os.lseek(writing.fd, operands.seek, os.SEEK_SET)
    compress_stream(
        reading.fd,
        writing.fd,
        tally,
        path=reading.path,
        source=reading.source,
        compression=compression,
        start=reading.start,
        length=operands.count,
    )


def _stream(operands: Operands, tally: Copied, reading: _Input, writing: _Output) -> None:
    if operands.method not in get_args(StreamMethod):
        raise DumpError(
            f"method={operands.method} needs a file to write to and a file to read from: "
            f"with a pipe, use {', '.join(get_args(StreamMethod))}"
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
