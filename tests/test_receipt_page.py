"""The page about the receipt names what there is, and its example works."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from files import MiB, noise

import asyncdump
from asyncdump import Dump
from asyncdump.records.record import Record
from asyncdump.vocabulary.blocks import Blocks
from asyncdump.vocabulary.values import ProcessMapping

PAGE = (Path(__file__).parent.parent / "docs/reference-receipt.md").read_text()


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def keys(title: str) -> set[str]:
    """Return what stands in the first column of the tables of a section."""
    columns = re.findall(r"^\| ([^|]+) \|", section(title), re.MULTILINE)
    return {key for column in columns for key in re.findall(r"`(\w+)`", column)}


def encoded(kind: Any) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


@pytest.fixture
def dumped(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(noise(9 * MiB))
    for name in ("old", "new"):
        dump = Dump(source=tmp_path / "source", compress="zstd" if name == "new" else "none")
        asyncio.run(asyncdump.dump_all([dump], output=tmp_path / name)).raise_for_failures()
        with (tmp_path / "source").open("r+b") as file:
            file.seek(5 * MiB)
            file.write(b"changed")
            file.seek(0, 2)
            file.write(noise(MiB))
    return tmp_path


def test_each_key_is_described(dumped: Path) -> None:
    receipt = json.loads((dumped / "new/receipt.json").read_bytes())
    assert keys("The run") == set(receipt)
    assert keys("A record") == encoded(Record) - {"earlier", "stage"}
    assert keys("Blocks") == encoded(Blocks)
    assert keys("Mappings") == encoded(ProcessMapping)


def test_the_example_finds_what_has_changed(dumped: Path) -> None:
    [*_, code] = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    with (dumped / "new/receipt.json").open() as file:
        [record] = json.load(file)["files"]
    (dumped / "old/source").rename(dumped / "old/source.zst")
    receipt = (dumped / "old/receipt.json").read_text()
    (dumped / "old/receipt.json").write_text(receipt.replace('"name": "source"', '"name": "source.zst"'))
    assert names["changed"](dumped / "old", dumped / "new", record["name"]) == [4 * MiB, 8 * MiB]
    assert names["changed"](dumped / "new", dumped / "new", record["name"]) == []


def test_the_public_names_say_the_same(dumped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dumped)
    dump = Dump(source=dumped / "source")
    asyncio.run(asyncdump.dump_all([dump], output=dumped / "first"))
    (dumped / "source").write_bytes(b"\1" + (dumped / "source").read_bytes()[1:])
    asyncio.run(asyncdump.dump_all([dump], output=dumped / "second"))
    code = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]
    told: list[Any] = []
    exec(code, {"asyncdump": asyncdump, "print": lambda *what: told.append(what)})
    assert told == [("source", [(0, 2 * MiB)])]
