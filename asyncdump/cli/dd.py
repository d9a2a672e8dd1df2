"""The one-off form: dd's operands, dd's summary, moved by the kernel."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, get_args

import msgspec

from asyncdump.engines import Choice
from asyncdump.errors import AsyncdumpError, DumpError, explain, from_oserror
from asyncdump.sink import Sink
from asyncdump.size import parse_size
from asyncdump.source import Source, describe, open_source
from asyncdump.stream import StreamMethod, Tally, copy_in_place, copy_stream

_CONVERSIONS: Final = {"fsync", "fdatasync", "notrunc", "sparse"}
_STATUSES: Final = ("default", "none", "noxfer", "progress")
_METHODS: Final = tuple(dict.fromkeys(get_args(Choice) + get_args(StreamMethod)))
_USAGE: Final = 2


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


def main(arguments: Sequence[str]) -> int:
    """Copy, and return the exit code: 0, 1 when a call failed, 2 for wrong operands, 130 for Ctrl-C."""
    operands, problems = parse(arguments)
    if problems:
        for problem in problems:
            print(f"asyncdump dd: {problem}", file=sys.stderr)
        return _USAGE
    tally = Tally()
    began = time.perf_counter()
    if operands.status == "progress":
        tally.tick = _ticker(tally, began)
    code = 0
    try:
        _copy(operands, tally)
    except BrokenPipeError:
        code = _failed("the reader of standard output has gone (EPIPE)")
    except AsyncdumpError as error:
        code = _failed(f"{error}{f' ({error.hint})' if error.hint else ''}")
    except OSError as error:
        code = _failed(str(from_oserror(error, "copy", operands.source or "standard input")))
    except KeyboardInterrupt:
        code = 130
    for line in summary(tally.bytes, operands, time.perf_counter() - began):
        print(line, file=sys.stderr)
    return code


def _failed(message: str) -> int:
    print(f"asyncdump dd: {message}", file=sys.stderr)
    return 1


def parse(arguments: Sequence[str]) -> tuple[Operands, list[str]]:
    """Return the operands, and all that is wrong with them."""
    operands, problems, numbers = Operands(), [], {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        try:
            if not equals:
                raise ValueError("dd's operands have the form name=value")
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
                    numbers[name.lstrip("io") if name in {"iseek", "oseek"} else name] = value
                    parse_size(value)
                    if name == "iseek":
                        numbers["skip"] = numbers.pop("seek")
                case "conv":
                    operands.conversions = _words(value, _CONVERSIONS)
                case "oflag" | "iflag":
                    operands.direct |= name == "oflag" and "direct" in _words(value, {"direct", "fullblock"})
                case "status":
                    operands.status = _one(value, _STATUSES)
                case "method":
                    operands.method = _one(value, _METHODS)
                case _:
                    raise ValueError("unknown operand; known are if of bs count skip seek conv oflag status method")
        except ValueError as error:
            problems.append(f"{argument}: {error}")
    for name, value in numbers.items():
        # A count of bytes, as coreutils has it: skip=4096B.
        in_bytes = re.search(r"\dB$", value)
        setattr(operands, name, parse_size(value) * (1 if in_bytes else operands.block) if not problems else 0)
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


def _copy(operands: Operands, tally: Tally) -> None:
    reading = 0 if operands.source is None else _open_input(operands.source)
    source = _describe(reading, operands.source or "standard input")
    if source is None:
        _discard(reading, operands.skip)
    elif operands.skip > source.size:
        raise DumpError(f"skip={operands.skip} bytes is behind the end of {source.path} ({source.size} bytes)")
    if operands.target is None:
        _stream(operands, tally, reading, 1, source)
        return
    writing = _open_output(operands, source)
    with explain("write", operands.target):
        if source is not None and _is_seekable(writing):
            _in_place(operands, tally, reading, writing, source)
        else:
            if operands.seek and _is_seekable(writing):
                os.lseek(writing, operands.seek, os.SEEK_SET)
            _stream(operands, tally, reading, writing, source)
        if operands.conversions & {"fsync", "fdatasync"}:
            os.fsync(writing)


def _open_input(path: str) -> int:
    with explain("open", path):
        if stat.S_ISREG(os.stat(path).st_mode) or stat.S_ISBLK(os.stat(path).st_mode):
            return open_source(path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _open_output(operands: Operands, source: Source | None) -> int:
    path = operands.target or ""
    with explain("open", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC if _may_read(path) else os.O_WRONLY, 0o600)
        status = os.fstat(fd)
        if source is not None and (status.st_dev, status.st_ino) == (source.device, source.inode):
            raise DumpError(f"{path} is the source itself", path=path, operation="open")
        if stat.S_ISREG(status.st_mode) and "notrunc" not in operands.conversions:
            os.ftruncate(fd, operands.seek)
    return fd


def _may_read(path: str) -> bool:
    """Tell whether an output can be opened for reading as well: a fifo mustn't, it would have no other reader."""
    return not os.path.exists(path) or stat.S_ISREG(os.stat(path).st_mode) or stat.S_ISBLK(os.stat(path).st_mode)


def _describe(fd: int, path: str) -> Source | None:
    return describe(fd, path) if _is_seekable(fd) else None


def _is_seekable(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _in_place(operands: Operands, tally: Tally, reading: int, writing: int, source: Source) -> None:
    if operands.method == "vmsplice":
        raise DumpError("method=vmsplice needs a pipe to write to: use direct or mmap")
    rest = source.size - operands.skip
    length = rest if operands.count is None else min(rest, operands.count)
    sink = Sink(writing, operands.target or "")
    if operands.direct and sink.direct is None:
        raise DumpError(f"{sink.path}: oflag=direct, but its filesystem takes no O_DIRECT")
    if stat.S_ISREG(os.fstat(writing).st_mode) and os.fstat(writing).st_size < operands.seek + length:
        sink.resize(operands.seek + length)
    copy_in_place(
        reading,
        source,
        sink,
        tally,
        start=operands.skip,
        length=length,
        seek=operands.seek,
        method=operands.method,
        sparse="sparse" in operands.conversions,
    )


def _stream(operands: Operands, tally: Tally, reading: int, writing: int, source: Source | None) -> None:
    if operands.method not in get_args(StreamMethod):
        raise DumpError(
            f"method={operands.method} needs a file to write to and a file to read from: "
            f"a pipe takes {', '.join(get_args(StreamMethod))}"
        )
    if "sparse" in operands.conversions:
        raise DumpError("conv=sparse needs a file to write to and a file to read from: a pipe has no holes")
    copy_stream(
        reading,
        writing,
        tally,
        source=source,
        start=operands.skip,
        length=operands.count,
        method=operands.method,
    )


def _discard(fd: int, count: int) -> None:
    while count > 0:
        got = len(os.read(fd, min(count, 1 << 20)))
        if got == 0:
            return
        count -= got


def _ticker(tally: Tally, began: float) -> Any:
    last = began

    def tick() -> None:
        nonlocal last
        if (now := time.perf_counter()) - last >= 1:
            last = now
            print(f"\r{rate_line(tally.bytes, now - began)}", end="", file=sys.stderr, flush=True)

    return tick


def summary(count: int, operands: Operands, seconds: float) -> list[str]:
    """Return dd's closing lines."""
    if operands.status == "none":
        return []
    records = f"{count // operands.block}+{int(count % operands.block > 0)} records"
    lines = [f"{records} in", f"{records} out"]
    if operands.status == "progress":
        lines.insert(0, "")
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
