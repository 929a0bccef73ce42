"""Guards of the house: what is public is documented and shown, imports go one way, functions stay short.

Every guard is a function of source text, so that each can be shown a bad example.
"""

import ast
import dataclasses
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import harmony

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "harmony"
FILES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = ["harmony", *(f"harmony.{name}" for name in harmony.__all__ if isinstance(getattr(harmony, name), ModuleType))]
LONGEST = 60
"""Lines of a function, docstring included."""

ENGINES_USE = {"definition", "engines", "modules", "warn"}
"""What the engines import of harmony: nothing that knows of realignment, of curricula, or of a step."""

TAPE_INTERFACE = {"engine", "explain", "graph"}
"""The files of engines/tape that the rest of harmony imports; the others are its own."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


# ------------------------------------------------------------------------------------------------------ documentation
class Definition(NamedTuple):
    """A name at the top of a module, the statement that defines it, and its docstring."""

    node: ast.stmt
    doc: str


def definitions(source: str) -> dict[str, Definition]:
    """Functions, classes and constants of a module; a constant's docstring is the string below it."""
    body = ast.parse(source).body
    result = {}
    for node, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, Function | ast.ClassDef):
            result[node.name] = Definition(node, ast.get_docstring(node) or "")
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(doc))):
                    result[node.targets[0].id] = Definition(node, doc)
                case _:
                    result[node.targets[0].id] = Definition(node, "")
    return result


def returned(symbols: dict[str, Definition]) -> set[str]:
    """Names in the return annotations of public functions: what users get and do not make."""
    functions = [d.node for d in symbols.values() if isinstance(d.node, Function) and d.node.returns]
    return {n.id for f in functions for n in ast.walk(f.returns) if isinstance(n, ast.Name)}


def documentation_faults(definition: Definition, results: set[str]) -> list[str]:
    """What the docstring of a public symbol lacks.

    A function explains what it takes and gives, and shows itself in use, and so does a class. A record (a named tuple
    or a dataclass) that functions return is shown by them.
    """
    node, doc = definition
    if not doc:
        return ["a docstring"]
    wanted = [] if isinstance(node, ast.Assign) or (_is_record(node) and node.name in results) else ["Examples"]
    if isinstance(node, Function):
        wanted += ["Args"] if node.args.args or node.args.kwonlyargs or node.args.vararg else []
        wanted += ["Returns"] if node.returns and ast.unparse(node.returns) != "None" else []
    faults = [f"{section}:" for section in wanted if not re.search(rf"^{section}:$", doc, re.M)]
    if "Examples" in wanted and not re.search(r"^ *>>> ", doc, re.M):
        faults.append("an example that runs (>>>)")
    if not doc.partition("\n")[0].endswith("."):
        faults.append("a summary: one sentence on the first line, with its full stop")
    return faults


def _is_record(node: ast.stmt) -> bool:
    if not isinstance(node, ast.ClassDef):
        return False
    names = [ast.unparse(base) for base in node.bases] + [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(name == "NamedTuple" or name.startswith("dataclass") for name in names)


def exported(module: str) -> Iterator[tuple[str, Definition]]:
    """The public symbols of a module, {name in harmony: definition}; a package gathers those of its files."""
    source = read(module)
    local = definitions(source)
    listed = ast.literal_eval(local["__all__"].node.value) if "__all__" in local else None
    imports = {
        alias.asname or alias.name: (str(node.module), alias.name)
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    functions = [n for n, d in local.items() if isinstance(d.node, Function | ast.ClassDef) and not n.startswith("_")]
    for name in functions if listed is None else listed:
        if f"{module}.{name}" in PUBLIC:
            continue
        home, original = imports.get(name, (module, name))
        yield f"{module}.{name}", definitions(read(home))[original] if name in imports else local[name]


def read(module: str) -> str:
    """Source of a module of harmony."""
    path = ROOT / "src" / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


SYMBOLS = {name: definition for module in PUBLIC for name, definition in exported(module)}


@pytest.mark.parametrize("name", SYMBOLS)
def test_public_symbol_is_documented(name: str) -> None:
    faults = documentation_faults(SYMBOLS[name], returned(SYMBOLS))
    assert not faults, f"the docstring of {name} lacks {', '.join(faults)}"


def test_public_symbols_are_those_of_the_library() -> None:
    assert {"harmony.gram_vjp", "harmony.Engine", "harmony.realign.pcgrad", "harmony.score.AnyScore"} <= SYMBOLS.keys()
    for name in SYMBOLS:
        module, _, attribute = name.rpartition(".")
        owner = harmony if module == "harmony" else getattr(harmony, module.removeprefix("harmony."))
        assert hasattr(owner, attribute)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def f(): pass", "a docstring"),
        ("class Options:\n    x: int = 1", "a docstring"),
        ("def f():\n    '''Do it.'''", "Examples:"),
        ("def f(x):\n    '''Do it.\n\n    Examples:\n        >>> f(1)\n    '''", "Args:"),
        ("def f() -> int:\n    '''Do it.\n\n    Examples:\n        >>> f()\n    '''", "Returns:"),
        ("def f():\n    '''Do it.\n\n    Examples:\n        f()\n    '''", "an example that runs (>>>)"),
        ("def f():\n    '''Do it\n\n    Examples:\n        >>> f()\n    '''", "a summary: one sentence"),
        ("class C:\n    '''A thing.'''", "Examples:"),
        ("@dataclass(frozen=True)\nclass Options:\n    '''What users make.'''", "Examples:"),
        ("Alias = int", "a docstring"),
    ],
)
def test_a_symbol_without_documentation_is_found(source: str, fault: str) -> None:
    [definition] = definitions(source).values()
    assert any(found.startswith(fault) for found in documentation_faults(definition, set()))


def test_a_record_that_a_function_returns_needs_no_example() -> None:
    source = "class R(NamedTuple):\n    '''A result.'''\n\ndef f() -> R:\n    '''Do it.'''\n"
    symbols = definitions(source)
    assert not documentation_faults(symbols["R"], returned(symbols))


def not_shown(names: list[str], page: str) -> list[str]:
    """Symbols that an API page shows neither by themselves nor with their module."""
    shown = set(re.findall(r"^::: (\S+)$", page, re.M))
    return [name for name in names if name not in shown and name.rpartition(".")[0] not in shown]


def test_every_public_symbol_is_on_the_api_page() -> None:
    assert not not_shown(list(SYMBOLS), (ROOT / "docs" / "api.md").read_text(encoding="utf-8"))


def test_a_symbol_that_is_not_on_the_api_page_is_found() -> None:
    page = "# API\n\n::: harmony.plan\n\n::: harmony.score\n\nharmony.check is only named.\n"
    assert not_shown(["harmony.plan", "harmony.check", "harmony.score.ema"], page) == ["harmony.check"]


def hidden(symbols: list[str], files: list[str]) -> list[str]:
    """Public symbols that bear the name of a file beside them: documentation and imports would find the file."""
    modules = {"harmony." + file.removesuffix(".py").replace("/", ".") for file in files}
    return sorted(set(symbols) & modules)


def test_no_file_bears_the_name_of_a_public_symbol() -> None:
    assert not hidden(list(SYMBOLS), [name_of(file) for file in FILES])


def test_a_file_that_bears_the_name_of_a_public_symbol_is_found() -> None:
    symbols = ["harmony.curriculum.threshold", "harmony.plan"]
    assert hidden(symbols, ["curriculum/threshold.py", "plans.py"]) == ["harmony.curriculum.threshold"]


# ------------------------------------------------------------------------------------------------------------ imports
def imported(source: str) -> set[str]:
    """Modules that a source imports, anywhere in it; ``from a import b`` counts as a, and as a.b."""
    result = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            result |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return result


def import_faults(path: str, source: str) -> list[str]:
    """Imports of a file, ``path`` in src/harmony, that go the wrong way."""
    faults = []
    for module in sorted(imported(source)):
        parts = module.split(".")
        if parts[0] in ("recipes", "tests"):
            faults.append(f"{module}: the library stands alone")
        if parts[0] != "harmony":
            continue
        if path == "definition.py":
            faults.append(f"{module}: the definition rests on torch alone")
        if path.startswith("engines/") and (parts[1:2] == [] or parts[1] not in ENGINES_USE):
            faults.append(f"{module}: engines know of {', '.join(sorted(ENGINES_USE))} and nothing else")
        inside = path.startswith("engines/tape/")
        if not inside and parts[1:3] == ["engines", "tape"] and (len(parts) > 3 and parts[3] not in TAPE_INTERFACE):
            faults.append(f"{module}: of the tape, others import {', '.join(sorted(TAPE_INTERFACE))}")
    return faults


def name_of(file: Path) -> str:
    """Path of a file in src/harmony."""
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_one_way(file: Path) -> None:
    assert not import_faults(name_of(file), file.read_text(encoding="utf-8"))


def test_the_interface_of_the_tape_names_files_that_others_use() -> None:
    outside = [file for file in FILES if not name_of(file).startswith("engines/tape/")]
    used = {module for file in outside for module in imported(file.read_text(encoding="utf-8"))}
    assert {name for name in TAPE_INTERFACE if f"harmony.engines.tape.{name}" in used} == TAPE_INTERFACE


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("step.py", "from recipes.config import Config"),
        ("losses.py", "def f():\n    import recipes.config"),
        ("definition.py", "from harmony.engines.precision import entries"),
        ("definition.py", "import harmony"),
        ("engines/chunked.py", "from harmony.realign import pcgrad"),
        ("engines/chunked.py", "from harmony import realign"),
        ("engines/tape/plan.py", "from harmony.transform import chain"),
        ("engines/fallback.py", "import harmony.step"),
        ("plans.py", "from harmony.engines.tape.layout import Layout"),
        ("engines/forward.py", "from harmony.engines.tape import ghost"),
    ],
)
def test_an_import_in_the_wrong_direction_is_found(path: str, source: str) -> None:
    assert import_faults(path, source)


def test_imports_in_the_right_direction_pass() -> None:
    assert not import_faults("engines/tape/plan.py", "from harmony.engines.tape.layout import Layout\nimport torch")
    assert not import_faults("plans.py", "from harmony.engines.tape.explain import Row")
    assert not import_faults("step.py", "from harmony.transform import chain")


# -------------------------------------------------------------------------------------------------------------- style
def long_functions(source: str) -> list[str]:
    """Functions of more than ``LONGEST`` lines."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
    lengths = {node.name: 1 + node.end_lineno - node.lineno for node in functions}
    return [f"{name}: {length} lines" for name, length in lengths.items() if length > LONGEST]


def unformatted(source: str) -> list[int]:
    """Lines with a comment that keeps the formatter off."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [t.start[0] for t in tokens if t.type == tokenize.COMMENT and re.search(r"fmt: *(skip|off)", t.string)]


def bare_options(source: str) -> list[str]:
    """Messages that tell users to write an option of the machine as a keyword of its own, which no function takes."""
    options = "|".join(field.name for field in dataclasses.fields(harmony.Engine))
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    messages = [text for text in texts if isinstance(text, str) and "\n" not in text]
    return [text for text in messages if re.search(rf"\b({options})=", text) and "Engine(" not in text]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_functions_are_short_and_formatted(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert not long_functions(source)
    assert not unformatted(source)
    assert not bare_options(source)


def test_a_message_with_a_keyword_that_is_gone_is_found() -> None:
    assert bare_options("raise ValueError(f'no {x}. ' 'Pass method=\"loop\".')")
    assert not bare_options("raise ValueError('Pass engine=harmony.Engine(method=\"loop\").')")


def test_a_long_function_is_found() -> None:
    lines = ["    x = 1"] * (LONGEST - 1)
    assert not long_functions("\n".join(["def f():", *lines]))
    assert long_functions("\n".join(["def f():", "    '''Long.'''", *lines])) == ["f: 61 lines"]
    assert long_functions("\n".join(["class C:", "    async def f(self):", *(f"    {x}" for x in lines * 2)]))


def test_a_comment_that_keeps_the_formatter_off_is_found() -> None:
    assert unformatted("x = 1\ny = [1,\n2]  # fmt: skip\n") == [3]
    assert not unformatted('x = "# fmt: skip"\n')
