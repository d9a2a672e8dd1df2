"""Hostile files of each codec: whatever they claim, reading takes bounded memory, and ends soon."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from files import GiB, KiB, MiB, unavailable
from test_bombs import TABLES, spent, table

import asyncdump
from asyncdump.codecs.codec import Codec
from asyncdump.codecs.registry import CODECS
from asyncdump.errors import DamagedError, DumpError

MOST = 64 * MiB
"""Bytes of memory that reading anything may take, beyond the file itself: some pieces of a stream."""
SOON = 30.0
READERS = ["describe_dump({})", "open_dump({}).read(1)", "open_dump({}).seek(-1, 2)"]


@pytest.fixture(params=CODECS)
def codec(request) -> Codec:
    if missing := CODECS[request.param].missing():
        unavailable(f"{request.param} is not installed: {missing}")
    return CODECS[request.param]


@pytest.fixture
def bomb(tmp_path: Path, codec: Codec) -> Path:
    return tmp_path / f"bomb{codec.suffix}"


def lz4_header(flags: int, *fields: bytes) -> bytes:
    import xxhash

    descriptor = bytes([0b01_000000 | flags, 0x70]) + b"".join(fields)
    return b"\x04\x22\x4d\x18" + descriptor + bytes([xxhash.xxh32_intdigest(descriptor) >> 8 & 0xFF])


def lz4_block(literal: bytes, repeats: int) -> bytes:
    """Return a block that repeats one byte ``255 * repeats`` times: as much as a block can claim for its size."""
    body = bytes([len(literal) << 4 | 15]) + literal + b"\x01\x00" + b"\xff" * repeats + b"\x00"
    body += bytes([5 << 4]) + b"12345"  # A block ends with literals.
    return struct.pack("<I", len(body)) + body


def far(path: Path) -> Path:
    """Write a .lz4 of some 30 MiB that holds 8 GiB."""
    repeats = (4 * MiB - 64) // 255
    block = lz4_block(b"x", repeats)
    with path.open("wb") as file:
        file.write(lz4_header(1 << 5))
        for _ in range(8 * GiB // (255 * repeats)):
            file.write(block)
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", TABLES)
def test_a_table_that_lies(what, reader, tmp_path: Path) -> None:
    """As in the tests of bombs, for the other codec."""
    entries, count, stored = TABLES[what]
    path = table(tmp_path / "bomb.lz4", entries(), count, stored)
    memory, seconds, answer = spent(f"asyncdump.{reader.format(repr(str(path)))}")
    assert memory < 2 * path.stat().st_blocks * 512 + 16 * MiB
    assert seconds < SOON
    if "read(1)" in reader:
        assert answer in {"DamagedError", "DumpError"}


@pytest.mark.parametrize("length", [GiB, 1 << 40, (1 << 63) - 1])
def test_a_frame_that_claims_content(length, tmp_path: Path) -> None:
    """What it claims is memory for a library that believes it."""
    path = tmp_path / "claim.lz4"
    path.write_bytes(lz4_header(1 << 3, struct.pack("<Q", length)) + lz4_block(b"x", 10) + bytes(4))
    memory, seconds, answer = spent(f"asyncdump.open_dump({str(path)!r}).read()")
    assert answer == "DamagedError"
    assert memory < MOST
    assert seconds < SOON
    entries = struct.pack("<II", path.stat().st_size, min(length, GiB))
    with path.open("ab") as file:
        file.write(struct.pack("<II", 0x184D2A5E, len(entries) + 9) + entries + struct.pack("<IBI", 1, 0, 0x8F92EAB1))
    memory, _, answer = spent(f"asyncdump.open_dump({str(path)!r}).read(1)")
    assert answer in {"DamagedError", "DumpError"}
    assert memory < MOST


@pytest.mark.parametrize(
    "code", ["open_dump({}).read(1)", "open_dump({}).read(1 << 20)", "open_dump({}).seek(300 << 20)"]
)
def test_a_stream_of_repetitions(code, tmp_path: Path) -> None:
    path = far(tmp_path / "far.lz4")
    memory, seconds, answer = spent(f"asyncdump.{code.format(repr(str(path)))}")
    assert answer == "done"
    assert memory < MOST
    assert seconds < SOON


def test_a_dump_whose_record_and_table_agree(bomb: Path, codec: Codec) -> None:
    """Together they claim 1 GiB for a frame of some MiB."""
    entries = struct.pack("<II", 8 * MiB, GiB)
    table(bomb, entries, 1, 8 * MiB, checksums=False)
    size = bomb.stat().st_size
    record = {
        "source": "/s",
        "name": bomb.name,
        "bytes": GiB,
        "size": size,
        "stored": size,
        "digest": "xxh128:" + "0" * 32,
    }
    record["stages"] = [f"{codec.name}:1"]
    (bomb.parent / "receipt.json").write_text(json.dumps({"receipt": 1, "files": [record]}))
    memory, seconds, answer = spent(f"asyncio.run(asyncdump.verify_all({str(bomb.parent)!r})).files[0].verdict")
    assert answer == "corrupt"
    assert memory < MOST
    assert seconds < SOON


def test_a_block_larger_than_its_frame_allows(tmp_path: Path) -> None:
    path = tmp_path / "block.lz4"
    path.write_bytes(lz4_header(1 << 5) + struct.pack("<I", 0x7FFFFFFF) + bytes(64 * KiB))
    with asyncdump.open_dump(path) as dump, pytest.raises(DamagedError):
        dump.read()


def test_a_dictionary_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "words.lz4"
    path.write_bytes(lz4_header(1, struct.pack("<I", 4711)) + lz4_block(b"x", 10) + bytes(4))
    with asyncdump.open_dump(path) as dump, pytest.raises(DumpError) as caught:
        dump.read()
    assert not isinstance(caught.value, DamagedError)
    assert "4711" in str(caught.value)
    assert "lz4 -dc -D" in caught.value.hint
