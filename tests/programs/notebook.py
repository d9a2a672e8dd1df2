"""Cells of a notebook, which awaits at its top level, and shows values."""

import asyncio
import json
import sys
from pathlib import Path

from asyncdump import Dump, Method, dump_all, plan_all, probe, verify_all


async def cells(folder: Path) -> None:
    sources = folder / "sources"

    plan = await plan_all([Dump(sources / "ring_0", length="4KiB"), sources / "ring_1"], output=folder / "dumps")
    print(plan)

    report = await dump_all(plan)
    print(report._repr_html_())  # pyright: ignore[reportPrivateUsage] # as a notebook does

    by_method: dict[Method | None, int] = {}
    for file in report.files:
        by_method[file.method] = by_method.get(file.method, 0) + file.bytes
    assert sum(by_method.values()) == report.bytes

    verification = await verify_all(folder / "dumps")
    verdicts = {file.name: file.verdict for file in verification.files}
    assert set(verdicts.values()) == {"ok"}
    assert json.loads(verification.to_json()) == verification.to_dict()

    findings = await probe(sources / "ring_0", folder)
    accepted = [finding.method for finding in findings if finding.refusal is None]
    assert "read" in accepted


asyncio.run(cells(Path(sys.argv[1])))
