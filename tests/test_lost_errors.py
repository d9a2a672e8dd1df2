"""Whoever is told of a write-back that failed keeps it: the code is read for those who don't."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncdump

TELLING = {"sync_file_range", "fsync", "fdatasync", "syncfs", "msync", "sync", "ask", "flush_behind", "settle", "flush"}
"""Calls that may be told of an error that nobody is told of again; so may ``os.close``."""

BROAD = {"OSError", "Exception", "BaseException", "DumpError", "AsyncdumpError"}
QUIETLY = "close_quietly"
"""The one function that may drop what a close says: of descriptors through which nothing is written, or all is proved."""

MODULES = sorted(Path(asyncdump.__file__).parent.rglob("*.py"))


def names(node: ast.AST | None) -> set[str]:
    found = set()
    for each in ast.walk(node) if node is not None else ():
        if isinstance(each, ast.Name | ast.Attribute):
            found.add(each.id if isinstance(each, ast.Name) else each.attr)
    return found


def telling(body: list[ast.stmt]) -> Iterator[ast.Call]:
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call):
                function = node.func
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                closes = name == "close" and isinstance(function, ast.Attribute) and names(function.value) == {"os"}
                if name in TELLING or closes:
                    yield node


def drops(handler: ast.ExceptHandler) -> bool:
    """Tell whether a handler takes no note: it neither raises, nor sets anything, nor looks at the error."""
    nodes = [node for statement in handler.body for node in ast.walk(statement)]
    return not any(
        isinstance(node, ast.Raise | ast.Assign) or (isinstance(node, ast.Name) and node.id == handler.name)
        for node in nodes
    )


def suppressed(tree: ast.AST) -> list[int]:
    """Return the lines of calls whose error is dropped."""
    found = []
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef) and child.name == QUIETLY:
                child.body = []
        if isinstance(node, ast.With):
            items = [item.context_expr for item in node.items]
            if any("suppress" in names(item) and names(item) & BROAD for item in items):
                found += [call.lineno for call in telling(node.body)]
        elif isinstance(node, ast.Try):
            for handler in node.handlers:
                if (handler.type is None or names(handler.type) & BROAD) and drops(handler):
                    found += [call.lineno for call in telling(node.body)]
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_nobody_drops_an_error_that_is_told_once(module: Path) -> None:
    assert suppressed(ast.parse(module.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "with suppress(OSError):\n    os.fsync(fd)",
        "with suppress(OSError):\n    if fd:\n        sync_file_range(fd, 0, 1, 2)",
        "try:\n    os.close(fd)\nexcept OSError:\n    pass",
        "try:\n    sink.sync()\nexcept Exception:\n    return None",
        "with lock, contextlib.suppress(BaseException):\n    syncfs(fd)",
    ],
)
def test_it_would_be_found(code: str) -> None:
    assert suppressed(ast.parse(code)) != []


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    os.close(fd)\nexcept OSError as error:\n    self.lose(error)",
        "try:\n    syncfs(fd)\nexcept OSError:\n    self.doubtful = True",
        "with suppress(OSError):\n    os.unlink(name)",
        "with suppress(BufferError):\n    mapping.close()",
    ],
)
def test_what_takes_note_may_stay(code: str) -> None:
    assert suppressed(ast.parse(code)) == []
