"""The page on the architecture, and the lists of modules, name what is there."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "asyncdump"
PAGE = (ROOT / "docs/architecture.md").read_text()


def test_the_layers_are_those_that_are_enforced() -> None:
    [contract] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    shown = re.search(r"```text\n(__main__\n.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    assert shown[1].splitlines() == [layer.replace("asyncdump.", "") for layer in contract["layers"]]


def test_each_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", PAGE))
    assert len(named) > 40
    assert [path for path in sorted(named) if not (PACKAGE / path).exists() and not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
)
def test_each_folder_lists_its_modules(folder: Path) -> None:
    listed = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert sorted(module for module in modules if f"`{module}`" not in listed) == []
