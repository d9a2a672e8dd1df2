"""Manifests in YAML: each error with its file, line and key, all of them at once, and never a traceback."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import KEYS, as_yaml, broken_yaml, documents, file_names, strange_documents, yaml_texts

from asyncdump.errors import ManifestError, Problem
from asyncdump.manifest.models import Defaults, Dump, Manifest
from asyncdump.manifest.yaml import Marks, parse_manifest, read_manifest
from asyncdump.text import text

LARGEST = 16 << 20
HEAD = "version: 1\noutput: o\ndumps:\n"


def errors(content: str | bytes) -> list[str]:
    """Return what is wrong with a manifest, as the user reads it."""
    with pytest.raises(ManifestError) as refused:
        parse_manifest(content.encode() if isinstance(content, str) else content, "m.yaml")
    return [str(problem) for problem in refused.value.problems]


def places(content: str) -> list[str]:
    """Return the line and the key of each error."""
    with pytest.raises(ManifestError) as refused:
        parse_manifest(content.encode(), "m.yaml")
    return [f"{problem.line}: {problem.key}" for problem in refused.value.problems]


def parse(content: str) -> Manifest:
    return parse_manifest(content.encode(), "m.yaml")[0]


# --- what is right ----------------------------------------------------------------------------------------------------

REFERENCE = """\
version: 1
output: /var/dumps/crash-42
concurrency: auto
on_error: continue
defaults: {method: auto, checksum: xxh128, durable: true, sparse: auto}
dumps:
  - source: /dev/hugepages/rtemap_*
  - source: /dev/shm/ring0
    name: ring0.bin
    offset: 0
    length: 16MiB
    method: sendfile
    checksum: sha256
"""


def test_the_example_of_the_reference() -> None:
    manifest, marks = parse_manifest(REFERENCE.encode(), "m.yaml")
    ring = Dump(source="/dev/shm/ring0", name="ring0.bin", length="16MiB", method="sendfile", checksum="sha256")
    assert manifest == Manifest(output="/var/dumps/crash-42", dumps=(Dump(source="/dev/hugepages/rtemap_*"), ring))
    assert marks.sha256 == sha256(REFERENCE.encode()).hexdigest()
    assert marks.file == "m.yaml"
    lines = {"version": 1, "output": 2, "defaults": 5, "defaults.durable": 5, "dumps": 6}
    lines |= {"dumps[0]": 7, "dumps[0].source": 7, "dumps[1]": 8, "dumps[1].name": 9, "dumps[1].checksum": 13}
    assert {key: marks.lines[key] for key in lines} == lines


@given(yaml_texts(documents))
def test_a_valid_manifest_comes_back_as_it_was_written(drawn: tuple[bytes, dict[str, Any]]) -> None:
    content, document = drawn
    manifest, marks = parse_manifest(content, "m.yaml")
    given = {**document, "defaults": Defaults(**document.get("defaults", {}))}
    assert manifest == Manifest(**{**given, "dumps": tuple(Dump(**dump) for dump in document["dumps"])})
    assert set(marks.lines) >= {*document, *(f"dumps[{index}].source" for index in range(len(document["dumps"])))}
    last = content.count(b"\n") + 1
    assert all(1 <= line <= last for line in marks.lines.values())


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-01-01", "2026-01-01"),
        ("'5'", "5"),
        ("/dev/shm/größe", "/dev/shm/größe"),
        ("!!str 5", "5"),
        ("|-\n      two\n      lines", "two\nlines"),
        ("1_x", "1_x"),
    ],
)
def test_text_stays_text(written, expected) -> None:
    assert parse(f"{HEAD}  - source: {written}\n").dumps[0].source == expected


def test_nothing_stands_for_the_default_where_there_is_one_to_inherit() -> None:
    assert parse(f"{HEAD}  - {{source: s, length: , method: null, durable: ~}}\n").dumps == (Dump(source="s"),)


def test_an_anchor_may_be_used_again() -> None:
    manifest = parse(f"{HEAD}  - &a {{source: s, method: &m read}}\n  - *a\n  - {{source: t, method: *m}}\n")
    first = Dump(source="s", method="read")
    assert manifest.dumps == (first, first, Dump(source="t", method="read"))


def test_a_byte_order_mark_and_utf_16_are_yaml_too() -> None:
    content = f"{HEAD}  - source: größe\n"
    for encoding in ("utf-8-sig", "utf-16"):
        assert parse_manifest(content.encode(encoding), "m.yaml")[0] == parse(content)


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_the_errors_of_the_reference() -> None:
    assert places("""\
version: 1
output: o
concurency: 4
dumps:
  - source: a
  - source: b
    length: 16 MiBs
  - source: c
    name: c.bin
    checksum: md5
""") == [
        "3: concurency",
        "7: dumps[1].length",
        "10: dumps[2].checksum",
    ]


def test_all_that_is_wrong_is_told_at_once_and_in_the_order_of_lines() -> None:
    assert places("""\
dumps:
  - name: n
    offset: -1
  - 7
  - source: [a]
    durable: yes please
    durable: true
  - {source: s, legnth: 1, sparse: auot}
concurrency: 0
defaults:
  chekcsum: none
  method: null
on_error: {}
version: 2
""") == [
        "1: output",
        "2: dumps[0].source",
        "3: dumps[0].offset",
        "4: dumps[1]",
        "5: dumps[2].source",
        "6: dumps[2].durable",
        "7: dumps[2].durable",
        "8: dumps[3].legnth",
        "8: dumps[3].sparse",
        "9: concurrency",
        "11: defaults.chekcsum",
        "12: defaults.method",
        "13: on_error",
        "14: version",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("output: o\ndumps: [{source: s}]", "1: version"),
        ("# new\n\nversion: 1\ndumps: [{source: s}]", "3: output"),
        ("version: 1\noutput: o", "1: dumps"),
        (f"{HEAD}\n  - {{}}", "5: dumps[0].source"),
        (f"{HEAD}  - source: s\nversion: 1", "5: version"),
        (f"{HEAD}  - source: s\n    source: s", "5: dumps[0].source"),
        (f"defaults: {{sparse: auto,\n  sparse: auto}}\n{HEAD}  - source: s", "2: defaults.sparse"),
        (f"{HEAD}  - source: s\n'a.b': 1", "5: a.b"),
        (f"{HEAD}  - source: s\n<<: {{on_error: abort}}", "5: <<"),
        (f"{HEAD}  - source: s\n? [1, 2]\n: 3", "5: "),
        (f"{HEAD}  - source: s\n    method:\n      - read", "6: dumps[0].method"),
        (f"{HEAD}  - source: s\ndefaults: []", "5: defaults"),
        (f"{HEAD}  - source: s\ndefaults:", "5: defaults"),
        ("version: 1\noutput: o\ndumps: []", "3: dumps"),
        ("version: 1\noutput: o\ndumps:", "3: dumps"),
        ("version: 1\noutput: o\ndumps: {source: s}", "3: dumps"),
        ("version: '1'\noutput: o\ndumps: [{source: s}]", "1: version"),
        ("version: 1.0\noutput: o\ndumps: [{source: s}]", "1: version"),
        ("version: 1\noutput: 7\ndumps: [{source: s}]", "2: output"),
        ("version: 1\noutput: true\ndumps: [{source: s}]", "2: output"),
        (f"{HEAD}  - source: s\n    length: {9 * '9'}{'9' * 5000}", "5: dumps[0].length"),
        (f"{HEAD}  - source: s\n    length: 9223372036854775808", "5: dumps[0].length"),
        (f"{HEAD}  - source: s\n    offset: !!int x", "5: dumps[0].offset"),
        ("\n- version: 1", "2: "),
        ("\n\ntext", "3: "),
        ("null", "1: "),
    ],
)
def test_one_error(content, expected) -> None:
    (place,) = places(content)
    assert place == expected


def test_what_stands_again_and_again_is_told_against_the_first_and_not_looked_at() -> None:
    assert places(f"{HEAD}  - source: s\non_error: abort\non_error: stop\non_error: []\nmore: 1\nmore: 2\n") == [
        "6: on_error",
        "7: on_error",
        "8: more",
        "9: more",
    ]


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "\n\n"])
def test_an_empty_file_is_no_manifest(content) -> None:
    (place,) = places(content)
    assert place in {"1: ", "2: "}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("version: [", 1),
        ("version: 1\noutput: [o\ndumps: x", 3),
        ("version: 1\n\toutput: o", 2),
        ("version: 1\noutput: *nowhere", 2),
        ("version: 1\noutput: 'o\n", 3),
        ("version: 1\n---\nversion: 1", 2),
        ("version: 1\noutput: %o", 2),
        ("version: 1\n output: o", 2),
        ("%YAML 9.9\n---\nversion: 1", 1),
        ("\xff\x00".encode("latin-1"), 1),
        (b"version: \xff", 1),
        (b"version: \x00", 1),
        ('version: "\\ud800"', 1),
    ],
)
def test_what_is_not_yaml_is_one_error_with_its_line(content, line) -> None:
    (error,) = errors(content)
    assert error.startswith(f"m.yaml:{line}: ")
    assert "\n" not in error


@pytest.mark.parametrize("opened", ["[", "{a: ", "- "])
def test_nesting_that_would_exhaust_the_stack_is_refused(opened) -> None:
    (error,) = errors("version: 1\noutput:\n  " + opened * 17)
    assert error.startswith("m.yaml:3: ")
    assert "16" in error
    # Far beyond, libyaml may be the first to refuse.
    assert len(errors(opened * 100_000)) == 1


def test_sixteen_levels_are_looked_at() -> None:
    (looked_at,) = errors("[" * 16 + "]" * 16)
    (refused,) = errors("[" * 17 + "]" * 17)
    assert "16" in refused
    assert "16" not in looked_at


MOST = 1_000_000


def too_many(content: str) -> int:
    """Return the line where a manifest is refused because it holds more than that."""
    with pytest.raises(ManifestError) as refused:
        parse_manifest(content.encode(), "m.yaml")
    (problem,) = refused.value.problems
    assert f"{MOST:,}" in problem.message
    return problem.line


def test_three_thousand_dumps_may_share_what_one_of_them_says() -> None:
    """Anchors of every kind, used as often as the largest manifests would."""
    count = 3000
    manifest = parse(
        "version: 1\noutput: o\ndefaults: &d {checksum: &c sha256, filter: &f [[age, -r, KEY], [gzip]]}\ndumps:\n"
        "  - &first {source: s, method: &m read, checksum: *c, filter: *f}\n  - *first\n"
        + "".join(f"  - {{source: s{n}, method: *m, checksum: *c, filter: *f}}\n" for n in range(count))
    )
    assert len(manifest.dumps) == count + 2
    assert {dump.filter for dump in manifest.dumps} == {(("age", "-r", "KEY"), ("gzip",))}
    assert {(dump.method, dump.checksum) for dump in manifest.dumps} == {("read", "sha256")}


@pytest.mark.timeout(5)
def test_a_billion_laughs_are_refused_where_they_become_too_many() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(14))
    assert too_many(bomb) == 7
    # One below another, as dumps have them too.
    bomb = "a: &a0 [x]\n" + "".join(f"? &a{n + 1} [{f'*a{n}, ' * 99}]\n: *a{n}\n" for n in range(9))
    assert too_many(bomb) == 6


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("head", "line"),
    [
        (f"defaults: {{filter: &f [[{'x, ' * 10_000}]]}}\n", 101),
        # In one long argument, for messages and the memory that they take.
        (f"defaults: {{filter: &f [[{'x' * 640_000}]]}}\n", 101),
        (f"? &f {'x' * 6_400_000}\n: 1\n", 13),
    ],
)
def test_a_filter_that_is_repeated_quadratically(head, line) -> None:
    dumps = "".join(f"  - {{source: s{n}, filter: *f}}\n" for n in range(1000))
    assert abs(too_many(f"{head}version: 1\noutput: o\ndumps:\n{dumps}") - line) <= 5


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("version: 1\noutput: o\ndumps: &a [*a]", 3),
        ("version: 1\noutput: o\ndumps: &a\n  - source: s\n  - filter: [[x],\n      *a]\n", 6),
        ("&a {version: 1,\noutput: *a}", 2),
        ("&a\n? *a\n: 1", 2),
        ("dumps: &a [{source: s}, &b [*b]]", 1),
    ],
)
def test_an_alias_in_its_own_anchor(content, line) -> None:
    (error,) = errors(content)
    assert error.partition(" ")[0] == f"m.yaml:{line}:"
    assert "*a" in error or "*b" in error


def test_an_alias_behind_its_anchor_is_not_in_it() -> None:
    manifest = parse("version: 1\noutput: o\ndumps: [&a {source: &s s, name: *s}, *a, {source: *s}]")
    assert manifest.dumps == (Dump(source="s", name="s"),) * 2 + (Dump(source="s"),)


def test_the_limit_is_met_exactly() -> None:
    """Counted are mappings, lists, keys and values: the text stays one of each while it's short."""
    most = f"- &a [{', '.join(['x'] * 998)}]\n" + "- *a\n" * (1000 - 1)
    fits = most + "- " + "[]\n- " * (MOST - 1 - 1000 * 999 - 1) + "x\n"
    assert f"{MOST:,}" not in errors(fits)[0]
    assert too_many(fits + "\n# One more:\n- *a\n") == fits.count("\n") + 3
    assert too_many(fits + "- x\n") == fits.count("\n") + 1


@pytest.mark.sample(1)
@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", ["*a,", "a,", "[],", "&k x,", "{a: *a},"])
def test_the_largest_file_of_small_things_is_refused_soon(piece) -> None:
    head = "version: 1\noutput: &a o\ndumps: ["
    content = head + piece * ((LARGEST - len(head) - 1) // len(piece)) + "]"
    assert too_many(content) == 3


# --- the file ---------------------------------------------------------------------------------------------------------


def file_error(path: Path) -> str:
    with pytest.raises(ManifestError) as refused:
        read_manifest(os.fspath(path))
    (problem,) = refused.value.problems
    assert problem.file == os.fspath(path)
    return problem.message


def test_a_file_is_read_as_its_content_is(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(REFERENCE)
    manifest, marks = read_manifest(os.fspath(path))
    assert manifest == parse(REFERENCE)
    assert marks.file == os.fspath(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert file_error(tmp_path / "missing").count("ENOENT") == 1
    assert file_error(tmp_path).count("EISDIR") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_only_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(REFERENCE)
    path.chmod(0)
    assert file_error(path).count("EACCES") == 1


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(REFERENCE)
    os.truncate(path, LARGEST + 1)
    assert str(LARGEST) in file_error(path)


def test_the_largest_file_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    line = b"#" * 1023 + b"\n"
    path.write_bytes(REFERENCE.encode() + line * (LARGEST // len(line) - 1))
    with path.open("ab") as file:
        file.write(b"#" * (LARGEST - file.tell()))
    assert path.stat().st_size == LARGEST
    assert read_manifest(os.fspath(path))[0] == parse(REFERENCE)


# --- whatever is in it ------------------------------------------------------------------------------------------------


def check(content: bytes) -> None:
    """Whatever the content is, it is a manifest or an error that can be found in the file."""
    problems: tuple[Problem, ...] = ()
    try:
        manifest, marks = parse_manifest(content, "m.yaml")
    except ManifestError as error:
        problems = error.problems
    else:
        assert manifest.dumps
        assert marks.file == "m.yaml"
        return
    assert problems
    # An end that is missing may be noticed in the line behind the last; what isn't ASCII has other ends of lines too.
    last = content.replace(b"\r", b"\n").count(b"\n") + 2 if content.isascii() else len(content) + 1
    for problem in problems:
        assert problem.file == "m.yaml"
        assert problem.message
        assert 1 <= problem.line <= last


@given(st.binary(max_size=60) | broken_yaml)
def test_any_bytes(content: bytes) -> None:
    check(content)


@given(yaml_texts(strange_documents))
def test_any_yaml(drawn: tuple[bytes, Any]) -> None:
    check(drawn[0])


@given(yaml_texts(documents), st.data())
def test_a_manifest_with_a_piece_cut_out_or_put_in(drawn: tuple[bytes, Any], data: st.DataObject) -> None:
    content = drawn[0]
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(start + 12, len(content))))
    check(content[:start] + data.draw(st.binary(max_size=3) | broken_yaml) + content[stop:])


@given(documents, st.lists(file_names.filter(lambda name: name not in KEYS), min_size=1, max_size=5, unique=True))
def test_each_unknown_key_is_an_error_of_its_own(document: dict[str, Any], names: list[str]) -> None:
    content = as_yaml({**document, **dict.fromkeys(names, 1)}, sort_keys=False)
    with pytest.raises(ManifestError) as refused:
        parse_manifest(content, "m.yaml")
    problems = refused.value.problems
    assert sorted(problem.key for problem in problems) == sorted(map(text, names))


def test_a_problem_without_a_line_stands_where_its_owner_does() -> None:
    marks = Marks(file="m.yaml", lines={"": 1, "dumps": 3, "dumps[1]": 5, "dumps[1].source": 6})
    places = {"dumps[1].source": 6, "dumps[1].name": 5, "dumps[0].name": 3, "output": 1, "defaults.method": 1}
    assert {key: marks.problem(key, "no").line for key in places} == places
    assert str(Marks().problem("output", "no")) == "output: no"
