"""cat and info: what is printed of dumps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from files import MiB, content

import asyncdump

DATA = content(5 * MiB + 3)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "asyncdump", *map(str, arguments)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reading")
    (place / "ring").write_bytes(DATA)
    manifest = place / "manifest.yaml"
    manifest.write_text(
        "version: 1\noutput: out\ndumps:\n"
        "  - {source: ring, compress: {zstd: {level: 1, frame: 64KiB}}}\n  - {source: ring, name: raw}\n"
    )
    subprocess.run(command(manifest, "--quiet"), check=True)
    return place / "out"


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ["ring.zst", "raw"])
@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], slice(None)),
        (["--offset", "1MiB"], slice(MiB, None)),
        (["--offset", "65535", "--length", "2"], slice(65535, 65537)),
        (["--length", "0"], slice(0)),
        (["--length", "1G"], slice(None)),
        (["--offset", str(len(DATA))], slice(len(DATA), None)),
    ],
)
def test_cat_writes_the_part(name: str, options: list[str], part: slice, folder: Path) -> None:
    done = subprocess.run(command("cat", folder / name, *options), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == DATA[part]


@pytest.mark.parametrize("name", ["ring.zst", "raw"])
def test_cat_says_that_the_offset_is_behind_the_end(name: str, folder: Path) -> None:
    done = subprocess.run(command("cat", folder / name, "--offset", "6M"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(len(DATA)) in done.stderr


@pytest.mark.parametrize("name", ["ring.zst", "raw"])
def test_a_reader_of_cat_may_go(name: str, folder: Path) -> None:
    with subprocess.Popen(command("cat", folder / name), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == DATA[:10]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_info(folder: Path) -> None:
    done = subprocess.run(
        command("info", folder / "ring.zst", folder / "raw"), capture_output=True, text=True, check=True
    )
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["dump", "kind", "content", "stored", "ratio", "frames", "of", "checksums", "seekable"]
    assert first.split()[1:4] == ["zstd", "5.0", "MiB"]
    assert second.split()[1:4] == ["raw", "5.0", "MiB"]
    done = subprocess.run(command("info", "--json", folder / "ring.zst"), capture_output=True, text=True, check=True)
    [record] = json.loads(done.stdout)
    assert (record["content"], record["frames"], record["frame"]) == (len(DATA), 81, 65536)


@pytest.mark.parametrize("arguments", [["cat", "nothing"], ["info", "nothing"], ["cat", "x", "--offset", "12 apples"]])
def test_what_is_wrong_is_one_message(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(command(*arguments), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["ring.zst", "raw"])
def test_a_full_output_is_one_message(name: str, folder: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("cat", folder / name), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert "ENOSPC" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_cat_says_so_without_a_seek_table_too(tmp_path: Path) -> None:
    (tmp_path / "dump.zst").write_bytes(zstandard.ZstdCompressor().compress(b"abc"))
    done = subprocess.run(command("cat", "dump.zst", "--offset", "4"), cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b" 3 " in done.stderr


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    "operands", [["compress=zstd"], ["compress=zstd:-3", "bs=1", "skip=5"], ["compress=zstd:1", "count=0"]]
)
@pytest.mark.parametrize("size", [0, 1, 2 * MiB, 5 * MiB + 3])
@pytest.mark.parametrize("by_pipe", [False, True])
def test_dd_compresses(operands: list[str], size: int, by_pipe: bool, tmp_path: Path) -> None:  # noqa: FBT001 (a parameter)
    if size < 5 and "skip=5" in operands:
        pytest.skip("nothing is there to be skipped")
    (tmp_path / "in").write_bytes(DATA[:size])
    source = [] if by_pipe else ["if=in"]
    done = subprocess.run(
        command("dd", *source, *operands, "status=none"),
        input=DATA[:size] if by_pipe else None,
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "out.zst").write_bytes(done.stdout)
    expected = b"" if "count=0" in operands else DATA[5 if "skip=5" in operands else 0 : size]
    with asyncdump.open_dump(tmp_path / "out.zst") as dump:
        assert dump.read() == expected
    subprocess.run(["zstd", "-t", "-q", "out.zst"], cwd=tmp_path, check=True)
