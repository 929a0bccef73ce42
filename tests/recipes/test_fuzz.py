"""The fuzz command: a few cases of each kind, and that it sees what it is made to see."""

from pathlib import Path

import pytest

from recipes.research.fuzz import kinds
from recipes.research.fuzz.__main__ import ALLOWED, fuzz, main
from recipes.research.fuzz.case import Case, run
from recipes.research.fuzz.kinds import KINDS, Kind


@pytest.mark.parametrize("kind", ["media", "manifests", "shards", "configurations", "tables"])
def test_a_few_cases_end_well(kind: str, tmp_path: Path) -> None:
    KINDS[kind].make(tmp_path / kind)
    verdicts = [run(Case(kind, number, 1), tmp_path) for number in range(12)]
    assert {verdict.partition(":")[0] for verdict in verdicts} <= set(ALLOWED), verdicts
    assert run(Case(kind, 3, 1), tmp_path).partition(":")[0] == verdicts[3].partition(":")[0]


def mistaken(folder: Path, scratch: Path, rng: object) -> None:
    raise KeyError("of the program")


def foreign(folder: Path, scratch: Path, rng: object) -> None:
    int("no number")  # an error of another's, in words of its own


@pytest.mark.parametrize(("use", "verdict"), [(mistaken, "failed: KeyError"), (foreign, "failed: ValueError")])
def test_mistakes_are_failures(use, verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kinds.KINDS, "tables", Kind(kinds.nothing, use))
    assert run(Case("tables", 0, 0), tmp_path).startswith(verdict)
    with pytest.raises((KeyError, ValueError)):
        run(Case("tables", 0, 0), tmp_path, raises=True)


def test_the_command_counts_and_repeats(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["what=[manifests]", "cases=20", "workers=1"]) == 0
    assert "manifests: 20 cases; " in capsys.readouterr().out
    assert main(["what=[manifests]", "only=7"]) == 0
    assert capsys.readouterr().out.startswith("manifests 7: ")
    assert main(["what=[nothing]"]) == 2


def test_what_only_a_config_error_may_refuse_is_held_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(kind, path, overrides):
        raise ValueError("in the loader's own words, and still no ConfigError")

    monkeypatch.setattr(kinds.keys, "load", careless)
    assert run(Case("configurations", 0, 0), tmp_path).startswith("failed: AssertionError: no ConfigError")


def test_nothing_is_begun_after_the_time(tmp_path: Path) -> None:
    assert not fuzz("manifests", [Case("manifests", 0, 0)], 1, tmp_path, until=0.0)
