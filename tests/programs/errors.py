"""What can go wrong, and what a caller does about each."""

import asyncio
import errno
import sys
from pathlib import Path
from typing import assert_type

import asyncdump
from asyncdump import BusyError, ManifestError, OutputError, TargetExistsError


async def dump(source: Path, output: Path, *, again: bool = False) -> str:
    try:
        report = await asyncdump.dump_all([source], output=output, overwrite=again)
    except TargetExistsError as error:
        assert_type(error.problems, tuple[asyncdump.Problem, ...])
        return "exists" if again else await dump(source, output, again=True)
    except ManifestError as error:
        return " ".join(problem.key for problem in error.problems)
    except BusyError as error:
        return f"busy {error.path} {error.exit_code}"
    except OutputError as error:
        return f"output {error.operation} {errno.errorcode[error.errno or 0]}"
    except asyncdump.AsyncdumpError as error:
        return error.hint
    outcome = "done"
    try:
        report.raise_for_failures()
    except* asyncdump.MethodRefusedError as group:
        outcome = str(group.exceptions[0])
    except* asyncdump.DumpError:
        outcome = "failed"
    return outcome


async def main(folder: Path) -> None:
    source = folder / "sources" / "ring_0"
    assert await dump(source, folder / "dumps") == "done"
    assert await dump(source, folder / "dumps") == "done"
    assert await dump(folder / "nothing", folder / "dumps2") == "dumps[0].source"
    async with asyncdump.open_run([source], output=folder / "dumps3"):
        assert (await dump(source, folder / "dumps3")).startswith("busy ")
    with (folder / "dumps" / "ring_0").open("ab") as file:
        file.write(b"more")
    verification = await asyncdump.verify_all(folder / "dumps")
    try:
        verification.raise_for_failures()
    except ExceptionGroup as group:
        (damage,) = group.exceptions
        assert isinstance(damage, asyncdump.DamagedError)
        assert damage.verdict == "corrupt"
    else:
        raise AssertionError


asyncio.run(main(Path(sys.argv[1])))
