"""The command itself: options, exit codes, and what goes to stdout and to stderr."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from commands import (
    COMMAND,
    ENOUGH,
    Output,
    asyncdump,
    end,
    environment,
    events,
    receipt,
    redirected,
    running,
    unread,
    write_manifest,
)
from files import KiB, MiB, digest_of, leftovers, mentions, noise, unavailable

import asyncdump as package
from asyncdump.cli.json_lines import event_record

OPTIONS = {
    "--output",
    "--concurrency",
    "--method",
    "--checksum",
    "--allow-filters",
    "--compress",
    "--on-error",
    "--on-read-error",
    "--overwrite",
    "--resume",
    "--trust-receipt",
    "--retries",
    "--no-durable",
    "--dry-run",
    "--progress",
    "--log-format",
    "--quiet",
    "--help",
}

FIELDS = {
    "run_started": {"output", "files", "bytes", "concurrency"},
    "file_started": {"name", "source", "kind", "bytes", "method"},
    "progress": {"name", "done", "total", "phase"},
    "file_finished": {
        *("name", "source", "bytes", "stored", "seconds", "method", "digest", "content_digest"),
        "bad_bytes",
    },
    "file_kept": {"name", "source", "bytes", "digest"},
    "file_retried": {"name", "error", "attempt", "delay"},
    "file_failed": {"name", "source", "error", "phase"},
    "run_finished": {"files", "failed", "bytes", "seconds", "interrupted"},
}


def check_dumps(folder: Path, sources: list[Path]) -> None:
    for source in sources:
        assert (folder / source.name).read_bytes() == source.read_bytes()
        assert (folder / source.name).stat().st_mode & 0o777 == 0o600
    assert leftovers(folder) == []


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return all there is beneath a folder, and the folder: a file that came and went changes its time."""
    paths = [folder, *folder.rglob("*")]
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in paths
    }


# --- exit codes -------------------------------------------------------------------------------------------------------


def test_all_is_dumped(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    done = asyncdump("m.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_dumps(tmp_path / "out", sources)
    assert receipt(tmp_path / "out")["ok"] is True
    (line,) = done.stderr.splitlines()
    assert mentions(line, "3 files", "4.0 MiB", tmp_path / "out")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("3 of 3 files ")
    assert str(tmp_path / "out") in lines[0]
    assert lines[-1].endswith(": receipt.json, XXH128SUMS")
    assert re.search(r"^read +3 +4\.0 MiB +4\.0 MiB$", done.stdout, re.MULTILINE)
    assert re.search(r"^total +3 +4\.0 MiB +4\.0 MiB +\d+\.\d\d s +[\d.]+ [KMG]iB/s$", done.stdout, re.MULTILINE)


def test_some_failed(sources: list[Path], tmp_path: Path) -> None:
    """No kernel clones from tmpfs: that can be told only by trying."""
    write_manifest(tmp_path, {"source": str(sources[0]), "method": "reflink"}, *sources[1:])
    done = asyncdump("m.yaml", "--progress", "none", cwd=tmp_path)
    assert done.returncode == 1
    check_dumps(tmp_path / "out", sources[1:])
    assert not (tmp_path / "out" / "ring0").exists()
    assert done.stdout.startswith("2 of 3 files ")
    told = [line for line in done.stderr.splitlines() if line.startswith("asyncdump: ")]
    assert len(told) == 2
    assert mentions(told[0], "ring0", "reflink", sources[0], "tmpfs", " E")
    assert mentions(told[1], "auto")
    assert [file["phase"] for file in receipt(tmp_path / "out")["files"]] == ["move", "done", "done"]


def test_equal_failures_are_told_once(shm: Path, tmp_path: Path) -> None:
    for number in range(23):
        (shm / f"ring{number}").write_bytes(noise(100))
    write_manifest(tmp_path, f"{shm}/ring*", defaults={"method": "reflink"})
    done = asyncdump("m.yaml", "--quiet", cwd=tmp_path)
    assert done.returncode == 1
    first, example, hint = done.stderr.splitlines()
    assert re.fullmatch(r"asyncdump: failed: 23 files \(move\): E.+: ring0, ring1, ring2 and 20 more", first)
    assert "ring0" in example
    assert hint.startswith("asyncdump:   use method auto")


def test_twenty_kinds_of_failures_are_told_and_the_others_counted(shm: Path, tmp_path: Path) -> None:
    names = "abcdefghijklmnopqrstuvw"
    for name in names:
        (shm / name).write_bytes(noise(100))
    filters = [
        {"source": f"{shm}/{name}", "filter": [["sh", "-c", f"cat > /dev/null; echo {name}{name} >&2; exit 1"]]}
        for name in names
    ]
    write_manifest(tmp_path, *filters)
    done = asyncdump("m.yaml", "--quiet", "--allow-filters", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("asyncdump: failed: ") == 20
    assert done.stderr.splitlines()[-1] == f"asyncdump: and 3 more: see {tmp_path}/out/receipt.json"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["m.yaml", "--nonsense"], "--nonsense"),
        (["m.yaml", "--method", "teleport"], "teleport"),
        (["m.yaml", "--checksum", "md5"], "md5"),
        (["m.yaml", "--on-error", "panic"], "panic"),
        (["m.yaml", "--on-read-error", "skip"], "skip"),
        (["m.yaml", "--progress", "loud"], "loud"),
        (["m.yaml", "--log-format", "xml"], "xml"),
        (["m.yaml", "--concurrency", "0"], "'0'"),
        (["m.yaml", "--concurrency", "257"], "257"),
        (["m.yaml", "--concurrency", "-1"], "-1"),
        (["m.yaml", "--concurrency", "many"], "many"),
        (["m.yaml", "--concurrency", "²"], "'²'"),
        (["m.yaml", "--concurrency", "9" * 5000], "256"),
        (["m.yaml", "another.yaml"], "another.yaml"),
        (["--quiet"], "MANIFEST"),
        (["probe"], "SOURCE"),
        (["probe", "m.yaml"], "DEST_DIR"),
        (["schema", "m.yaml"], "m.yaml"),
    ],
)
def test_wrong_usage(arguments, said, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    before = snapshot(tmp_path)
    done = asyncdump(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert snapshot(tmp_path) == before


def test_nothing_to_do_is_wrong_usage(tmp_path: Path) -> None:
    done = asyncdump(cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.startswith("Usage: asyncdump MANIFEST [OPTIONS]\n")
    assert done.stderr == ""


def test_an_output_folder_that_can_not_be_made(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_manifest(tmp_path, *sources, output="file/out")
    done = asyncdump("m.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"asyncdump: m.yaml:1: output: {tmp_path}/file ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_in_order(number, code, sources: list[Path], endless: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, endless, *sources)
    with running("m.yaml", "--progress", "json", "--concurrency", "2", cwd=tmp_path) as process:
        assert process.stdout is not None
        waited: set[tuple[str, str]] = set()
        while not {("file_finished", source.name) for source in sources} | {("progress", "endless")} <= waited:
            event = json.loads(process.stdout.readline())
            waited.add((event["event"], event.get("name")))
        assert leftovers(tmp_path / "out") != []
        began = time.perf_counter()
        rest = end(process, number)
        assert time.perf_counter() - began < 2
    assert rest.returncode == code
    assert rest.stderr == ""
    told = events(rest.stdout)
    assert [event["name"] for event in told if event["event"] == "file_failed"] == ["endless"]
    assert told[-1]["event"] == "run_finished"
    assert told[-1]["interrupted"] == number.name
    check_dumps(tmp_path / "out", sources)
    assert sorted(os.listdir(tmp_path / "out")) == ["XXH128SUMS", "receipt.json", "ring0", "ring1", "ring2"]
    record = receipt(tmp_path / "out")
    assert (record["ok"], record["interrupted"]) == (False, number.name)
    assert {file["name"]: file["phase"] for file in record["files"]} == {
        "endless": "move",
        **dict.fromkeys(["ring0", "ring1", "ring2"], "done"),
    }
    assert record["files"][0]["error"]["type"] == "InterruptedDumpError"


# --- what needs no run ------------------------------------------------------------------------------------------------


def test_the_version_is_told_at_once(tmp_path: Path) -> None:
    times = []
    for _ in range(10):
        began = time.perf_counter()
        done = asyncdump("--version", cwd=tmp_path)
        times.append(time.perf_counter() - began)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"asyncdump {package.__version__}\n", "")
    assert min(times) < 0.1


def test_the_version_imports_next_to_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND[0], "-X", "importtime", *COMMAND[1:], "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=ENOUGH,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "asyncdump.version" in imported
    assert (
        imported & {"click", "anyio", "asyncio", "msgspec", "yaml", "rich", "structlog", "asyncdump.cli.app"} == set()
    )


def test_a_run_without_a_terminal_imports_no_terminal(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    done = subprocess.run(
        [COMMAND[0], "-X", "importtime", *COMMAND[1:], "m.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=ENOUGH,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "asyncdump.run.run" in imported
    assert imported & {"rich", "structlog", "trio"} == set()


def test_help_has_every_option(tmp_path: Path) -> None:
    done = asyncdump("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", done.stdout, re.MULTILINE)) == OPTIONS
    assert [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()] == [
        "verify",
        "restore",
        "schema",
        "probe",
        "dd",
        "cat",
        "info",
    ]
    assert asyncdump("-h", cwd=tmp_path).stdout == done.stdout


@pytest.mark.parametrize(
    ("command", "usage", "said"),
    [
        ("dd", "Usage: asyncdump dd", "if= of= bs= count= skip= seek="),
        ("probe", "Usage: asyncdump probe [OPTIONS] SOURCE DEST_DIR", "--json"),
        ("verify", "Usage: asyncdump verify [OPTIONS] DIR|RECEIPT", "--against-source"),
        ("restore", "Usage: asyncdump restore [OPTIONS] DIR|RECEIPT", "--map"),
        ("schema", "Usage: asyncdump schema", "JSON Schema"),
        ("m.yaml", "Usage: asyncdump MANIFEST [OPTIONS]", "--dry-run"),
    ],
)
def test_help_of_a_command(command, usage, said, tmp_path: Path) -> None:
    done = asyncdump(command, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(usage)
    assert said in done.stdout


def test_the_schema_is_json(tmp_path: Path) -> None:
    done = asyncdump("schema", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    schema = json.loads(done.stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    manifest = schema["$defs"]["Manifest"]
    assert set(manifest["required"]) == {"version", "output", "dumps"}
    assert set(manifest["properties"]) == {
        "version",
        "output",
        "concurrency",
        "on_error",
        "retries",
        "defaults",
        "dumps",
    }
    assert manifest["additionalProperties"] is False


# --- options ----------------------------------------------------------------------------------------------------------


def test_output_is_relative_to_where_one_is(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    write_manifest(tmp_path / "manifests", *sources)
    done = asyncdump("manifests/m.yaml", "--output", "else/where", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_dumps(tmp_path / "else" / "where", sources)
    assert (tmp_path / "else").stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path / "manifests") == ["m.yaml"]


def test_the_manifests_output_is_relative_to_it(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    write_manifest(tmp_path / "manifests", *sources)
    assert asyncdump("manifests/m.yaml", cwd=tmp_path).returncode == 0
    check_dumps(tmp_path / "manifests" / "out", sources)


@pytest.mark.parametrize("wanted", ["1", "7", "256"])
def test_concurrency(wanted, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources, concurrency=3)
    done = asyncdump("m.yaml", "--progress", "json", "--concurrency", wanted, cwd=tmp_path)
    assert events(done.stdout)[0]["concurrency"] == int(wanted)
    check_dumps(tmp_path / "out", sources)


def test_concurrency_auto(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources, concurrency=255)
    done = asyncdump("m.yaml", "--progress", "json", "--concurrency", "auto", cwd=tmp_path)
    assert 1 <= events(done.stdout)[0]["concurrency"] <= max(8, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("method", ["sendfile", "splice", "mmap", "read"])
def test_method(method, sources: list[Path], tmp_path: Path) -> None:
    other = "read" if method == "mmap" else "mmap"
    write_manifest(tmp_path, *({"source": str(source), "method": other} for source in sources))
    done = asyncdump("m.yaml", "--method", method, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {file["method"] for file in receipt(tmp_path / "out")["files"]} == {method}
    assert re.search(rf"^{method} +3 ", done.stdout, re.MULTILINE)
    check_dumps(tmp_path / "out", sources)


@pytest.mark.parametrize(
    ("checksum", "digests"), [("xxh128", "XXH128SUMS"), ("blake3", "B3SUMS"), ("sha256", "SHA256SUMS"), ("none", None)]
)
def test_checksum(checksum, digests, sources: list[Path], tmp_path: Path) -> None:
    other = "sha256" if checksum == "blake3" else "blake3"
    write_manifest(tmp_path, *({"source": str(source), "checksum": other} for source in sources))
    done = asyncdump("m.yaml", "--checksum", checksum, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lists = [name for name in os.listdir(tmp_path / "out") if name.endswith("SUMS")]
    assert done.stdout.splitlines()[-1].endswith(": " + ", ".join(["receipt.json", *lists]))
    assert lists == ([digests] if digests else [])
    if digests:
        expected = [f"{digest_of(source.read_bytes(), checksum)}  {source.name}" for source in sources]
        assert (tmp_path / "out" / digests).read_text().splitlines() == expected


def test_on_error(sources: list[Path], tmp_path: Path) -> None:
    """The largest file comes first, and fails."""
    write_manifest(tmp_path, {"source": str(sources[0]), "method": "reflink"}, *sources[1:], concurrency=1)
    done = asyncdump("m.yaml", "--on-error", "abort", "--progress", "none", cwd=tmp_path)
    assert done.returncode == 1
    assert os.listdir(tmp_path / "out") == ["receipt.json"]
    assert receipt(tmp_path / "out")["interrupted"] == "on_error: abort"
    assert done.stdout.splitlines()[0].endswith("on_error: abort")
    assert mentions(done.stderr, "ring0", "2 files", "on_error: abort")
    done = asyncdump("m.yaml", "--on-error", "continue", "--overwrite", cwd=tmp_path)
    assert done.returncode == 1
    check_dumps(tmp_path / "out", sources[1:])


def test_what_is_there_already_is_not_replaced(sources: list[Path], tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, *sources)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ring1").write_text("precious")
    (tmp_path / "out" / "other").write_text("precious too")
    before = snapshot(tmp_path)
    done = asyncdump(manifest, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"asyncdump: {manifest}:1: output: ")
    assert mentions(line, tmp_path / "out", "ring1", "--overwrite")
    assert snapshot(tmp_path) == before
    done = asyncdump(manifest, "--overwrite", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_dumps(tmp_path / "out", sources)
    assert (tmp_path / "out" / "other").read_text() == "precious too"


def test_a_receipt_that_is_there_is_not_replaced(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, sources[0])
    assert asyncdump("m.yaml", cwd=tmp_path).returncode == 0
    (tmp_path / "out" / "ring0").unlink()
    done = asyncdump("m.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert mentions(done.stderr, "receipt.json", "--overwrite")


@pytest.mark.kernel
@pytest.mark.parametrize("options", [[], ["--no-durable"]])
def test_no_durable(options, sources: list[Path], tmp_path: Path) -> None:
    """Only the receipt is waited for then: it says itself what the dumps are worth."""
    if shutil.which("strace") is None:
        unavailable("strace is not installed")
    write_manifest(tmp_path, sources[0])
    strace = ["strace", "-f", "-y", "-qq", "-o", "trace", "-e", "trace=fsync,fdatasync,syncfs,sync_file_range"]
    done = subprocess.run(
        [*strace, *COMMAND, "m.yaml", *options], cwd=tmp_path, capture_output=True, timeout=ENOUGH, check=False
    )
    assert done.returncode == 0, done.stderr
    synced = re.findall(
        r" f(?:data)?sync\(\d+<[^>]*/\.asyncdump-(?:\w+-(\d+)\.partial|journal)>", (tmp_path / "trace").read_text()
    )
    # The first temporary file is the dump, those that follow are the digest list and the receipt; the journal goes with
    # the dump.
    assert set(synced) == ({"2", "3"} if options else {"1", "2", "3", ""})
    check_dumps(tmp_path / "out", sources[:1])


def test_options_may_stand_before_the_manifest(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    done = asyncdump("--progress", "none", "--output", "here", "m.yaml", "--checksum", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_dumps(tmp_path / "here", sources)


def test_a_manifest_that_is_called_like_a_command(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources, name="schema")
    assert asyncdump("./schema", cwd=tmp_path).returncode == 0
    check_dumps(tmp_path / "out", sources)


# --- dry run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_dry_run_prints_the_plan_and_writes_nothing(there, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(
        tmp_path, {"source": str(sources[0]), "name": "first", "method": "mmap", "checksum": "none"}, *sources[1:]
    )
    if there:
        (tmp_path / "out").mkdir()
    before = snapshot(tmp_path)
    done = asyncdump("m.yaml", "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    rows = [re.split(r" {2,}", line) for line in lines[:4]]
    assert rows == [
        ["name", "source", "kind", "size", "method", "checksum"],
        ["first", str(sources[0]), "tmpfs", "3.0 MiB", "mmap", "none"],
        ["ring1", str(sources[1]), "tmpfs", "1.0 MiB", "read", "xxh128"],
        ["ring2", str(sources[2]), "tmpfs", "4.9 KiB", "read", "xxh128"],
    ]
    assert lines[4] == ""
    assert mentions(lines[5], "3 files", "4.0 MiB", tmp_path / "out")
    assert re.search(r"[\d.]+ [MGT]iB", lines[5].partition("/out")[2])
    assert snapshot(tmp_path) == before


def test_a_dry_run_tells_of_a_refusal(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, sources[0])
    done = asyncdump("m.yaml", "--dry-run", "--method", "reflink", cwd=tmp_path)
    assert done.returncode == 0
    assert re.search(r"reflink .*: E[A-Z]+ \(.+\)  xxh128$", done.stdout.splitlines()[1])


def test_a_dry_run_tells_what_would_go_wrong(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, sources[0], tmp_path / "nothing")
    done = asyncdump("m.yaml", "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "dumps[1].source" in done.stderr


# --- probe ------------------------------------------------------------------------------------------------------------


def test_probe_prints_a_table(sources: list[Path], tmp_path: Path) -> None:
    done = asyncdump("probe", sources[1], tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(re.split(r" {2,}", lines[0])) == 5
    assert [line.split()[0] for line in lines[1:7]] == ["reflink", "direct", "sendfile", "splice", "mmap", "read"]
    assert re.fullmatch(r"reflink +no +E[A-Z]+ \(.+\)", lines[1])
    assert re.fullmatch(r"read +yes +[\d.]+ [KMG]iB/s +[\d.]+  (with a checksum|always)", lines[6])
    assert os.listdir(tmp_path) == []


def test_probe_prints_json(sources: list[Path], tmp_path: Path) -> None:
    done = asyncdump("probe", "--json", sources[1], tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    findings = {finding.pop("method"): finding for finding in json.loads(done.stdout)}
    assert set(findings) == {"reflink", "direct", "sendfile", "splice", "mmap", "read"}
    assert findings["reflink"]["accepted"] is False
    assert re.fullmatch(r"E[A-Z]+ \(.+\)", findings["reflink"]["errno"])
    for method in ("sendfile", "splice", "mmap", "read"):
        assert findings[method]["accepted"] is True
        assert (findings[method]["reason"], findings[method]["errno"]) == (None, None)
        assert findings[method]["bytes"] == MiB
        assert findings[method]["bytes_per_second"] > 0
    assert findings["read"]["chosen"] in {"with a checksum", "always"}
    assert findings["mmap"]["chosen"] == "never"
    assert os.listdir(tmp_path) == []


def test_probe_of_an_empty_file(shm: Path, tmp_path: Path) -> None:
    (shm / "empty").touch()
    done = asyncdump("probe", shm / "empty", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^read +yes +", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "folder", "said"),
    [
        ("nothing", ".", "nothing: ENOENT"),
        ("ring", "nowhere", "nowhere "),
        ("ring", "ring", "ring "),
        (".", ".", ". "),
    ],
)
def test_probe_of_what_is_not_there(source, folder, said, tmp_path: Path) -> None:
    (tmp_path / "ring").write_bytes(noise(5000))
    done = asyncdump("probe", source, folder, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("asyncdump: ")
    assert said in line


# --- manifests that are wrong -----------------------------------------------------------------------------------------

WRONG_TEXT = """\
version: 2
output: out
concurency: 4
dumps:
  - source: ring0
    length: 16 MiBs
  - name: without
    checksum: md5
"""

WRONG_PLAN = """\
version: 1
output: m.yaml
dumps:
  - source: nothing_*
  - source: m.yaml
    offset: 1G
  - source: m.yaml
    name: ../x
  - source: absent
"""


def complaints(text: str) -> list[tuple[str, ...]]:
    """Return the place and the key of each line on stderr."""
    found = [re.fullmatch(r"asyncdump: (m\.yaml:\d+): ([\w.\[\]]+): .+", line) for line in text.splitlines()]
    assert all(found), text
    return [match.groups() for match in found if match]


@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--progress", "json"], ["--quiet"]])
def test_all_that_is_wrong_with_the_text_is_told(options, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(WRONG_TEXT)
    done = asyncdump("m.yaml", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaints(done.stderr) == [
        ("m.yaml:1", "version"),
        ("m.yaml:3", "concurency"),
        ("m.yaml:6", "dumps[0].length"),
        ("m.yaml:7", "dumps[1].source"),
        ("m.yaml:8", "dumps[1].checksum"),
    ]
    assert os.listdir(tmp_path) == ["m.yaml"]


def test_all_that_does_not_fit_the_machine_is_told(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(WRONG_PLAN)
    done = asyncdump("m.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaints(done.stderr) == [
        ("m.yaml:2", "output"),
        ("m.yaml:4", "dumps[0].source"),
        ("m.yaml:6", "dumps[1].offset"),
        ("m.yaml:8", "dumps[2].name"),
        ("m.yaml:9", "dumps[3].source"),
    ]
    assert os.listdir(tmp_path) == ["m.yaml"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version: 1: 2\n", "m.yaml:1: "),
        (b"version: 1\n\toutput: x\n", "m.yaml:2: "),
        (b"", "m.yaml:1: "),
        (b"just words\n", "m.yaml:1: "),
        (bytes(range(256)), "m.yaml:1: "),
        (b"[" * 100, "m.yaml:1: "),
    ],
)
def test_what_is_no_manifest(content, said, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_bytes(content)
    done = asyncdump("m.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"asyncdump: {said}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("name", "reason"), [("nothing.yaml", "ENOENT"), (".", "EISDIR")])
def test_a_manifest_that_can_not_be_read(name, reason, tmp_path: Path) -> None:
    done = asyncdump(name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"asyncdump: .*: {reason} \(.+\)\n", done.stderr)


# --- progress ---------------------------------------------------------------------------------------------------------


def check_order(told: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Check that events have their fields and come in the promised order; return those of each file."""
    for event in told:
        assert event.keys() == {"event", "at", *FIELDS[event["event"]]}, event
        assert event["at"] >= 0
    kinds = [event["event"] for event in told]
    assert (kinds[0], kinds.count("run_started")) == ("run_started", 1)
    assert (kinds[-1], kinds.count("run_finished")) == ("run_finished", 1)
    files: dict[str, list[str]] = {}
    for event in told[1:-1]:
        files.setdefault(event["name"], []).append(event["event"])
    for name, kinds in files.items():
        assert re.fullmatch(
            r"(file_started (progress )*file_(finished|failed) )|file_failed ", " ".join([*kinds, ""])
        ), (
            name,
            kinds,
        )
    return files


def test_events_as_json(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, {"source": str(sources[2]), "name": "refused", "method": "reflink"}, *sources)
    done = asyncdump("m.yaml", "--progress", "json", "--log-format", "json", cwd=tmp_path)
    assert done.returncode == 1
    told = events(done.stdout)
    assert set(check_order(told)) == {"refused", "ring0", "ring1", "ring2"}
    first, last = told[0], told[-1]
    size = sum(source.stat().st_size for source in sources)
    assert (first["files"], first["bytes"], first["output"]) == (4, size + 5000, f"{tmp_path}/out")
    assert (last["files"], last["failed"], last["bytes"], last["interrupted"]) == (4, 1, size, None)
    for source in sources:
        [finished] = [event for event in told if event["event"] == "file_finished" and event["name"] == source.name]
        assert finished["digest"] == f"xxh128:{digest_of(source.read_bytes(), 'xxh128')}"
        assert (finished["source"], finished["bytes"]) == (str(source), source.stat().st_size)
    [failed] = [event for event in told if event["event"] == "file_failed"]
    assert failed["phase"] == "move"
    assert failed["error"].keys() == {"type", "message", "errno", "hint"}
    assert failed["error"]["type"] == "MethodRefusedError"


def test_progress_goes_forward(endless: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, endless)
    with running("m.yaml", "--progress", "json", cwd=tmp_path) as process:
        assert process.stdout is not None
        told: list[dict[str, Any]] = []
        while len(told) < 6:
            told.append(json.loads(process.stdout.readline()))
        told += events(end(process, signal.SIGINT).stdout)
    check_order(told)
    done = [event["done"] for event in told if event["event"] == "progress"]
    assert done == sorted(set(done))
    assert {event["total"] for event in told if event["event"] == "progress"} == {endless.stat().st_size}
    times = [event["at"] for event in told if event["event"] == "progress"]
    assert times[3] - times[0] > 0.2


@pytest.mark.slow
def test_plain_lines(endless: Path, tmp_path: Path) -> None:
    """The first at once, the next after two seconds."""
    write_manifest(tmp_path, endless)
    with running("m.yaml", "--progress", "plain", cwd=tmp_path) as process:
        assert process.stderr is not None
        assert mentions(process.stderr.readline(), "1 file", "4.0 TiB", tmp_path / "out")
        line = process.stderr.readline()
        rest = end(process, signal.SIGTERM)
    assert re.fullmatch(r" *\d+ %  [\d.]+ [GT]iB of 4\.0 TiB .*, 0 B .*, 0 of 1 .*, [\d.]+ [MG]iB/s, \d+ s .*\n", line)
    assert rest.returncode == 143
    assert mentions(rest.stderr.splitlines()[-2], "1 file", "SIGTERM")
    assert mentions(rest.stdout.splitlines()[0], "0 of 1 file", tmp_path / "out", "SIGTERM")


def test_progress_none_leaves_the_summary(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    done = asyncdump("m.yaml", "--progress", "none", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 of 3 files ")


@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_quiet(option, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    done = asyncdump("m.yaml", option, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    check_dumps(tmp_path / "out", sources)


def test_quiet_tells_of_failures(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, {"source": str(sources[0]), "method": "reflink"}, *sources[1:])
    done = asyncdump("m.yaml", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(r"^asyncdump: .*ring0.*reflink", done.stderr, re.MULTILINE)


def test_warnings_as_json(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, {"source": str(sources[0]), "method": "reflink"}, *sources[1:])
    done = asyncdump("m.yaml", "--progress", "json", "--log-format", "json", cwd=tmp_path)
    [record] = [json.loads(line) for line in done.stderr.splitlines()]
    assert record["timestamp"]
    assert (record["event"], record["level"], record["phase"]) == ("dump_failed", "warning", "move")
    assert record["source"] == str(sources[0])
    assert record["error"].startswith("reflink ")


def test_warnings_for_people(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, {"source": str(sources[0]), "method": "reflink"}, *sources[1:])
    done = asyncdump("m.yaml", "--progress", "json", cwd=tmp_path)
    [line] = done.stderr.splitlines()
    assert re.search(r"\[warning *\] dump_failed +error='reflink .* phase=move", line)
    assert "\x1b" not in line


def test_every_kind_of_event_is_known_here() -> None:
    kinds = get_args(package.Event)
    values: dict[str, Any] = {"error": package.DumpError("no")}
    records = [event_record(kind(**{field: values.get(field) for field in kind.__struct_fields__})) for kind in kinds]
    assert {record["event"]: record.keys() - {"event", "at"} for record in records} == FIELDS


# --- readers that go away ---------------------------------------------------------------------------------------------


def test_the_dump_outlives_the_reader_of_its_events(shm: Path, tmp_path: Path) -> None:
    """As with ``| head -1``."""
    sources = [shm / f"ring{number}" for number in range(100)]
    for number, source in enumerate(sources):
        source.write_bytes(noise(64 * KiB, number))
    write_manifest(tmp_path, f"{shm}/ring*")
    with running("m.yaml", "--progress", "json", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["event"] == "run_started"
        process.stdout.close()
        assert process.wait(ENOUGH) == 0
        assert process.stderr.read() == ""
    check_dumps(tmp_path / "out", sources)
    assert receipt(tmp_path / "out")["ok"] is True


def test_the_dump_outlives_the_reader_of_its_summary(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    with unread() as writing:
        done = asyncdump("m.yaml", "--progress", "none", cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    check_dumps(tmp_path / "out", sources)
    assert receipt(tmp_path / "out")["ok"] is True


@pytest.mark.parametrize(
    "arguments", [["--version"], ["schema"], ["--help"], ["m.yaml", "--dry-run"], ["probe", "ring0", "."]]
)
def test_a_reader_that_has_gone_is_no_reason_to_shout(arguments, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    shutil.copy(sources[0], tmp_path)
    with unread() as writing:
        done = asyncdump(*arguments, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.sample(2)
@pytest.mark.parametrize("progress", ["plain", "json", "bar"])
@pytest.mark.parametrize("lost", ["unread", "full", "closed"])
def test_the_dump_outlives_standard_error(lost, progress, sources: list[Path], tmp_path: Path) -> None:
    """As with ``2>&1 >/dev/null | head -1``; what fails in it is warned of as well."""
    write_manifest(tmp_path, {"source": str(sources[0]), "method": "reflink"}, *sources[1:])
    arguments = ("m.yaml", "--progress", progress)
    if lost == "closed":
        done = redirected("2>&-", *arguments, cwd=tmp_path)
    elif lost == "full":
        done = redirected("2>/dev/full", *arguments, cwd=tmp_path)
    else:
        with unread() as stderr:
            done = asyncdump(*arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr)
    assert done.returncode == 1
    assert [file["phase"] for file in receipt(tmp_path / "out")["files"]] == ["move", "done", "done"]
    check_dumps(tmp_path / "out", sources[1:])
    if progress == "json":
        assert events(done.stdout)[-1]["event"] == "run_finished"
    else:
        assert done.stdout.startswith("2 of 3 files ")


NOWHERE = [(">/dev/full", "ENOSPC (No space left on device)"), (">&-", "EBADF (Bad file descriptor)")]


@pytest.mark.parametrize(("redirection", "reason"), NOWHERE)
@pytest.mark.parametrize("progress", ["plain", "json"])
def test_the_dump_outlives_standard_output(progress, redirection, reason, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    done = redirected(redirection, "m.yaml", "--progress", progress, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f": {reason}")
    assert len(done.stderr.splitlines()) == (2 if progress == "plain" else 1)
    assert receipt(tmp_path / "out")["ok"] is True
    check_dumps(tmp_path / "out", sources)


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_a_version_that_can_not_be_told(redirection, tmp_path: Path) -> None:
    done = redirected(redirection, "--version", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_dump_to_standard_output_that_is_closed(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, sources[0])
    done = redirected(">&-", "m.yaml", "--output", "-", "--quiet", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith(": EBADF (Bad file descriptor)")


@pytest.mark.sample(4)
@pytest.mark.parametrize(("redirection", "reason"), NOWHERE)
@pytest.mark.parametrize("arguments", [["schema"], ["--help"], ["m.yaml", "--dry-run"], ["probe", "ring0", "."]])
def test_what_can_not_be_printed_is_a_failure(arguments, redirection, reason, sources, tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    shutil.copy(sources[0], tmp_path)
    done = redirected(redirection, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith(f": {reason}")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-", "<&- 2>&-"])
def test_with_everything_closed_nothing_is_printed_into_a_dump(closed, sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    assert redirected(closed, "m.yaml", cwd=tmp_path).returncode == (1 if ">&-" in closed.split() else 0)
    check_dumps(tmp_path / "out", sources)
    assert receipt(tmp_path / "out")["ok"] is True


@pytest.mark.parametrize("progress", ["json", "plain"])
def test_a_receipt_that_can_not_be_written(progress, sources: list[Path], tmp_path: Path) -> None:
    last, *others = sources
    in_the_way = {"source": str(last), "filter": [["sh", "-c", "mkdir out/receipt.json; cat"]]}
    write_manifest(tmp_path, in_the_way, *others)
    done = asyncdump("m.yaml", "--progress", progress, "--allow-filters", cwd=tmp_path)
    assert done.returncode == 1
    assert "receipt.json" not in done.stdout
    assert re.search(r"^asyncdump: .+receipt.+: EISDIR", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


# --- signals outside of a run -----------------------------------------------------------------------------------------


def heeds_signals(process: subprocess.Popen[str]) -> bool:
    """Tell whether SIGTERM is caught: SIGINT is by every Python."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) & 1 << signal.SIGTERM - 1)


def ended_in_time(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal once it is heeded, and check that the process ends by it without ado."""
    deadline = time.monotonic() + ENOUGH
    while not heeds_signals(process):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.2)
    rest = end(process, number)
    (line,) = rest.stderr.splitlines()
    assert line.endswith(number.name)
    assert rest.returncode == 128 + number


both_signals = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@both_signals
def test_a_signal_while_it_starts(number, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import time; time.sleep(60)")
    with running("m.yaml", cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path))) as process:
        ended_in_time(process, number)


@both_signals
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_signal_while_the_manifest_is_read(options, number, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.yaml")
    with running("m.yaml", *options, cwd=tmp_path) as process:
        ended_in_time(process, number)
    assert os.listdir(tmp_path) == ["m.yaml"]


@both_signals
def test_a_signal_while_methods_are_tried(number, endless: Path, tmp_path: Path) -> None:
    with running("probe", endless, str(tmp_path), cwd=tmp_path) as process:
        ended_in_time(process, number)
    assert os.listdir(tmp_path) == []


def test_a_signal_that_is_ignored_stays_so(endless: Path, tmp_path: Path) -> None:
    """As nohup and a script's ``&`` have it."""
    write_manifest(tmp_path, endless)
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *COMMAND, "m.yaml", "--progress", "json"]
    with subprocess.Popen(shell, cwd=tmp_path, text=True, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "run_started"
        process.send_signal(signal.SIGINT)
        for _ in range(5):
            assert json.loads(process.stdout.readline())["event"] != "run_finished"
        assert end(process, signal.SIGTERM).returncode == 143


# --- names that would control the terminal ----------------------------------------------------------------------------

EVIL = "evil\x1b]0;owned\x07\x9b31m\r"
SHOWN = r"evil\x1b]0;owned\x07\x9b31m\r"


@pytest.fixture
def evil(shm: Path, tmp_path: Path) -> Path:
    """A folder with a control sequence in its name, and a file in it."""
    (shm / EVIL).mkdir()
    (shm / EVIL / "ring").write_bytes(noise(5000))
    return shm / EVIL / "ring"


def check_harmless(done: Output) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout + done.stderr)
    assert SHOWN in done.stdout + done.stderr


@pytest.mark.parametrize("options", [[], ["--log-format", "json"], ["--dry-run"], ["--progress", "json"]])
def test_a_name_does_not_control_the_terminal(options, evil: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, evil, defaults={"method": "reflink"})
    done = asyncdump("m.yaml", *options, cwd=tmp_path)
    check_harmless(done)
    if "--dry-run" not in options:
        [file] = receipt(tmp_path / "out")["files"]
        assert file["source"].endswith(f"/{SHOWN}/ring")
        assert base64.b64decode(file["source_base64"]) == os.fsencode(evil)


def test_an_output_folder_does_not_control_the_terminal(sources: list[Path], tmp_path: Path) -> None:
    write_manifest(tmp_path, *sources)
    check_harmless(asyncdump("m.yaml", "--output", EVIL, cwd=tmp_path))


def test_an_error_does_not_control_the_terminal(tmp_path: Path) -> None:
    write_manifest(tmp_path, f"/nowhere/{EVIL}")
    check_harmless(asyncdump("m.yaml", cwd=tmp_path))
    check_harmless(asyncdump(EVIL, cwd=tmp_path))
    check_harmless(asyncdump("probe", EVIL, str(tmp_path), cwd=tmp_path))
    check_harmless(asyncdump("dd", f"if={EVIL}", cwd=tmp_path))
    check_harmless(asyncdump("dd", f"conv={EVIL}", cwd=tmp_path))


# --- names that aren't UTF-8 ------------------------------------------------------------------------------------------


@pytest.fixture
def odd(shm: Path) -> bytes:
    """A file with a Latin-1 name, alone in its folder."""
    path = os.fsencode(shm) + b"/caf\xe9"
    with open(path, "wb") as file:
        file.write(noise(5000))
    return path


def test_the_plan_of_an_odd_name(odd: bytes, shm: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, f"{shm}/caf*")
    done = asyncdump("m.yaml", "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].startswith(f"caf\\xe9  {shm}/caf\\xe9  tmpfs")


def test_the_dump_of_an_odd_name(odd: bytes, shm: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, f"{shm}/caf*")
    done = asyncdump("m.yaml", "--progress", "json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    [finished] = [event for event in events(done.stdout) if event["event"] == "file_finished"]
    assert finished["name"] == "caf\\xe9"
    with open(os.fsencode(tmp_path) + b"/out/caf\xe9", "rb") as file:
        assert file.read() == noise(5000)
    [record] = receipt(tmp_path / "out")["files"]
    assert record["name"] == "caf\\xe9"
    assert base64.b64decode(record["name_base64"]) == b"caf\xe9"
    assert base64.b64decode(record["source_base64"]) == odd
    assert (tmp_path / "out" / "XXH128SUMS").read_bytes().endswith(b"  caf\xe9\n")


@pytest.mark.parametrize("form", ["console", "json"])
def test_the_failure_of_an_odd_name(form, odd: bytes, shm: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, f"{shm}/caf*")
    done = asyncdump("m.yaml", "--method", "reflink", "--log-format", form, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert mentions(done.stderr, f"{shm}/caf\\xe9", "reflink", "tmpfs")
    if form == "json":
        [record] = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
        assert record["event"] == "dump_failed"


def test_an_output_folder_and_a_manifest_with_odd_names(sources: list[Path], tmp_path: Path) -> None:
    os.rename(write_manifest(tmp_path, *sources), os.fsencode(tmp_path) + b"/m\xe9.yaml")
    done = asyncdump(b"m\xe9.yaml", "--output", b"\xfc", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mentions(done.stdout.splitlines()[0], "3 of 3", f"{tmp_path}/\\xfc")
    check_dumps(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfc")), sources)


def test_in_the_c_locale(odd: bytes, shm: Path, tmp_path: Path) -> None:
    (shm / "größe").write_bytes(noise(10))
    write_manifest(tmp_path, f"{shm}/*")
    done = asyncdump("m.yaml", "--dry-run", cwd=tmp_path, env=environment(LC_ALL="C"))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 6
