"""Reading a manifest from YAML. All errors are reported up front, each with its file, line and key."""

from __future__ import annotations

import os
import re
import select
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

import msgspec
import yaml

from asyncdump.errors import ManifestError, Problem, describe_errno
from asyncdump.manifest.complaints import SIZES, complaint, required, unknown_key
from asyncdump.manifest.compression import MODELS
from asyncdump.manifest.models import Defaults, Dump, Manifest, ProcessMemory, Retries
from asyncdump.sources.file import open_file
from asyncdump.text import shown, text

_LARGEST: Final = 16 << 20
_DEEPEST: Final = 16
_MOST: Final = 1_000_000
"""Values that a manifest may have, with aliases expanded: about 200,000 dumps."""

_LONGEST_NUMBER: Final = 400

_LONG: Final = 64
"""Characters of a text that count as one more value."""

_PATIENCE: Final = 100
"""Milliseconds between two checks for cancellation while a manifest is read from a pipe."""

_VERSION: Final = (1, 2)
_TAG: Final = "tag:yaml.org,2002:"

_CORE: Final = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
"""What a plain scalar is by the core schema of YAML 1.2 (section 10.3.2); anything else is text."""

_KINDS: Final = {f"{_TAG}{name}": re.compile(f"(?:{pattern})\\Z") for name, pattern in _CORE.items()}
_TAGS: Final = frozenset({None, f"{_TAG}str", f"{_TAG}map", f"{_TAG}seq", *_KINDS})


def core_loader(base: Any) -> Any:
    """Return a PyYAML loader that resolves scalars by the core schema; PyYAML itself only knows YAML 1.1.

    In YAML 1.1, ``010`` is 8, ``1:30`` is 90, ``yes`` is true, and ``0o10`` is text.
    """
    starts = {"null": "~nN", "bool": "tTfF", "int": "-+0123456789", "float": "-+.0123456789"}
    resolvers: dict[str, list[tuple[str, Any]]] = {"": [(f"{_TAG}null", _KINDS[f"{_TAG}null"])]}
    for name, letters in starts.items():
        for letter in letters:
            resolvers.setdefault(letter, []).append((f"{_TAG}{name}", _KINDS[f"{_TAG}{name}"]))
    return type("Loader", (base,), {"yaml_implicit_resolvers": resolvers})


# libyaml, if PyYAML was built with it, is ten times as fast for a manifest of thousands of dumps.
_Loader: Any = core_loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader))


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """Where the keys of a manifest are: ``dumps[3].source`` to a line number, counted from 1."""

    file: str = ""
    lines: dict[str, int] = msgspec.field(default_factory=dict)
    sha256: str = ""

    def problem(self, key: str, message: str, remedy: str = "") -> Problem:
        """Return a problem with a key, at its line, or at the line of the key that contains it."""
        place = key
        while place and place not in self.lines:
            place = place.rpartition("." if "." in place else "[")[0]
        line = self.lines.get(place, 0)
        return Problem(message=text(message), key=text(key), file=self.file, line=line, remedy=remedy)


def read_manifest(path: str, check: Callable[[], None] = lambda: None) -> tuple[Manifest, Marks]:
    """Read and validate a manifest; ``check`` is called while waiting for a pipe, and may raise to stop that.

    Returns:
        The manifest, and where its keys are in the file.

    Raises:
        ManifestError: the file can't be read, isn't YAML, or isn't a manifest. All reasons are reported.
    """
    try:
        fd = open_file(path)
        try:
            content = _content(fd, check)
        finally:
            os.close(fd)
    except OSError as error:
        reason = describe_errno(error.errno) if error.errno else str(error)
        raise ManifestError(Problem(file=path, message=f"the manifest can't be read: {reason}")) from error
    if len(content) > _LARGEST:
        raise ManifestError(Problem(file=path, message=f"the manifest is larger than {_LARGEST} bytes"))
    return parse_manifest(content, path)


def _content(fd: int, check: Callable[[], None]) -> bytes:
    """Return the content of a file or a pipe, up to one byte more than is allowed."""
    content = bytearray()
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    while len(content) <= _LARGEST:
        check()
        if not ready.poll(_PATIENCE):
            continue
        with suppress(BlockingIOError):  # Another reader was faster.
            if not (piece := os.read(fd, _LARGEST + 1 - len(content))):
                break
            content += piece
    return bytes(content)


def parse_manifest(content: bytes, path: str) -> tuple[Manifest, Marks]:
    """Validate the content of a manifest file; ``path`` is its name in errors.

    Raises:
        ManifestError: it isn't YAML, or isn't a manifest. All reasons are reported.
    """
    reader = _Reader(path, sha256(content).hexdigest())
    manifest = reader.manifest(_compose(content, path))
    if reader.problems or manifest is None:
        raise ManifestError(*sorted(reader.problems, key=lambda problem: problem.line))
    return manifest, reader.marks


def _compose(content: bytes, path: str) -> yaml.Node | None:
    try:
        _check_size(content, path)
        return yaml.compose(content, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = f"not YAML: {error.problem or error.context}"
        # libyaml counts one more line if the last one isn't terminated.
        last = len((content + b".").decode(errors="replace").splitlines())
        line = min(mark.line + 1, last) if mark else 1
        raise ManifestError(Problem(file=path, line=line, message=message)) from error
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        message = f"not YAML: {str(error).splitlines()[0]}"
        raise ManifestError(Problem(file=path, line=1, message=message)) from error


def _line(place: Any) -> int:
    return int(place.start_mark.line) + 1


def _check_size(content: bytes, path: str) -> None:
    """Reject what would exhaust the stack, or the memory once aliases are expanded, before it is parsed."""
    sizes: dict[str | None, int] = {}
    total = 0
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(content, Loader=_Loader):
        if isinstance(event, yaml.DocumentStartEvent) and (event.tags or event.version not in {None, _VERSION}):
            raise _refusal(event, path, "the only directive that is allowed is %YAML 1.2")
        if (tag := getattr(event, "tag", None)) not in _TAGS:
            raise _refusal(event, path, f"the tag {tag} is not allowed in a manifest")
        if isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // _LONG
            total += size
            if event.anchor is not None:
                sizes[event.anchor] = size
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = total - before
            continue
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, total))
            total += 1
            if len(opened) > _DEEPEST:
                raise _refusal(event, path, f"nested deeper than {_DEEPEST} levels")
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in opened):
                raise _refusal(event, path, f"*{event.anchor} is inside the node that it refers to")
            total += sizes.get(event.anchor, 1)
        if total > _MOST:
            raise _refusal(event, path, f"more than {_MOST:,} values, with *aliases expanded")


def _refusal(event: yaml.Event, path: str, message: str) -> ManifestError:
    return ManifestError(Problem(file=path, line=_line(event), message=message))


class _Reader:
    """Builds the models from YAML nodes, and collects lines and problems."""

    def __init__(self, path: str, digest: str) -> None:
        self.marks = Marks(file=path, sha256=digest)
        self.problems: list[Problem] = []

    def _complain(self, key: str, message: str, node: yaml.Node | None = None) -> None:
        if node is None:
            self.problems.append(self.marks.problem(key, message))
        else:
            line = _line(node)
            self.problems.append(Problem(message=text(message), key=text(key), file=self.marks.file, line=line))

    def manifest(self, node: yaml.Node | None) -> Manifest | None:
        self.marks.lines[""] = 1 if node is None else _line(node)
        if not isinstance(node, yaml.MappingNode):
            self._complain("", "a manifest must be a mapping with the keys version, output and dumps", node)
            return None
        values = self._mapping(Manifest, node, "")
        if "version" not in values and not any(problem.key == "version" for problem in self.problems):
            self._complain("version", "is missing: add version: 1", node)
        return None if self.problems else Manifest(**values)

    def _mapping(self, model: Any, node: yaml.MappingNode, prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._complain(prefix.rstrip("."), "a key must be text, not a list or a mapping", key_node)
                continue
            name = str(key_node.value)
            key = f"{prefix}{name}"
            if name in seen:
                self._complain(key, f"is given twice, first in line {self.marks.lines[key]}", key_node)
                continue
            seen.add(name)
            self.marks.lines[key] = _line(key_node)
            if name not in model.__struct_fields__:
                self._complain(key, unknown_key(model, name))
            elif (value := self._value(model, name, value_node, key)) is not _WRONG:
                values[name] = value
        for name in required(model):
            if name not in seen:
                self._complain(f"{prefix}{name}", "is missing", node)
        stages = [name for name in values if name in _STAGES]
        if len(stages) == len(_STAGES):  # In the order written.
            values.setdefault("first", stages[0])
        return values

    def _value(self, model: Any, name: str, node: yaml.Node, key: str) -> Any:
        if name == "defaults":
            return self._made(Defaults, node, key)
        if name == "dumps":
            return self._dumps(node, key)
        if name == "compress" and isinstance(node, yaml.MappingNode):
            return self._compress(node, key)
        if name in _MAPPINGS and isinstance(node, yaml.MappingNode):
            return self._made(_MAPPINGS[name], node, key)
        if name == "errors":
            return self._list(model, name, node, key)
        if name == "filter":
            return self._filter(model, node, key)
        if not isinstance(node, yaml.ScalarNode):
            self._complain(key, "must be a single value, not a list or a mapping", node)
            return _WRONG
        try:
            value = _plain(node, size=name in SIZES)
        except ValueError as error:
            self._complain(key, str(error))
            return _WRONG
        if message := complaint(model, name, value):
            self._complain(key, message)
            return _WRONG
        return value

    def _submodel(self, model: Any, node: yaml.Node, key: str) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            self._complain(key, f"must be a mapping with keys such as {', '.join(model.__struct_fields__[:3])}", node)
            return {}
        return self._mapping(model, node, f"{key}.")

    def _made(self, model: Any, node: yaml.Node, key: str) -> Any:
        before = len(self.problems)
        values = self._submodel(model, node, key)
        if len(self.problems) > before:
            return _WRONG
        try:
            return model(**values)
        except ManifestError as error:  # What is wrong with the values together.
            for problem in error.problems:
                self._complain(f"{key}.{problem.key}", problem.message)
            return _WRONG

    def _compress(self, node: yaml.MappingNode, key: str) -> Any:
        names = [getattr(name, "value", None) for name, _ in node.value]
        if len(names) != 1 or names[0] not in MODELS:
            examples = " or ".join(model.example for model in MODELS.values())
            self._complain(
                key, f"is {', '.join(MODELS)}, none, or a mapping with one of them as its only key: {examples}", node
            )
            return _WRONG
        [(name, value)] = node.value
        key = f"{key}.{name.value}"
        self.marks.lines[key] = _line(name)
        return self._made(MODELS[name.value], value, key)

    def _list(self, model: Any, name: str, node: yaml.Node, key: str) -> Any:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        value = tuple(item.value if isinstance(item, yaml.ScalarNode) else None for item in items)
        if message := complaint(model, name, value):
            self._complain(key, message, node)
            return _WRONG
        return value

    def _filter(self, model: Any, node: yaml.Node, key: str) -> Any:
        """Read argument lists, in which every scalar is text: ``-9`` is an argument, not a number."""
        value: Any = None
        if isinstance(node, yaml.SequenceNode):
            value = tuple(
                tuple(argument.value for argument in command.value if isinstance(argument, yaml.ScalarNode))
                if isinstance(command, yaml.SequenceNode)
                and all(isinstance(argument, yaml.ScalarNode) for argument in command.value)
                else None
                for command in node.value
            )
        if value is None or complaint(model, "filter", value):
            self._complain(key, "must be a list of argument lists: [[age, -r, KEY], [gzip]]", node)
            return _WRONG
        return value

    def _dumps(self, node: yaml.Node, key: str) -> Any:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._complain(key, "must be a list of dumps, each with a source", node)
            return _WRONG
        dumps = []
        for index, item in enumerate(node.value):
            before = len(self.problems)
            place = f"{key}[{index}]"
            self.marks.lines[place] = _line(item)
            values = self._submodel(Dump, item, place)
            if len(self.problems) == before:
                dumps.append(Dump(**values))
        return tuple(dumps)


def _plain(node: yaml.ScalarNode, *, size: bool) -> Any:
    """Return a scalar as a Python value.

    A size with a plus stays text, because it isn't a size anywhere else.

    Raises:
        ValueError: its tag doesn't match it, or it is an absurdly long number.
    """
    name = node.tag.removeprefix(_TAG)
    value = str(node.value)
    if name not in _CORE or (size and value[:1] == "+"):
        return value
    if not _KINDS[node.tag].match(value):
        raise ValueError(f"{shown(value)} is not a !!{name}")
    if len(value) > _LONGEST_NUMBER:
        raise ValueError(f"{shown(value)} has too many digits")
    match name:
        case "null":
            return None
        case "bool":
            return value[0] in "tT"
        case "int":
            return int(value, 0 if value[1:2] in {"o", "x"} else 10)
    return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))


_STAGES: Final = ("compress", "filter")
_MAPPINGS: Final[dict[str, Any]] = {"retries": Retries, "source": ProcessMemory}
"""The keys whose value may be a mapping, instead of a single value."""

_WRONG: Final = object()
