"""Raw or compressed: what a dump is comes from its record, its name or a flag, and never from what it holds."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import zstandard
from files import KiB, MiB, content, noise

import asyncdump

HOSTILE = zstandard.ZstdCompressor().compress(b"not what was dumped" * 1000)
"""Memory that begins as a .zst does."""


def cat(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "asyncdump", "cat", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, timeout=60, check=False)


@pytest.fixture
async def run(tmp_path: Path) -> Path:
    (tmp_path / "hostile").write_bytes(HOSTILE)
    (tmp_path / "odd.zst").write_bytes(HOSTILE)
    (tmp_path / "ring").write_bytes(noise(MiB))
    dumps = [
        asyncdump.Dump(source=str(tmp_path / "hostile")),
        asyncdump.Dump(source=str(tmp_path / "odd.zst")),
        asyncdump.Dump(source=str(tmp_path / "ring"), compress="zstd"),
    ]
    (await asyncdump.dump_all(dumps, output=tmp_path / "out")).raise_for_failures()
    return tmp_path


@pytest.mark.parametrize("name", ["hostile", "odd.zst"])
def test_a_raw_dump_that_begins_as_a_zst_does(name, run: Path) -> None:
    """Its record says what it is, also against its name."""
    with asyncdump.open_dump(run / "out" / name) as dump:
        assert dump.read() == HOSTILE
    found = asyncdump.describe_dump(run / "out" / name)
    assert (found.kind, found.content) == ("raw", len(HOSTILE))
    assert cat(f"out/{name}", cwd=run).stdout == HOSTILE
    assert cat(f"out/{name}", "--offset", "4", "--length", "9", cwd=run).stdout == HOSTILE[4:13]


async def test_a_filtered_dump_that_was_compressed_last(tmp_path: Path) -> None:
    (tmp_path / "ring").write_bytes(noise(MiB))
    dump = asyncdump.Dump(
        source=str(tmp_path / "ring"), name="ring", filter=(("cat",),), compress="zstd", first="filter"
    )
    (await asyncdump.dump_all([dump], output=tmp_path / "out", allow_filters=True)).raise_for_failures()
    with asyncdump.open_dump(tmp_path / "out" / "ring") as opened:
        assert opened.read() == noise(MiB)


def test_a_link_to_a_dump_is_that_dump(run: Path) -> None:
    (run / "link.zst").symlink_to("out/hostile")
    assert cat("link.zst", cwd=run).stdout == HOSTILE


def test_a_compressed_dump_by_its_record(run: Path) -> None:
    assert cat("out/ring.zst", cwd=run).stdout == noise(MiB)
    assert asyncdump.describe_dump(run / "out" / "ring.zst").kind == "zstd"


def test_by_the_journal_of_a_run_that_never_ended(run: Path) -> None:
    """Made of the receipt: a journal has the same records."""
    receipt = json.loads((run / "out" / "receipt.json").read_bytes())
    (run / "out" / "receipt.json").unlink()
    from asyncdump.records.journal import Head, Journal
    from asyncdump.records.record import Record, file_of
    from asyncdump.sinks.folder import Folder
    from asyncdump.vocabulary.names import JOURNAL

    folder = Folder(str(run / "out"))
    files = [
        file_of(msgspec.json.decode(json.dumps(record), type=Record), str(run / "out")) for record in receipt["files"]
    ]
    Journal(folder, Head(files=3, started="", manifest_sha256=""), files).close()
    folder.close()
    assert (run / "out" / JOURNAL).exists()
    assert cat("out/odd.zst", cwd=run).stdout == HOSTILE


@pytest.mark.parametrize("spoil", ["missing", "damaged", "another size", "a folder"])
def test_without_a_record_the_name_decides(spoil, run: Path) -> None:
    receipt = run / "out" / "receipt.json"
    if spoil == "another size":
        with (run / "out" / "odd.zst").open("ab") as file:
            file.write(zstandard.ZstdCompressor().compress(b""))
    else:
        receipt.unlink()
    if spoil == "damaged":
        receipt.write_text("{")
    elif spoil == "a folder":
        receipt.mkdir()
    assert cat("out/odd.zst", cwd=run).stdout == b"not what was dumped" * 1000
    assert cat("out/hostile", cwd=run).stdout == HOSTILE


def test_a_flag_decides_before_all(run: Path) -> None:
    assert cat("--zstd", "out/odd.zst", cwd=run).stdout == b"not what was dumped" * 1000
    (run / "renamed").write_bytes((run / "out" / "ring.zst").read_bytes())
    assert cat("renamed", cwd=run).stdout == (run / "renamed").read_bytes()
    assert cat("renamed", "--zstd", cwd=run).stdout == noise(MiB)
    assert cat("out/ring.zst", "--raw", cwd=run).stdout == (run / "renamed").read_bytes()
    with asyncdump.open_dump(run / "renamed", compressed=True) as dump:
        assert dump.read() == noise(MiB)
    with asyncdump.open_dump(run / "out" / "ring.zst", compressed=False) as dump:
        assert dump.read() == (run / "renamed").read_bytes()
    command = [sys.executable, "-m", "asyncdump", "info", "--json", "--zstd", "renamed"]
    [told] = json.loads(subprocess.run(command, cwd=run, capture_output=True, check=True).stdout)
    assert (told["kind"], told["content"]) == ("zstd", MiB)


def test_what_is_called_a_zst_and_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.zst").write_bytes(b"nothing of the kind")
    done = cat("x.zst", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"--raw" in done.stderr
    assert cat("x.zst", "--raw", cwd=tmp_path).stdout == b"nothing of the kind"
    assert cat("--zstd", "x.zst", cwd=tmp_path).returncode == 2


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.sample(2)
@pytest.mark.parametrize("at", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("data", [noise(600_000), content(600_000), bytes(40 * MiB)], ids=["noise", "mixed", "zeros"])
def test_all_that_can_be_had_comes_before_the_damage(data: bytes, at: float, tmp_path: Path) -> None:
    """As much as a decompressor gives that is fed a byte at a time."""
    stored = bytearray(zstandard.ZstdCompressor(level=1, write_checksum=True).compress(data))
    place = int(len(stored) * at)
    stored[place : place + 40] = bytes(byte ^ 0x5A for byte in stored[place : place + 40])
    (tmp_path / "x.zst").write_bytes(stored)
    decompressor, good = zstandard.ZstdDecompressor().decompressobj(), io.BytesIO()
    with contextlib.suppress(zstandard.ZstdError):
        for place in range(len(stored)):
            good.write(decompressor.decompress(stored[place : place + 1]))
    done = cat("x.zst", cwd=tmp_path)
    assert done.returncode == 2
    assert b"x.zst" in done.stderr
    assert done.stdout == good.getvalue()
    if at == 0.5:
        assert done.stdout


def test_each_block_before_a_bad_one_is_written(tmp_path: Path) -> None:
    """Blocks of 128 KiB are what a .zst of another program is made of."""
    data, block = noise(2 * MiB), 128 * KiB
    stored = bytearray(zstandard.ZstdCompressor(level=1).compress(data))
    header = zstandard.frame_header_size(stored) + 7 * (3 + block)
    stored[header] |= 6  # A type of block that there isn't (RFC 8878).
    (tmp_path / "x.zst").write_bytes(stored)
    done = cat("x.zst", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == data[: 7 * block]


def test_all_that_is_good_comes_before_a_cut(tmp_path: Path) -> None:
    data = noise(3 * MiB)
    stored = zstandard.ZstdCompressor(level=1).compress(data)
    (tmp_path / "x.zst").write_bytes(stored[: -100 * KiB])
    done = cat("x.zst", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stdout) > 2 * MiB + 768 * KiB
    assert data.startswith(done.stdout)


def test_whole_frames_come_before_a_damaged_one(run: Path) -> None:
    data = noise(4 * MiB)
    (run / "big").write_bytes(data)
    (run / "framed.yaml").write_text(
        "version: 1\noutput: framed\ndumps:\n  - {source: big, compress: {zstd: {level: 1, frame: 256KiB}}}\n"
    )
    subprocess.run([sys.executable, "-m", "asyncdump", "framed.yaml", "-q"], cwd=run, check=True)
    dump = run / "framed" / "big.zst"
    stored = bytearray(dump.read_bytes())
    stored[len(stored) // 2] ^= 0xFF
    dump.write_bytes(stored)
    done = cat(dump, cwd=run)
    assert done.returncode == 2
    assert len(done.stdout) % (256 * KiB) == 0
    assert len(done.stdout) >= 1792 * KiB
    assert data.startswith(done.stdout)
