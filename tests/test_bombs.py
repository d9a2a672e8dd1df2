"""What is read may be hostile: whatever it holds, reading takes some times its size of memory, and ends soon."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard
from files import GiB, KiB, MiB, content, noise

import asyncdump
from asyncdump.codecs.seekable import Frame, read_seek_table
from asyncdump.errors import DumpError

SIZE = int(os.environ.get("ASYNCDUMP_BOMBS", "8")) * MiB
SOON = 30.0 * max(1, SIZE // (32 * MiB))
MOST = 5
"""How many bytes of memory a byte of a receipt may take."""


def spent(code: str) -> tuple[int, float, str]:
    """Return the bytes of memory that some code takes beyond what is there before, its seconds, and its answer."""
    program = f"""
import asyncio, sys, time
import asyncdump, asyncdump.verifying, asyncdump.restoring, asyncdump.reading, zstandard, xxhash
def peak():
    with open("/proc/self/status") as lines:  # Unlike ru_maxrss this begins anew with the program.
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
before, began, answer = peak(), time.perf_counter(), ""
try:
    answer = {code}
except asyncdump.AsyncdumpError as error:
    answer = type(error).__name__
print(peak() - before, time.perf_counter() - began, answer if isinstance(answer, str) else "done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    memory, seconds, answer = done.stdout.split(maxsplit=2)
    return int(memory), float(seconds), answer.strip()


def repeated(piece: bytes, size: int = SIZE) -> bytes:
    return (piece * (size // len(piece))).rstrip(b",")


def record(**values: Any) -> bytes:
    return json.dumps({"source": "/s", "name": "n", "bytes": 0, **values}).encode()


def holding(key: str, inner: bytes) -> bytes:
    return record(**{key: "here"}).replace(b'"here"', b"[" + inner + b"]")


def small(size: int = SIZE) -> bytes:
    return b",".join(b'{"source":"","name":"%d","bytes":0}' % number for number in range(size // 40))


def honest(size: int = SIZE) -> bytes:
    values = {
        "source": "/dev/shm/NAME",
        "digest": f"xxh128:{0:032}",
        "content_digest": f"xxh128:{0:032}",
        "identity": {"inode": 12345678, "size": 4096, "mtime_ns": 1 << 60},
        "seconds": 0.123,
        "method": "read",
        "manifest_sha256": "ab" * 32,
    }
    one = record(**values, offset=0, size=4096, stored=4096, inode=87654321, marks="0" * 64, stages=[], bad=[])
    return b",".join(
        one.replace(b"NAME", b"%d" % number).replace(b'"n"', b'"%d"' % number) for number in range(size // len(one))
    )


def receipt(inner: bytes) -> bytes:
    return b'{"receipt":1,"files":[' + inner + b"]}"


RECEIPTS = {
    "nothing but lists": lambda: repeated(b"[[],"),
    "lists for dumps": lambda: receipt(repeated(b"[],")),
    "empty objects for dumps": lambda: receipt(repeated(b"{},")),
    "objects with one field": lambda: receipt(repeated(b'{"bytes":0},')),
    "the smallest dumps": lambda: receipt(small()),
    "stages": lambda: receipt(holding("stages", repeated(b'"ab",'))),
    "bad ranges": lambda: receipt(holding("bad", repeated(b'{"offset":1,"length":1,"errno":""},'))),
    "what has no place": lambda: receipt(holding("more", repeated(b"[],"))),
    "what has no place beside": lambda: b'{"x":[' + repeated(b"[],") + b'],"receipt":1,"files":[]}',
    "open lists": lambda: b'{"receipt":1,"files":' + b"[" * SIZE,
    "marks": lambda: receipt(record(marks="0" * SIZE)),
    "a name": lambda: receipt(record(name="0" * SIZE)),
    "numbers": lambda: receipt(repeated(b"1,")),
    "a long number": lambda: b'{"receipt":' + b"1" * SIZE + b',"files":[]}',
    "what a run writes": lambda: receipt(honest()),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("what", RECEIPTS)
def test_a_receipt_takes_some_times_its_size(what, tmp_path: Path) -> None:
    content = RECEIPTS[what]()
    (tmp_path / "receipt.json").write_bytes(content)
    for function in ("verify_all", "restore_all") if what == "lists for dumps" else ("verify_all",):
        target = f", {str(tmp_path / 'back')!r}" if function == "restore_all" else ""
        memory, seconds, answer = spent(f"asyncio.run(asyncdump.{function}({str(tmp_path)!r}{target}))")
        assert memory < MOST * len(content) + 16 * MiB
        assert seconds < SOON
        assert answer in {"ReceiptError", "done"}


def signed(encoded: bytes) -> bytes:
    return b"%08x %b\n" % (zlib.crc32(encoded), encoded)


HEAD = signed(b'{"journal":1,"files":5}')
JOURNALS = {
    "one line of lists": lambda: HEAD + signed(repeated(b"[[],")),
    "one line of stages": lambda: HEAD + signed(holding("stages", repeated(b'"ab",'))),
    "the smallest dumps": lambda: HEAD + b"".join(signed(each + b"}") for each in small().split(b"},")[:-1]),
    "lines of nothing": lambda: HEAD + repeated(signed(b"{}")),
    "ends of lines": lambda: b"\n" * SIZE,
    "a head of lists": lambda: signed(b'{"journal":1,"x":[' + repeated(b"[],") + b"]}"),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("what", JOURNALS)
def test_so_does_a_journal(what, tmp_path: Path) -> None:
    content = JOURNALS[what]()
    (tmp_path / ".asyncdump-journal").write_bytes(content)
    memory, seconds, answer = spent(f"asyncio.run(asyncdump.verify_all({str(tmp_path)!r}))")
    assert memory < MOST * len(content) + 16 * MiB
    assert seconds < SOON
    assert answer in {"ReceiptError", "done"}


def test_a_receipt_of_more_dumps_than_it_has_room_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_bytes(receipt(small(2 * MiB)))
    _, _, answer = spent(f"asyncio.run(asyncdump.verify_all({str(tmp_path)!r}))")
    assert answer == "ReceiptError"


# --- seek tables ------------------------------------------------------------------------------------------------------


def table(path: Path, entries: bytes, count: int, stored: int, *, checksums: bool = True) -> Path:
    with path.open("wb") as file:
        file.truncate(stored)
        file.seek(stored)
        file.write(struct.pack("<II", 0x184D2A5E, len(entries) + 9) + entries)
        file.write(struct.pack("<IBI", count, checksums << 7, 0x8F92EAB1))
    return path


FRAMES = SIZE // 12
TABLES = {
    "as many frames as it holds": (lambda: struct.pack("<III", 8, 1, 0) * FRAMES, FRAMES, 8 * FRAMES),
    "frames that aren't alike": (
        lambda: struct.pack("<6I", 8, 1, 0, 8, 2, 0) * (FRAMES // 2),
        FRAMES // 2 * 2,
        FRAMES // 2 * 16,
    ),
    "zeros": (lambda: bytes(12 * FRAMES), FRAMES, 0),
    "frames of 1 GiB": (lambda: struct.pack("<III", 8, GiB, 0) * 4, 4, 32),
    "frames of 128 MiB": (lambda: struct.pack("<III", 8, 128 * MiB, 0) * 4, 4, 32),
    "a frame of nothing that takes 1 GiB": (lambda: struct.pack("<6I", GiB, 0, 0, 8, 1, 0), 2, GiB + 8),
    "a frame of a byte that takes 1 GiB": (lambda: struct.pack("<III", GiB, 1, 0), 1, GiB),
    "more than there is room for": (lambda: struct.pack("<III", 8, 1, 0) * 4, 1 << 27, 32),
    "more than the format has": (lambda: struct.pack("<III", 8, 1, 0) * 4, (1 << 32) - 1, 32),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("what", TABLES)
@pytest.mark.parametrize("function", ["describe_dump({})", "open_dump({}).read(1)", "open_dump({}).seek(-1, 2)"])
def test_a_seek_table_takes_what_it_is(what, function, tmp_path: Path) -> None:
    entries, count, stored = TABLES[what]
    path = table(tmp_path / "bomb.zst", entries(), count, stored)
    memory, seconds, _ = spent(f"asyncdump.{function.format(repr(str(path)))}")
    assert memory < 2 * SIZE + 16 * MiB
    assert seconds < SOON


def test_a_dump_with_such_a_table_is_corrupt(tmp_path: Path) -> None:
    entries, count, stored = TABLES["as many frames as it holds"]
    size = table(tmp_path / "bomb.zst", entries(), count, stored).stat().st_size
    dump = record(name="bomb.zst", stages=["zstd:3"], bytes=FRAMES, size=size, stored=size, digest=f"xxh128:{0:032}")
    (tmp_path / "receipt.json").write_bytes(receipt(dump))
    code = f"asyncio.run(asyncdump.verify_all({str(tmp_path)!r})).files[0].verdict"
    memory, seconds, answer = spent(code)
    assert answer == "corrupt"
    assert memory < 2 * SIZE + 32 * MiB
    assert seconds < SOON


@pytest.mark.sample(9)
@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 512, 513, 70_000])
@pytest.mark.parametrize("lengths", [[100], [100, 0], [0], [1, 99, 3]])
def test_a_table_is_read_as_it_was_written(checksums, count, lengths, tmp_path: Path) -> None:
    frames, entries, offset, place = [], b"", 0, 0
    for number in range(count):
        length, stored = lengths[number % len(lengths)], 8 + number % 7
        checksum = number if checksums else None
        frames.append(Frame(offset=offset, length=length, stored_offset=place, stored=stored, checksum=checksum))
        entries += struct.pack("<3I" if checksums else "<2I", stored, length, *[number] * checksums)
        offset, place = offset + length, place + stored
    table(tmp_path / "t.zst", entries, count, place, checksums=checksums)
    with open(tmp_path / "t.zst", "rb") as file:
        read = read_seek_table(file.fileno(), "t.zst")
    assert read is not None
    assert list(read) == frames
    assert (len(read), read.content, read.stored) == (count, offset, place)
    assert read.largest == max((frame.length for frame in frames), default=0)
    firsts = {frame.length for frame in frames[:-1]}
    assert read.even == (len(firsts) <= 1 and all(frames[-1].length <= length for length in firsts))
    for index in {0, 1, 254, 255, 256, 511, count // 2, count - 1} & set(range(count)):
        assert read[index] == frames[index]
        frame = frames[index]
        if frame.length:
            assert read.holding(frame.offset) == read.holding(frame.offset + frame.length - 1) == index
    for step in (2, 3, 257, -1, -2):  # Whatever was looked at before.
        places = range(count)[::step][:600]
        assert [read[index] for index in places] == [frames[index] for index in places]
    with pytest.raises(IndexError):
        read[count]


# --- frames that are right, and take more than there is ---------------------------------------------------------------


def framed(data: bytes, **parameters: Any) -> bytes:
    """Compress as ``zstd`` does from a pipe: the frame doesn't tell its size, and so has the window asked for."""
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(1, **parameters)
    ).compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize("log", [10, 23, 27, 30, 31])
def test_a_window_is_no_damage(log, tmp_path: Path) -> None:
    data = content(3 * MiB + 5)
    frame = bytearray(framed(data, window_log=20))
    frame[5] = (log - 10) << 3  # Where a frame keeps the logarithm of its window (RFC 8878).
    if log < 20:
        frame = bytearray(framed(data, window_log=log))
    (tmp_path / "far.zst").write_bytes(frame)
    if log <= 30:
        with asyncdump.open_dump(tmp_path / "far.zst") as dump:
            assert dump.read() == data
        return
    with asyncdump.open_dump(tmp_path / "far.zst") as dump, pytest.raises(DumpError) as caught:
        dump.read()
    assert not isinstance(caught.value, asyncdump.DamagedError)
    assert "2.0 GiB" in str(caught.value)
    assert "--long=31" in caught.value.hint


def test_nor_is_a_dictionary(tmp_path: Path) -> None:
    words = zstandard.train_dictionary(4 * KiB, [noise(500, start) for start in range(0, 50_000, 250)])
    frame = zstandard.ZstdCompressor(dict_data=words).compress(noise(5000))
    (tmp_path / "words.zst").write_bytes(frame)
    with asyncdump.open_dump(tmp_path / "words.zst") as dump, pytest.raises(DumpError) as caught:
        dump.read()
    assert not isinstance(caught.value, asyncdump.DamagedError)
    assert str(words.dict_id()) in str(caught.value)


def test_what_is_skipped_empty_or_joined_is_read(tmp_path: Path) -> None:
    def skipped(length: int) -> bytes:
        return b"\x53\x2a\x4d\x18" + length.to_bytes(4, "little") + bytes(length)

    data, nothing = noise(300 * KiB), framed(b"")
    pieces = [skipped(0), skipped(3 * MiB), framed(data), skipped(5), nothing, nothing, framed(data), skipped(17)]
    (tmp_path / "mixed.zst").write_bytes(b"".join(pieces))
    with asyncdump.open_dump(tmp_path / "mixed.zst") as dump:
        assert dump.read() == data + data
    (tmp_path / "empty.zst").write_bytes(nothing)
    with asyncdump.open_dump(tmp_path / "empty.zst") as dump:
        assert dump.read() == b""
