"""What is the shape of the code base, in numbers?"""

from __future__ import annotations

import ast
import io
import os
import tokenize
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

import click
import msgspec

LONG: Final = 300
"""The number of lines above which a module needs a reason to be that long."""


class Module(msgspec.Struct, frozen=True):
    """One module of a package.

    Attributes:
        name: its dotted name, without that of the package.
        folder: the name of the subpackage that contains it, or its own name at the top level.
        lines, comments: the number of lines, and of lines with a comment.
        functions: the number of lines of each function, with decorators and docstring.
        imports: the modules of the package that it imports, at the top or within functions.
    """

    name: str
    folder: str
    lines: int
    comments: int
    functions: tuple[int, ...]
    imports: frozenset[str]


def read(package: Path) -> list[Module]:
    """Return the modules of a package."""
    paths = {_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return [_module(name, path, package.name, frozenset(paths)) for name, path in paths.items()]


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _module(name: str, path: Path, package: str, known: frozenset[str]) -> Module:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    functions = tuple(
        (node.end_lineno or 0) - min([node.lineno, *(each.lineno for each in node.decorator_list)]) + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = sum(token.type == tokenize.COMMENT and "noqa" not in token.string for token in tokens)
    folder = name.split(".", maxsplit=1)[0]
    imports = frozenset(_imports(tree, package, known)) - {name}
    return Module(name, folder, text.count("\n"), comments, functions, imports)


def _imports(tree: ast.AST, package: str, known: frozenset[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            module = (node.module or "").partition(".")[2]
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield inner if inner in known else module


def depth(edges: dict[str, set[str]]) -> int:
    """Return the number of layers, which is the length of the longest chain of imports."""
    floors: dict[str, int] = {}

    def floor(name: str, above: frozenset[str]) -> int:
        if name in above:
            raise click.ClickException(f"{name} imports itself, by way of {', '.join(sorted(above))}")
        if name not in floors:
            floors[name] = 1 + max((floor(other, above | {name}) for other in edges.get(name, ())), default=0)
        return floors[name]

    return max(floor(name, frozenset()) for name in edges)


def figures(modules: list[Module]) -> dict[str, str]:
    """Return the figures of a package, by title."""
    lines = [module.lines for module in modules if module.lines > 1]
    functions = sorted(length for module in modules for length in module.functions)
    folders: dict[str, set[str]] = {module.folder: set() for module in modules}
    pairs = 0
    for module in modules:
        for other in module.imports:
            if other and other.split(".")[0] != module.folder:
                folders[module.folder].add(other.split(".")[0])
                pairs += 1
    # The package itself only lists the public names, and imports them when they are first used.
    folders.pop("", None)
    long = sorted((module.lines, module.name) for module in modules if module.lines > LONG)
    return {
        "modules": f"{len(lines)}, {sum(lines)} lines",
        f"modules over {LONG} lines": str(len(long)) + "".join(f", {name} {count}" for count, name in reversed(long)),
        "median module": f"{median(lines):.0f} lines",
        "functions": f"{len(functions)}, median {median(functions):.0f} lines",
        "nine in ten functions": f"at most {functions[9 * len(functions) // 10]} lines",
        "longest function": f"{functions[-1]} lines",
        "lines with a comment": f"{100 * sum(module.comments for module in modules) / sum(lines):.1f} %",
        "parts (folders and single modules)": str(len(folders)),
        "parts on one another": str(depth(folders)),
        "imports from one part into another": f"{pairs}, between {sum(map(len, folders.values()))} pairs of parts",
    }


@click.command()
@click.argument("packages", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
def house(packages: tuple[Path, ...]) -> None:
    """Print the shape of a package: modules, functions, imports between its parts. Several are printed side by side.

    PACKAGES are folders such as asyncdump/ of other checkouts; this one, if there is none.
    """
    own = Path(__file__).parent.parent / "asyncdump"
    columns = [figures(read(package.resolve())) for package in packages or (own,)]
    for key in columns[0]:
        click.echo(f"{key:36} " + "   ".join(column[key] for column in columns))
    if len(columns) > 1:
        click.echo("\n" + os.linesep.join(f"{number}: {package}" for number, package in enumerate(packages, 1)))
