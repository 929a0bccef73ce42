"""The recipes are layers: a module imports its own folder and what lies below it, wherever the import stands."""

import ast
from pathlib import Path

import pytest

import recipes

ROOT = Path(recipes.__file__).parent
FOUNDATION = [("errors",), ("files",), ("merging",), ("keys",), ("config",), ("progress",)]
FOLDERS = [
    ("data",),
    ("model",),
    ("training",),
    ("splits",),
    ("restore",),
    ("evaluation",),
    ("scoring",),
    ("figures",),
    ("curation",),
]
COMMANDS = ("pretrain", "evaluate", "embed", "score", "import_vatt")
LAYERS = [*FOUNDATION, ("cli",), *FOLDERS, COMMANDS, ("curate",), ("demo",), ("research",)]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LONGEST = 60  # lines of a function, its docstring included
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def imported(tree: ast.Module, package: tuple[str, ...]) -> set[str]:
    """First part, below recipes, of every module that is imported; inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(("recipes", *package)[: 1 + len(package) - (node.level - 1)]) if node.level else ""
            module = ".".join(filter(None, [start, node.module]))
            names |= {module} if module != "recipes" else {f"recipes.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("recipes.")}


def test_every_part_has_its_layer():
    parts = {file.parts[0].removesuffix(".py") for file in FILES} - {"__init__"}
    assert parts == set(RANK)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_import_goes_upwards(file):
    part = file.parts[0].removesuffix(".py")
    if part == "__init__":
        return
    upwards = {
        name
        for name in imported(ast.parse((ROOT / file).read_text(encoding="utf-8")), file.parts[:-1])
        if name != part and RANK[name] >= RANK[part]
    }
    assert not upwards, f"recipes/{file} imports {', '.join(sorted(upwards))}, which its layer carries"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_functions_are_short_and_the_formatter_has_its_way(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > LONGEST}
    assert "fmt: " + "skip" not in text and "fmt: " + "off" not in text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import recipes.data.clips", {"data"}),
        ("from recipes import score", {"score"}),
        ("def f():\n from recipes.research.study import train", {"research"}),
        ("from . import clips", {"data"}),
        ("from .. import pretrain", {"pretrain"}),
    ],
)
def test_every_way_to_import_is_seen(text, names):
    assert imported(ast.parse(text), ("data",)) == names
