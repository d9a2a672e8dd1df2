"""What a run says crosses processes: errors, reports, plans and events are the same behind pickle and copy."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from files import noise, write_pages

import asyncdump
from asyncdump import errors
from asyncdump.errors import AsyncdumpError

ERRORS = [
    asyncdump.AsyncdumpError("no", hint="why"),
    asyncdump.DumpError("no", path="/a\n", operation="open", errno=2, hint="why"),
    asyncdump.BusyError("no", path="/a", operation="flock", errno=11, hint="wait"),
    asyncdump.OutputError("no", path="/a", operation="mkdir", errno=13, hint="why"),
    asyncdump.TargetExistsError(asyncdump.Problem(message="no", key="a", remedy="pass {overwrite}"), path="/a"),
    asyncdump.DamagedError("no", verdict="corrupt", path="/a", offset=4096, frame=2, errno=5, hint="why"),
    asyncdump.FilterError("no", command="age", status=-9, path="/a", errno=110, hint="why"),
    asyncdump.InterruptedDumpError("no", path="/a"),
    asyncdump.MethodRefusedError("no", operation="reflink", errno=22),
    asyncdump.NotDurableError("no", path="/a", operation="fsync", errno=5),
    asyncdump.SourceChangedError("no", path="/a", operation="read"),
    asyncdump.ManifestError(asyncdump.Problem(message="no", key="a", file="m", line=3), asyncdump.Problem(message="n")),
    asyncdump.ReceiptError("one", "two"),
]
WAYS: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol)) for protocol in range(6)),
]


def classes(root: type[AsyncdumpError]) -> set[type[AsyncdumpError]]:
    return {root}.union(*map(classes, root.__subclasses__()))


def same(error: AsyncdumpError, other: AsyncdumpError) -> bool:
    return (type(other), other.args, vars(other), str(other)) == (type(error), error.args, vars(error), str(error))


def test_there_is_one_of_each_class() -> None:
    ours = {kind for kind in classes(AsyncdumpError) if kind.__module__ == errors.__name__}
    ours = {kind for kind in ours if not kind.__name__.startswith("_")}
    assert {type(error) for error in ERRORS} == ours


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same(error, way) -> None:
    assert same(error, way(error))


@pytest.mark.parametrize("way", WAYS)
def test_so_is_a_group_of_them(way) -> None:
    group = way(ExceptionGroup("2 of 3 dumps failed", ERRORS))
    assert all(map(same, group.exceptions, ERRORS))


def test_notes_stay_with_an_error() -> None:
    error = asyncdump.FilterError("no", command="age")
    error.add_note("of node 3")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["of node 3"]


def test_so_do_the_values_of_a_class_that_a_program_derives() -> None:
    assert same(Own("no", path="/a", node=3), pickle.loads(pickle.dumps(Own("no", path="/a", node=3))))


class Own(asyncdump.DumpError):
    def __init__(self, message: str, *, path: str, node: int) -> None:
        super().__init__(message, path=path)
        self.node = node


def test_the_text_of_a_copy_is_not_escaped_again() -> None:
    error = asyncdump.DumpError("a\\n\n\x1b")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def told(tmp_path: Path) -> dict[str, Any]:
    """What a run with a failure in it says, of each public class one value at least."""
    write_pages(tmp_path / "good", noise(9000))
    write_pages(tmp_path / "bad", noise(9000))
    dumps = [
        asyncdump.Dump(source=str(tmp_path / "good"), compress=asyncdump.Zstd(level=1)),
        asyncdump.Dump(source=str(tmp_path / "bad"), filter=[["sh", "-c", "cat > /dev/null; exit 3"]]),
    ]
    options: dict[str, Any] = {"output": str(tmp_path / "dumps"), "allow_filters": True, "retries": 1}
    events: list[Any] = []
    plan = await asyncdump.plan_all(dumps, **options)
    report = await asyncdump.dump_all(dumps, on_event=events.append, **options)
    verification = await asyncdump.verify_all(tmp_path / "dumps")
    restored = await asyncdump.restore_all(tmp_path / "dumps", tmp_path / "back")
    described = asyncdump.describe_dump(tmp_path / "dumps" / "good.zst")
    findings = await asyncdump.probe(tmp_path / "good", tmp_path)
    return {
        "plan": plan,
        "report": report,
        "verification": verification,
        "restored": restored,
        "described": described,
        "findings": findings,
        "events": events,
        "manifest": asyncdump.Manifest(output="x", dumps=tuple(dumps), retries=asyncdump.Retries(times=2)),
    }


def plain(value: Any) -> Any:
    """Return a value in which errors, that are never equal, are what they hold."""
    if isinstance(value, AsyncdumpError):
        return (type(value), value.args, plain(vars(value)))
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "__struct_fields__"):
        return (type(value), {name: plain(getattr(value, name)) for name in value.__struct_fields__})
    return value


@pytest.mark.parametrize("way", WAYS)
async def test_all_that_is_told_is_the_same(told, way) -> None:
    for value in told.values():
        assert plain(way(value)) == plain(value)


async def test_it_crosses_processes(told) -> None:
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for name, value in told.items():
            assert plain(pool.submit(copy.copy, value).result()) == plain(value), name


async def test_so_does_what_is_raised(told) -> None:
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for value in (told["report"], told["verification"], told["restored"]):
            with pytest.raises(ExceptionGroup) as caught:
                pool.submit(raise_for_failures, value).result()
            errors = [error for error in caught.value.exceptions if isinstance(error, AsyncdumpError)]
            assert any(error.path.endswith("bad") for error in errors)


def raise_for_failures(value: Any) -> None:
    value.raise_for_failures()
