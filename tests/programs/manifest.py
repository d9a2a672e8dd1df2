"""Manifests that are built in Python, and functions that pass options on."""

import asyncio
import pickle
import sys
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import asyncdump
from asyncdump import Defaults, Dump, Manifest, Overrides, Retries, Zstd


def manifest(folder: Path, sources: Sequence[Path]) -> Manifest:
    dumps = [
        Dump(source, name=f"{number}.bin", filter=[["cat"], ("cat", "-u")]) for number, source in enumerate(sources)
    ]
    return Manifest(
        output=folder / "dumps",
        concurrency=2,
        on_error="abort",
        retries=Retries(times=2, errors=["EINTR", "ENOSPC"]),
        defaults=Defaults(compress=Zstd(level=1, frame="64KiB"), checksum="blake3", timeout=60),
        dumps=dumps,
    )


async def carefully(
    what: str | PathLike[str] | Manifest | Iterable[Dump], **options: Unpack[Overrides]
) -> asyncdump.Report:
    options.setdefault("on_read_error", "zero")
    return await asyncdump.dump_all(what, **options)


async def main(folder: Path) -> None:
    made = manifest(folder, sorted((folder / "sources").iterdir()))
    assert pickle.loads(pickle.dumps(made)) == made
    report = await carefully(made, allow_filters=True, method="auto", retries=0)
    assert report.ok
    assert [file.name for file in report.files] == ["0.bin", "1.bin", "2.bin"]
    one = await carefully([Dump(str(folder / "sources" / "ring_0"))], output=folder / "one")
    one.raise_for_failures()
    text = (folder / "dumps" / "receipt.json").read_text()
    path = folder / "manifest.yaml"
    path.write_text("version: 1\noutput: three\ndumps: [{source: 'sources/*'}]\n")
    for what in (path, str(path)):
        (await carefully(what, overwrite=True)).raise_for_failures()
    schema: dict[str, Any] = asyncdump.json_schema()
    assert schema["title"]
    assert text


asyncio.run(main(Path(sys.argv[1])))
