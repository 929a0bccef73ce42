"""The documentation holds: python blocks run, commands name keys that exist; for docstrings see test_api.py."""

import ast
import doctest
import importlib
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import harmony
from recipes import config
from recipes.cli import Command, Commands

ROOT = Path(__file__).parents[1]
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if page.is_file()]
BLOCK = re.compile(r"^(?P<indent> *)```python\b[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^ *```(?:bash|sh)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
DOCTEST_OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


class Block(NamedTuple):
    """A python block of a page."""

    code: str
    line: int  # of its first line of code, from 1


def blocks(text: str) -> list[Block]:
    """The python blocks of a page, in order."""
    return [
        Block(textwrap.dedent(match["code"]), text.count("\n", 0, match.start("code")) + 1)
        for match in BLOCK.finditer(text)
    ]


def run(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    """Run a block in a namespace: as a doctest where it has a prompt, else as a program."""
    if ">>> " not in block.code:
        # Blank lines before it make every traceback show the line of the page.
        exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), namespace)
        return
    test = doctest.DocTestParser().get_doctest(block.code, namespace, page.name, str(page), block.line - 1)
    runner, report = doctest.DocTestRunner(optionflags=DOCTEST_OPTIONS, verbose=False), []
    runner.run(test, out=report.append, clear_globs=False)
    namespace |= test.globs
    if runner.failures:
        pytest.fail("".join(report), pytrace=False)


def runnable_pages() -> list[Path]:
    return [page for page in PAGES if blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", runnable_pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page_runs(page: Path) -> None:
    with torch.random.fork_rng():
        namespace: dict[str, Any] = {"__name__": "__main__"}
        for block in blocks(page.read_text(encoding="utf-8")):
            run(block, page, namespace)


def test_concepts_quote_the_definition_word_for_word() -> None:
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    formulas = re.search(r"^```text\n(?P<quote>f_b .*?)^```", page[page.index("## Three attributions") :], re.M | re.S)
    assert formulas and textwrap.indent(formulas["quote"], "    ") in str(harmony.definition.__doc__)


def test_the_architecture_names_files_that_exist() -> None:
    docs = ROOT / "docs"
    page = (docs / "architecture.md").read_text(encoding="utf-8")
    picture = re.findall(
        r'class="file"[^>]*>(.*?)<', (docs / "images" / "architecture.svg").read_text(encoding="utf-8")
    )
    codes = re.findall(r"`([^`\n]+)`", page) + picture
    named = {name for code in codes for name in re.findall(r"[\w/]+(?:\.py|/)(?!\w)", code)}
    paths = [path for top in ("src", "tests", "recipes") for path in (ROOT / top).rglob("*")]
    known = {f"/{path.relative_to(ROOT).as_posix()}{'/' * path.is_dir()}" for path in paths}
    assert len(named) > 30
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in known)]


def test_the_pages_that_teach_have_code() -> None:
    pages = {page.relative_to(ROOT).as_posix() for page in runnable_pages()}
    assert pages >= {"docs/index.md", "docs/concepts.md", "docs/tutorials/multitask.md"}


def test_a_failing_block_names_its_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\nx = 1\nassert x == 2\n```\n\n```python\n>>> x + 1\n3\n```\n", encoding="utf-8"
    )
    program, session = blocks(page.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {}
    with pytest.raises(AssertionError) as failure:
        run(program, page, namespace)
    assert (str(failure.traceback[-1].path), failure.traceback[-1].lineno + 1) == (str(page), 5)
    with pytest.raises(pytest.fail.Exception, match=f'File "{re.escape(str(page))}", line 9'):
        run(session, page, namespace)


def shell_lines() -> list[tuple[str, str]]:
    """Page and line of every shell command."""
    return [
        (page.relative_to(ROOT).as_posix(), line.strip())
        for page in PAGES
        for shell in SHELL.findall(page.read_text(encoding="utf-8"))
        for line in shell.replace("\\\n", " ").splitlines()
    ]


MAKE = {"pretrain": "recipes.demo", "figures": "recipes.research.reproduce"}
PLACEHOLDERS = re.compile(r"\b(TASK|MODULE|key=value)\b|\.\.\.")


def commands() -> list[tuple[str, str]]:
    """Page and what follows ``python -m`` of every command of the recipes, also where make runs it."""
    runs = []
    for page, line in shell_lines():
        if match := re.search(r"-m (recipes\.[\w.]+.*)", line):
            runs.append((page, match[1]))
        elif match := re.search(rf"make ({'|'.join(MAKE)})\b(?:.*ARGS=['\"](.*?)['\"])?", line):
            runs.append((page, f"{MAKE[match[1]]} {match[2] or ''}"))
    return runs


def usages() -> list[tuple[str, str]]:
    """Module and what follows ``python -m`` in its docstring, which is the text of ``--help``."""
    runs = []
    for path in sorted((ROOT / "recipes").rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for line in re.findall(r"python -m (recipes\.[\w.]+ .*)", docstring):
            runs.append((path.relative_to(ROOT).as_posix(), line.split("   ")[0]))
    return runs


def command_of(module: str) -> Command | Commands:
    """The command that ``python -m`` runs."""
    entry = importlib.import_module(module)
    entry = importlib.import_module(f"{module}.__main__") if hasattr(entry, "__path__") else entry
    command = entry.main.__self__
    assert isinstance(command, Command | Commands), module
    return command


def test_pages_and_docstrings_have_commands() -> None:
    assert len(commands()) > 50 and len(usages()) > 20


@pytest.mark.parametrize(("page", "line"), [run for run in commands() + usages() if not PLACEHOLDERS.search(run[1])])
def test_commands_name_configurations_and_keys_that_exist(
    page: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    line = re.sub(r"(?<= )\[([^]]*)\]", r"\1", line)  # [key=value] may be left out
    module, *arguments = shlex.split(line, comments=True)
    command_of(module).check(arguments)


def test_configurations_on_the_pages_are_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorials" / "trimodal.md").read_text(encoding="utf-8")
    found = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found
    for number, text in enumerate(found):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, encoding="utf-8")
        config.load(file)
