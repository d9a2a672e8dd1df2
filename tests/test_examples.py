"""The examples run, and the documentation only names what there is."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest
import xxhash

from asyncdump.cli.app import cli
from asyncdump.manifest.yaml import parse_manifest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *EXAMPLES.rglob("*.md")])
OTHERS = {"--app-dir", "--key", "--long", "--pipe", "--wait"}
"""Options of other programs that the documentation mentions."""


# --- quick start ------------------------------------------------------------------------------------------------------


def quickstart(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_the_quick_start_dumps_verifies_and_cleans_up(tmp_path: Path) -> None:
    done = quickstart(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "asyncdump-quickstart"
    receipt = json.loads((folder / "dumps" / "receipt.json").read_bytes())
    assert receipt["ok"]
    assert len(receipt["files"]) == 12
    assert 0.5 < receipt["stored"] / receipt["bytes"] < 0.7
    for file in receipt["files"]:
        content = (folder / "dumps" / file["name"]).read_bytes()
        assert file["digest"] == f"xxh128:{xxhash.xxh3_128_hexdigest(content)}"
        assert not os.path.exists(file["source"])
    assert "All 12 dumps verified." in done.stdout


def test_the_quick_start_runs_again_beside_its_first_run(tmp_path: Path) -> None:
    assert quickstart(tmp_path, "here").returncode == 0
    assert quickstart(tmp_path, "here").returncode == 0
    assert (tmp_path / "here" / "dumps" / "receipt.json").is_file()
    assert (tmp_path / "here-2" / "dumps" / "receipt.json").is_file()


def test_the_quick_start_fails_when_the_dump_does(tmp_path: Path) -> None:
    """A package of that name which can't dump stands before the real one."""
    (tmp_path / "asyncdump").mkdir()
    (tmp_path / "asyncdump" / "__init__.py").touch()
    (tmp_path / "asyncdump" / "__main__.py").write_text("raise SystemExit(1)")
    done = quickstart(tmp_path)
    assert done.returncode == 1
    assert "verified" not in done.stdout


# --- the service ------------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> ModuleType:
    pytest.importorskip("starlette")
    spec = importlib.util.spec_from_file_location("service", EXAMPLES / "service.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "sources"
    folder.mkdir()
    for index in range(5):
        (folder / f"ring_{index}").write_bytes(os.urandom(100_000 + index))
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("version: 1\noutput: unused\ndumps:\n  - source: sources/*\n")
    monkeypatch.setenv("ASYNCDUMP_MANIFEST", str(manifest))
    monkeypatch.setenv("ASYNCDUMP_OUTPUT", str(tmp_path / "dumps"))
    return folder


@pytest.fixture
def client(service: ModuleType, sources: Path) -> Any:
    from starlette.testclient import TestClient

    with TestClient(service.app) as client:
        yield client


def messages(client: Any, name: str, seen: int = 0) -> list[dict[str, Any]]:
    answer = client.get(f"/dumps/{name}/events", headers={"Last-Event-ID": str(seen)})
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]


def test_the_service_dumps_and_tells_every_viewer(client: Any, sources: Path) -> None:
    answer = client.post("/dumps")
    assert answer.status_code == 202
    name = answer.json()["id"]
    told = messages(client, name)
    assert [message["over"] for message in told] == [False] * (len(told) - 1) + [True]
    assert (told[-1]["state"], told[-1]["failed"], told[-1]["done"]) == ("finished", 0, 500_010)
    outcomes = [outcome["name"] for message in told for outcome in message["outcomes"]]
    assert sorted(outcomes) == [f"ring_{index}" for index in range(5)]
    assert len(messages(client, name, seen=3)[0]["outcomes"]) == 2
    for source in sources.iterdir():
        assert (Path(told[-1]["output"]) / source.name).read_bytes() == source.read_bytes()
    assert client.get("/").text.startswith("<!doctype html>")
    assert client.get("/dumps").json()[0]["id"] == name
    assert client.get("/dumps/nothing").status_code == 404


@pytest.mark.sample(4)
@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "told", ["999999", "6", "-1", "9" * 5000, "1e3", " ", "abc", "\u0663", "0x5", "18446744073709551616", "5.0", "nan"]
)
def test_the_service_takes_no_odd_id_for_one_of_its_own(told: str, client: Any) -> None:
    """While the dump is under way too: a viewer that has seen more than there is would be told so for ever."""
    name = client.post("/dumps").json()["id"]
    for _ in range(2):
        answer = client.get(f"/dumps/{name}/events", headers={"Last-Event-ID": told.encode()})
        found = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
        assert sum(len(message["outcomes"]) for message in found) == 5
        assert len(found) < 20
        assert found[-1]["over"]


def test_the_service_goes_on_when_viewers_go(client: Any, service: ModuleType) -> None:
    """Each is a generator that is closed where it stands: nothing waits for it."""
    import anyio

    name = client.post("/dumps").json()["id"]
    messages(client, name)
    board = client.app.state.boards[name]

    async def look_and_go() -> None:
        for _ in range(200):
            stream = service.watch(board, 0)
            await anext(stream)
            await stream.aclose()

    anyio.run(look_and_go)
    assert client.get(f"/dumps/{name}").json()["state"] == "finished"


def test_the_service_cancels(client: Any, sources: Path) -> None:
    with (sources / "endless").open("wb") as file:
        file.truncate(1 << 42)
    name = client.post("/dumps").json()["id"]
    assert client.delete(f"/dumps/{name}").status_code == 202
    assert messages(client, name)[-1]["state"] == "cancelled"


def test_the_service_refuses_a_second_dump_at_once(client: Any) -> None:
    client.app.state.boards["first"] = SimpleNamespace(state="running", name="first")
    answer = client.post("/dumps")
    assert (answer.status_code, answer.json()["id"]) == (409, "first")


def test_the_service_says_what_is_wrong_with_its_manifest(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCDUMP_MANIFEST", "nothing.yaml")
    answer = client.post("/dumps")
    assert answer.status_code == 422
    assert "nothing.yaml" in answer.json()["error"]


def test_the_service_heeds_no_other_site(client: Any) -> None:
    assert client.post("/dumps", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


# --- the documentation ------------------------------------------------------------------------------------------------


def manifests() -> list[Any]:
    return [
        pytest.param(block, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
        if "version: 1" in block
    ]


@pytest.mark.parametrize("manifest", manifests())
def test_each_manifest_in_the_documentation_is_one(manifest: str) -> None:
    parse_manifest(manifest.encode(), "documentation")


def options() -> set[str]:
    """Return every long option of every command."""
    commands: list[click.Command] = [cli, *cli.commands.values()]
    context = click.Context(cli)
    return {
        name
        for command in commands
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_option_in_the_documentation_is_one(page: Path) -> None:
    # What a benchmark printed names the options of other programs.
    prose = re.sub(r"^```text\n.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*\b", prose))
    assert mentioned - OTHERS <= options()


def test_each_option_is_documented() -> None:
    reference = (ROOT / "docs" / "reference-cli.md").read_text()
    assert {option for option in options() if f"`{option}" not in reference and f" {option}" not in reference} == set()


def test_each_public_name_is_documented() -> None:
    import asyncdump

    reference = (ROOT / "docs" / "api.md").read_text()
    names = set(re.findall(r"auto\w+:: asyncdump\.(\w+)\b", reference)) | {"__version__"}
    assert set(asyncdump.__all__) <= names
