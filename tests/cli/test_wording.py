"""What a person reads, word by word. It is written down here alone: elsewhere tests look at codes, names and numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import asyncdump, redirected, write_manifest
from files import MiB, noise

WRONG = """\
version: 1
output: o
concurency: 4
dumps:
  - source: a
  - source: b
    length: 16 MiBs
  - source: c
    checksum: md5
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a source, its manifest and its dump."""
    (tmp_path / "ring").write_bytes(noise(3 * MiB))
    write_manifest(tmp_path, "ring")
    assert asyncdump("m.yaml", "-q", cwd=tmp_path).returncode == 0
    return tmp_path


def told(*arguments: str, cwd: Path) -> list[str]:
    """Return the lines of both streams, stderr first, with the folder left out."""
    done = asyncdump(*arguments, cwd=cwd)
    return (done.stderr + done.stdout).replace(f"{cwd}/", "").splitlines()


def test_a_dump(tmp_path: Path) -> None:
    (tmp_path / "ring").write_bytes(noise(3 * MiB))
    write_manifest(tmp_path, "ring")
    begin, end, *_, beside = told("m.yaml", cwd=tmp_path)
    assert begin == "dumping 1 file, 3.0 MiB, to out"
    assert end == "1 of 1 file dumped to out"
    assert beside == "Also written: receipt.json, XXH128SUMS"


def test_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "ring").write_bytes(noise(3 * MiB))
    write_manifest(tmp_path, "ring")
    head, *_, last = told("m.yaml", "--dry-run", cwd=tmp_path)
    assert head.split() == ["name", "source", "kind", "size", "method", "checksum"]
    assert last == "A dry run: nothing was written."


def test_a_manifest_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(WRONG)
    assert told("m.yaml", cwd=tmp_path) == [
        "asyncdump: m.yaml:3: concurency: unknown key; did you mean concurrency?",
        "asyncdump: m.yaml:7: dumps[1].length: '16 MiBs' is not a size: write bytes, or 512KiB, 16MiB, 1GiB",
        "asyncdump: m.yaml:9: dumps[2].checksum: 'md5' is not one of xxh128, blake3, sha256, none",
    ]


def test_a_plan_that_cannot_be(run: Path) -> None:
    write_manifest(run, "nothing_*", {"source": "ring", "offset": "1G"}, output="other")
    assert told("m.yaml", cwd=run) == [
        "asyncdump: m.yaml:1: dumps[0].source: nothing_* matches no file",
        "asyncdump: m.yaml:1: dumps[1].offset: 1073741824 is past the end of ring, which has 3145728 bytes",
    ]


def test_a_folder_that_holds_a_dump(run: Path) -> None:
    (line,) = told("m.yaml", cwd=run)
    assert line == (
        "asyncdump: m.yaml:1: output: out has ring, receipt.json already: choose another directory, or pass --overwrite"
    )


def test_a_file_that_fails(run: Path) -> None:
    write_manifest(run, {"source": "ring", "filter": [["false"]]}, output="other")
    lines = told("m.yaml", "--allow-filters", "-q", cwd=run)
    assert "asyncdump: failed: ring (move): false exited with status 1" in lines


def test_verified(run: Path) -> None:
    begin, end = told("verify", "out", cwd=run)
    assert begin == "verifying 1 file, 3.0 MiB, in out"
    assert end.startswith("1 of 1 dump verified against out/receipt.json: 3.0 MiB in ")


def test_damaged(run: Path) -> None:
    with (run / "out/ring").open("r+b") as file:
        file.seek(2 * MiB + 5)
        file.write(b"??")
    why = f"digest mismatch; first bad 2 MiB block at byte {2 * MiB}"
    assert told("verify", "out", "-q", cwd=run) == [f"asyncdump: corrupt: ring: out/ring is corrupt: {why}"]


def test_restored(run: Path) -> None:
    assert "1 of 1 file restored to back" in told("restore", "out", "--to", "back", cwd=run)
    (line,) = told("restore", "out", "--to", "back", cwd=run)
    assert line == "asyncdump: back/ring exists already: choose another directory, or pass --overwrite"


def test_gone_on_with(run: Path) -> None:
    assert "1 file kept from an earlier run (verified)" in told("m.yaml", "--resume", cwd=run)


def test_a_call_that_fails(tmp_path: Path) -> None:
    (line,) = told("dd", "if=nothing", "status=none", cwd=tmp_path)
    assert line == "asyncdump dd: open of nothing: ENOENT (No such file or directory)"


def test_nowhere_to_write_to(run: Path) -> None:
    done = redirected(">/dev/full", "verify", "out", "--json", cwd=run)
    assert done.stderr == "asyncdump: write of standard output: ENOSPC (No space left on device)\n"
