"""Everything that asyncdump does, once, in one process: ``everything.py FOLDER``. `test_sandbox` denies it calls.

It fails unless everything succeeds with the right bytes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncdump
from asyncdump import probing as finding


async def everything(base: Path) -> None:
    source = base / "source"
    content = source.read_bytes()
    several = [asyncdump.Dump(source=str(source), name=f"dump-{n}") for n in range(4)]
    for name, options in WAYS.items():
        output = base / name
        through: dict[str, Any] = {"filter": (("cat",),)} if options.get("allow_filters") else {}
        dumps = [asyncdump.Dump(source=str(source), name=f"dump-{n}", **through) for n in range(4)]
        (await asyncdump.dump_all(dumps, output=output, **options)).raise_for_failures()
        if name != "zstd":
            assert all((output / f"dump-{n}").read_bytes() == content for n in range(4)), name
        if not name.startswith("unhashed"):
            kept = await asyncdump.dump_all(dumps, output=output, resume=True, **options)
            assert [file.kept for file in kept.files] == [True] * 4, name
            (await asyncdump.verify_all(output)).raise_for_failures()
        if through:
            continue
        (await asyncdump.verify_all(output, against_source=True)).raise_for_failures()
        (await asyncdump.restore_all(output, base / f"{name}-back")).raise_for_failures()
        for file in (base / f"{name}-back").iterdir():
            assert file.read_bytes() == content, name
    assert [each.refusal for each in await asyncdump.probe(source, base) if each.method == "read"] == [None]
    made = await asyncdump.plan_all(several, output=base / "never")
    assert finding.expected_methods(made.dumps, made.output) == ["read"] * 4


WAYS: dict[str, dict[str, Any]] = {
    "raw": {},
    "unhashed": {"checksum": "none", "durable": False},
    "zstd": {"compress": "zstd"},
    "filter": {"allow_filters": True},
    "unhashed-filter": {"allow_filters": True, "checksum": "none"},
}


def command(base: Path) -> None:
    """Dump into a pipe, and copy with dd."""
    content = (base / "source").read_bytes()
    manifest = base / "manifest.yaml"
    manifest.write_text(f"version: 1\noutput: '-'\ndumps: [{{source: {base / 'source'}}}]\n")
    run = [sys.executable, "-m", "asyncdump"]
    assert subprocess.run([*run, manifest, "--quiet"], stdout=subprocess.PIPE, check=True).stdout == content
    subprocess.run([*run, "dd", f"if={base / 'source'}", f"of={base / 'copy'}", "status=none"], check=True)
    assert (base / "copy").read_bytes() == content
    copy = subprocess.run([*run, "dd", f"if={base / 'source'}", "status=none"], stdout=subprocess.PIPE, check=True)
    assert copy.stdout == content


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "source").write_bytes(os.urandom((5 << 20) + 13))
    asyncio.run(everything(place))
    command(place)
