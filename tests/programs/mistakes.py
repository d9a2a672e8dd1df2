"""What type checkers must find. Nothing of it is called."""

from typing import assert_never

import asyncdump


async def options() -> None:
    await asyncdump.dump_all("m.yaml", overwrit=True)  # type: ignore[call-arg]
    await asyncdump.dump_all("m.yaml", method="teleport")  # type: ignore[arg-type]
    await asyncdump.dump_all("m.yaml", overwrite="yes")  # type: ignore[arg-type]
    await asyncdump.dump_all("m.yaml", concurrency=1.5)  # type: ignore[arg-type]
    await asyncdump.dump_all()  # type: ignore[call-arg]
    await asyncdump.dump_all([7], output="x")  # type: ignore[list-item]
    await asyncdump.dump_all("m.yaml", on_event=lambda: None)  # type: ignore[arg-type]
    asyncdump.dump_sync("m.yaml", resume=1)  # type: ignore[arg-type]
    asyncdump.verify_sync("dumps", overwrite=True)  # type: ignore[call-arg]


def models() -> None:
    asyncdump.Dump()  # type: ignore[call-arg]
    asyncdump.Dump("a", "b")  # type: ignore[call-arg]
    asyncdump.Dump(7)  # type: ignore[arg-type]
    asyncdump.Dump("a", checksum="md5")  # type: ignore[arg-type]
    asyncdump.Dump("a", filter="gzip")
    asyncdump.Manifest(dumps=[])  # type: ignore[call-arg]
    asyncdump.Retries(errors=["EIO"])  # type: ignore[list-item]
    asyncdump.Dump("a").source = "b"  # type: ignore[misc]


def events(event: asyncdump.Event) -> None:
    match event:
        case asyncdump.RunStarted() | asyncdump.RunFinished() | asyncdump.Progress():
            pass
        case asyncdump.FileStarted() | asyncdump.FileFinished() | asyncdump.FileKept() | asyncdump.FileRetried():
            pass
        case _:
            assert_never(event)  # type: ignore[arg-type]
    event.name  # type: ignore[union-attr] # noqa: B018


async def outcomes(report: asyncdump.Report) -> None:
    report.files[0].stage  # type: ignore[attr-defined] # noqa: B018
    report.files[0].error.hint  # type: ignore[union-attr] # noqa: B018
    report.ok = True  # type: ignore[misc]
    verification: asyncdump.Report = await asyncdump.verify_all("dumps")  # type: ignore[assignment]
    del verification
