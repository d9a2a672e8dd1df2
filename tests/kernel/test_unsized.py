"""Files of a real filesystem (FUSE, direct_io) whose size isn't what they give."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fuse
import pytest
from files import MiB, noise, unavailable

import asyncdump
from asyncdump import Dump

LENGTHS = [0, 1, 10, 4095, 4096, 4097, MiB, 3 * MiB + 5]


@pytest.fixture(scope="module", params=[0, 1, 4096, 10 * MiB])
def claimed(request) -> int:
    size: int = request.param
    return size


@pytest.fixture(scope="module")
def liars(claimed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        unavailable("FUSE needs root and /dev/fuse")
    with fuse.mounted(tmp_path_factory.mktemp("fuse"), "direct_io", f"size={claimed}") as point:
        yield point


@pytest.mark.sample(22)
@pytest.mark.parametrize("how", [{}, {"checksum": "none"}, {"compress": "zstd"}, {"method": "splice"}])
@pytest.mark.parametrize("length", LENGTHS)
async def test_what_it_gives_is_dumped_whatever_it_claims(length, how, liars, claimed, tmp_path: Path) -> None:
    data = noise(length)
    source = liars / f"file-{length}"
    source.write_bytes(data)
    assert source.stat().st_size == claimed
    report = await asyncdump.dump_all([Dump(source=source, name="x")], output=tmp_path / "out", **how)
    report.raise_for_failures()
    assert report.files[0].bytes == length
    with asyncdump.open_dump(tmp_path / "out/x") as dump:
        assert dump.read() == data


async def test_a_part_of_it(liars, tmp_path: Path) -> None:
    (liars / "parts").write_bytes(noise(100_000))
    dumps = [
        Dump(source=liars / "parts", name="a", offset=50_000, length="1KiB"),
        Dump(source=liars / "part?", name="b"),
    ]
    (await asyncdump.dump_all(dumps, output=tmp_path / "out")).raise_for_failures()
    assert (tmp_path / "out/a").read_bytes() == noise(100_000)[50_000:51_024]
    assert (tmp_path / "out/b").read_bytes() == noise(100_000)


async def test_more_than_is_held_is_refused(liars, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("asyncdump.sources.unsized.LARGEST_STREAM", 3 * MiB)
    (liars / "large").write_bytes(noise(3 * MiB + 1))
    report = await asyncdump.dump_all([Dump(source=liars / "large", name="x")], output=tmp_path / "out")
    assert not report.ok
    assert not (tmp_path / "out/x").exists()
