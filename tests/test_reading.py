"""Dumps read back: any part of them is what it was, and damage is told."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash
import zstandard
from files import KiB, MiB, content, noise, unavailable
from hypothesis import given
from hypothesis import strategies as st

import asyncdump
from asyncdump.codecs.seekable import Table, read_seek_table


def packed(data: bytes, frame: int, *, checksum: bool = True) -> bytes:
    """Return a seekable .zst as a dump is one."""
    table, stored = Table(checksums=checksum), b""
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=checksum)
    for start in range(0, max(len(data), 1), frame):
        piece = data[start : start + frame]
        compressed = compressor.compress(piece)
        table.add(compressed, len(piece))
        stored += compressed
    return stored + b"".join(table.encoded())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dumps") / "dump.zst"


@given(data=st.binary(max_size=5000), frame=st.integers(1, 2000), checksum=st.booleans(), steps=st.data())
def test_it_reads_as_the_content_does(
    place: Path, data: bytes, frame: int, *, checksum: bool, steps: st.DataObject
) -> None:
    place.write_bytes(packed(data, frame, checksum=checksum))
    model = io.BytesIO(data)
    with asyncdump.open_dump(place) as dump:
        for _ in range(8):
            whence = steps.draw(st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
            # From the end or from here, only forward of the start: before it, both raise.
            offset = steps.draw(st.integers(0, 6000)) if whence == os.SEEK_SET else 0
            assert dump.seek(offset, whence) == model.seek(offset, whence)
            size = steps.draw(st.integers(0, 3000) | st.just(-1))
            assert dump.read(size) == model.read(size)
            assert dump.tell() == model.tell()


def test_no_more_is_decompressed_than_is_read(place: Path) -> None:
    data = noise(64 * KiB)
    stored = bytearray(packed(data, 4096))
    stored[20 * KiB : 40 * KiB] = bytes(20 * KiB)  # Frames in the middle are gone.
    place.write_bytes(stored)
    with asyncdump.open_dump(place) as dump:
        dump.seek(60 * KiB)
        assert dump.raw.read(100) == data[60 * KiB :][:100]
        dump.seek(0)
        assert dump.raw.read(100) == data[:100]


def test_a_changed_byte_is_never_content(place: Path) -> None:
    data = content(3000) + bytes(500)
    whole = packed(data, 1000)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 0x41
        place.write_bytes(changed)
        try:
            with asyncdump.open_dump(place) as dump:
                assert dump.read() == data
        except asyncdump.DumpError as error:
            assert str(place) in str(error)  # noqa: PT017 (both ends are right)


def test_a_file_that_was_cut_is_never_content(place: Path) -> None:
    data = content(3000)
    whole = packed(data, 1000)
    for length in range(4, len(whole)):
        place.write_bytes(whole[:length])
        try:
            with asyncdump.open_dump(place) as dump:
                read = dump.read()
        except asyncdump.DumpError:
            continue
        # Without its table a .zst that ends with a frame is a whole one, to every reader.
        assert read == data[: len(read)]
        assert len(read) % 1000 == 0


def test_damage_is_told_with_its_place(place: Path) -> None:
    stored = bytearray(packed(noise(5000), 1000))
    stored[2100] ^= 1
    place.write_bytes(stored)
    with (
        asyncdump.open_dump(place) as dump,
        pytest.raises(asyncdump.DumpError, match=rf"\b2\b.*{place.name}"),
    ):
        dump.read()


@pytest.mark.parametrize("options", [["-1"], ["-3", "--no-check"], ["-19", "--long=27"], ["-1", "--no-content-size"]])
@pytest.mark.parametrize("size", [0, 1, 3 * MiB + 5])
def test_a_zst_of_the_zstd_command_is_read_too(options: list[str], size: int, tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        unavailable("zstd is not installed", excusable=True)
    data = content(size)
    (tmp_path / "content").write_bytes(data)
    subprocess.run(["zstd", "-q", *options, "content", "-o", "dump.zst"], cwd=tmp_path, check=True)
    with asyncdump.open_dump(tmp_path / "dump.zst") as dump:
        assert dump.read() == data
        assert dump.seek(0, os.SEEK_END) == size
        dump.seek(size // 2)
        assert dump.read(10) == data[size // 2 :][:10]
    info = asyncdump.describe_dump(tmp_path / "dump.zst")
    assert (info.kind, info.seekable, info.content) == ("zstd", False, None)


def test_a_frame_that_claims_too_much_takes_no_memory(place: Path) -> None:
    table = Table(checksums=False)
    frame = b"\x28\xb5\x2f\xfd\x80\x38" + b"\xff" * 4 + (128 * KiB << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"x"
    table.add(frame, 0xFFFFFFFF)
    place.write_bytes(frame + b"".join(table.encoded()))
    with asyncdump.open_dump(place) as dump, pytest.raises(asyncdump.DamagedError, match=r"\bGiB"):
        dump.read(1)


def test_a_raw_dump_is_its_own_content(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"abcdef")
    with asyncdump.open_dump(tmp_path / "raw") as dump:
        assert dump.read() == b"abcdef"
    with asyncdump.open_dump(tmp_path / "raw") as dump:
        dump.seek(2)
        assert dump.read(3) == b"cde"
    info = asyncdump.describe_dump(tmp_path / "raw")
    assert (info.kind, info.content, info.stored, info.frames, info.seekable) == ("raw", 6, 6, None, True)


def test_what_a_dump_is(place: Path) -> None:
    place.write_bytes(packed(content(2500), 1000))
    info = asyncdump.describe_dump(place)
    assert (info.kind, info.content, info.frames, info.frame) == ("zstd", 2500, 3, 1000)
    assert info.checksums
    assert info.seekable
    assert info.ratio == 2500 / place.stat().st_size


def test_the_checksums_of_the_table_are_those_of_the_content(place: Path) -> None:
    data = content(2500)
    place.write_bytes(packed(data, 1000))
    with place.open("rb") as file:
        frames = read_seek_table(file.fileno(), str(place))
    assert frames is not None
    for frame in frames:
        piece = data[frame.offset : frame.offset + frame.length]
        assert frame.checksum == xxhash.xxh64_intdigest(piece) & 0xFFFFFFFF


@given(st.binary(max_size=300))
def test_any_end_of_a_file_is_a_table_or_none(place: Path, start: bytes) -> None:
    place.write_bytes(start + b"".join(Table(checksums=False).encoded())[-9:])
    with place.open("rb") as file:
        try:
            frames = read_seek_table(file.fileno(), str(place))
        except asyncdump.DumpError as error:
            assert error.path == str(place)  # noqa: PT017 (both ends are right)
        else:
            assert not frames


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    for function in (asyncdump.open_dump, asyncdump.describe_dump):
        with pytest.raises(asyncdump.DumpError, match="ENOENT"):
            function(tmp_path / "nothing")


@pytest.mark.sample(1)
@pytest.mark.parametrize("size", [1500, 2500, 3000])
def test_a_changed_byte_never_moves_the_content(size: int, place: Path) -> None:
    """Not by a size in the table that is no longer true, wherever one reads."""
    data = noise(size)
    whole = packed(data, 1000)
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1
        place.write_bytes(changed)
        for start in range(0, size, 500):
            try:
                with asyncdump.open_dump(place) as dump:
                    dump.seek(start)
                    assert dump.read(50) == data[start : start + 50]
                    assert dump.seek(0, os.SEEK_END) == size
            except asyncdump.DumpError:
                pass


@pytest.mark.parametrize("length", range(4))
def test_a_dump_of_which_hardly_anything_is_left_is_not_raw(length: int, place: Path) -> None:
    place.write_bytes(packed(b"abc", 10)[:length])
    for function in (asyncdump.open_dump, asyncdump.describe_dump):
        with pytest.raises(asyncdump.DumpError, match=place.name):
            function(place)


def test_dumps_that_were_joined_are_read_one_after_the_other(place: Path) -> None:
    place.write_bytes(packed(noise(2500), 1000) + packed(noise(500, 9), 1000))
    with asyncdump.open_dump(place) as dump:
        assert dump.read() == noise(2500) + noise(500, 9)
    assert not asyncdump.describe_dump(place).seekable


def test_frames_need_not_say_their_size(place: Path) -> None:
    """Those of other writers of the format don't."""
    data, stored, table = noise(2500), b"", Table(checksums=False)
    for start in range(0, 2500, 1000):
        stream = zstandard.ZstdCompressor().compressobj()
        piece = data[start : start + 1000]
        frame = stream.compress(piece) + stream.flush()
        table.add(frame, len(piece))
        stored += frame
    place.write_bytes(stored + b"".join(table.encoded()))
    with asyncdump.open_dump(place) as dump:
        dump.seek(900)
        assert dump.read() == data[900:]


def test_damage_stays_damage_when_one_reads_on(place: Path) -> None:
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(noise(2500))
    place.write_bytes(frame + frame[:-1] + bytes([frame[-1] ^ 1]))
    with asyncdump.open_dump(place) as dump:
        for _ in range(2):
            with pytest.raises(asyncdump.DumpError, match=place.name):
                dump.read()
        with pytest.raises(asyncdump.DumpError, match=place.name):
            dump.seek(0, os.SEEK_END)
        dump.seek(0)
        assert dump.read(100) == noise(100)


def test_a_bomb_without_a_table_goes_off_in_small_pieces(place: Path) -> None:
    """Blocks of four bytes that stand for 128 KiB each: the file has 400 KB, its content 12 GiB."""
    block = (128 * KiB << 3 | 1 << 1).to_bytes(3, "little") + b"x"
    place.write_bytes(b"\x28\xb5\x2f\xfd\x00\x38" + 100_000 * block)
    code = f"""
import resource, asyncdump
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
with asyncdump.open_dump({str(place)!r}) as dump:
    dump.seek(300 << 20)
    assert dump.read(10) == b"x" * 10
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_table_of_nothing_is_refused_before_it_takes_memory(place: Path) -> None:
    place.write_bytes(
        b"\x5e\x2a\x4d\x18" + (809).to_bytes(4, "little") + bytes(800) + b"".join(Table(checksums=False).encoded())[-9:]
    )
    stored = bytearray(place.read_bytes())
    stored[-9:-4] = (100).to_bytes(4, "little") + b"\0"
    place.write_bytes(stored)
    with pytest.raises(asyncdump.DumpError, match=r"\b0\b.*\b8\b"):
        asyncdump.open_dump(place)


@pytest.mark.parametrize("function", [asyncdump.open_dump, asyncdump.describe_dump])
def test_what_is_no_file_is_refused_without_a_wait(function, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(asyncdump.DumpError, match=r"fifo|directory"):
            function(path)
