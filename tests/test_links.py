"""Dumps that somebody has made one file by hard links, as tools that look for duplicates do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from files import noise

import asyncdump
from asyncdump import Dump, verify_all
from asyncdump.sinks.folder import Folder

SIZE = 100_000


@pytest.fixture
def sources(tmp_path: Path) -> list[Dump]:
    for name in "abc":
        (tmp_path / f"source-{name}").write_bytes(noise(SIZE))
    return [Dump(source=tmp_path / f"source-{name}", name=name) for name in "abc"]


@pytest.fixture
async def linked(sources: list[Dump], tmp_path: Path) -> Path:
    out = tmp_path / "out"
    (await asyncdump.dump_all(sources, output=out)).raise_for_failures()
    for name in "bc":
        (out / name).unlink()
        os.link(out / "a", out / name)
    return out


async def test_they_are_kept(linked: Path, sources: list[Dump]) -> None:
    report = await asyncdump.dump_all(sources, output=linked, resume=True)
    report.raise_for_failures()
    assert [file.kept for file in report.files] == [True] * 3
    assert {(linked / name).stat().st_ino for name in "abc"} == {(linked / "a").stat().st_ino}


@pytest.mark.parametrize("changed", ["a", "b", "ab", "abc"])
async def test_one_whose_source_has_changed_is_made_anew_alone(
    changed, linked: Path, sources: list[Dump], tmp_path: Path
) -> None:
    for name in changed:
        (tmp_path / f"source-{name}").write_bytes(noise(SIZE, ord(name)))
    report = await asyncdump.dump_all(sources, output=linked, resume=True)
    report.raise_for_failures()
    assert {file.name for file in report.files if not file.kept} == set(changed)
    for name in "abc":
        assert (linked / name).read_bytes() == (tmp_path / f"source-{name}").read_bytes()
    assert (await verify_all(linked)).ok


def test_a_link_is_a_name_of_its_own_and_another_spelling_is_none(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"")
    os.link(tmp_path / "one", tmp_path / "two")
    folder = Folder(os.fspath(tmp_path), make=False)
    try:
        assert folder.hold("one")
        assert folder.hold("two")
        assert folder.hold("./two") is False  # As a filesystem that folds case has it: one entry, under two names.
        assert (folder.holder("one"), folder.holder("two"), folder.holder("./one")) == ("one", None, "one")
    finally:
        folder.close()
