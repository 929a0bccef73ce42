"""The one command line: what it takes, how it refuses, what it says of itself."""

import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import pytest

from recipes import cli
from recipes.errors import Failure, Interrupted
from recipes.figures.command import main as figures
from recipes.keys import key, section


@dataclass
class Inner:
    share: float = key(0.5, "of the clips", least=0, most=1)


@dataclass
class Keys:
    checkpoint: str = key(meaning="a run's folder")
    mode: Literal["fast", "exact"] = key("fast", "how")
    sizes: list[int] = key([1, 2], "of batches", least=1)
    limit: int | None = key(None, "the most clips", more_than=0)
    inner: Inner = section(Inner)


def command(run=lambda keys, again: None, **options) -> cli.Command:
    return cli.Command("recipes.toy", "Play.\n\nMore.", Keys, run, flags={"again": "once more"}, **options)


def test_keys_come_from_a_file_and_then_from_the_command_line(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("{checkpoint: a, mode: exact, inner: {share: 0.1}}")
    calls = []
    main = command(lambda keys, again: calls.append((keys, again))).main
    assert main(["checkpoint=b", "--config", str(path), "--again", "sizes=[4,5]"]) == 0
    assert calls == [(Keys("b", "exact", [4, 5], None, Inner(0.1)), True)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint= is missing: a run's folder"),
        (["checkpoint=a", "mood=fast"], "key 'mood'"),
        (["checkpoint=a", "mode=slow"], "mode.*'fast', 'exact'"),
        (["checkpoint=a", "inner.share=2"], "inner.share=2.0 must be at most 1"),
        (["checkpoint=a", "sizes=[3,0]"], "sizes=0 must be at least 1"),
        (["checkpoint=a", "limit=0"], "limit=0 must be more than 0"),
        (["checkpoint=a", "limit=inf"], "limit"),
        (["checkpoint=a", "inner.share=nan"], "must be a finite number"),
        (["checkpoint"], "expected key=value"),
        (["checkpoint="], "null stands for none"),
        (["checkpoint=${oc.env:HOME}"], "calls a resolver"),
        (["checkpoint=${nothing}"], "nothing"),
        (["checkpoint=a", "mode=[a"], r"command line: 'mode=\[a': "),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration file"),
    ],
)
def test_wrong_command_lines_are_refused_before_anything_runs(capsys, arguments, message):
    assert command(lambda keys, again: pytest.fail("it ran")).main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_all_problems_are_listed_at_once(capsys):
    assert command().main(["checkpoint=a", "mode=slow", "limit=many", "nothing=1"]) == 2
    assert capsys.readouterr().err.count("\n  - ") == 3
    assert command().main(["checkpoint=a", "limit=-1", "inner.share=7"]) == 2
    assert capsys.readouterr().err.count("\n  - ") == 2


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), 2), (OSError("no"), 2), (Failure("no"), 2), (Interrupted(15), 143)]
)
def test_errors_become_a_line_and_a_status(capsys, error, status):
    def run(keys, again):
        raise error

    assert command(run).main(["checkpoint=a"]) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_a_mistake_of_the_program_keeps_its_traceback():
    def run(keys, again):
        raise KeyError("oh")

    with pytest.raises(KeyError):
        command(run).main(["checkpoint=a"])


def test_help_names_every_key_with_type_default_bounds_and_meaning(capsys):
    assert command().main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: python -m recipes.toy [--config FILE] [--dry-run] [--again] key=value ..." in text
    for line in (
        "checkpoint: text",
        "mode: fast | exact = fast",
        "sizes: list of int = [1, 2]",
        "inner.share: float = 0.5",
    ):
        assert f"\n  {line}\n" in text
    assert "of the clips; at least 0, at most 1" in text and "limit: int or null = null" in text


def test_dry_run_prints_keys_and_plan_and_does_nothing(capsys):
    toy = command(lambda keys, again: pytest.fail("it ran"), plan=lambda keys: f"{len(keys.sizes)} batches")
    assert toy.main(["--dry-run", "checkpoint=a"]) == 0
    assert "checkpoint: a\nmode: fast\n" in (text := capsys.readouterr().out) and "2 batches" in text


def test_a_reader_that_has_enough_ends_the_command_quietly():
    program = "from recipes import cli; cli.exit(lambda _: print('help ' * 100_000))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == b"" and process.wait() == 141


def test_lists_are_not_empty_and_paths_in_them_plain_text(capsys):
    assert figures(["detection", "scores=[]", "truth=t", "out=o"]) == 2
    assert "scores=[] names no table" in capsys.readouterr().err
    assert figures(["dynamics", "runs=[]"]) == 2 and "runs=[] names no run" in capsys.readouterr().err
    assert figures(["detection", "--dry-run", "scores=[a,b]", "truth=t", "out=o"]) == 2
    assert "scores:\n- a\n- b\n" in capsys.readouterr().out


def test_the_exit_status_is_what_the_work_says():
    assert command(lambda keys, again: 1).main(["checkpoint=a"]) == 1


def test_several_commands_under_one_name(capsys):
    both = cli.Commands("recipes.toys", "Toys.", {"one": command(lambda keys, again: 3), "two": command()})
    assert both.main(["one", "checkpoint=a"]) == 3 and both.main(["two", "checkpoint=a"]) == 0
    assert both.main(["three"]) == 2 and "expected one of one, two" in capsys.readouterr().err
    assert both.main([]) == 0 and "  one  Play." in capsys.readouterr().out
