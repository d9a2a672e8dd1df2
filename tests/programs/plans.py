"""A plan that is looked at, split, sent to other processes, and run there."""

import asyncio
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import asyncdump


def run(plan: asyncdump.Plan) -> asyncdump.Report:
    return asyncdump.dump_sync(plan)


async def main(folder: Path) -> None:
    plan = await asyncdump.plan_all([f"{folder}/sources/*"], output=folder / "dumps", compress="zstd")
    assert sum(dump.length for dump in plan.dumps) == plan.bytes
    assert [dump.source.kind for dump in plan.dumps]
    parts = [part.into(folder / f"part-{number}") for number, part in enumerate(plan.split(2))]
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        reports = [future.result() for future in [pool.submit(run, part) for part in parts]]
    for report in reports:
        report.raise_for_failures()
        for file in report.files:
            with asyncdump.open_dump(file.path) as dump:
                assert dump.read() == Path(file.source).read_bytes()
            assert asyncdump.describe_dump(file.path).kind == "zstd"
    assert sum(len(report.files) for report in reports) == 3
    assert pickle.loads(pickle.dumps(plan)) == plan


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
