"""The demo, small: two models and a curation from one command, one table, and one page."""

import json
from pathlib import Path

import numpy as np
import pytest

from recipes import demo
from tests.recipes.conftest import TINY


@pytest.fixture
def arguments(tmp_path: Path):
    """Function of overrides that gives the command line of a tiny demo."""

    def make(*overrides: str) -> list[str]:
        tiny = [f"recipe.{line}" for line in TINY]
        corpus = [f"recipe.corpus.dir={tmp_path / 'corpora'}", "recipe.corpus.videos=6", "recipe.corpus.test_videos=3"]
        return [f"out={tmp_path / 'demo'}", "filters=2", "filter_steps=2", *tiny, *corpus, *overrides]

    return make


def test_one_command_trains_compares_and_reports(arguments, tmp_path, capsys) -> None:
    assert demo.main(["--dry-run", *arguments("paper=true")]) == 0
    assert "would be trained" in capsys.readouterr().out and not (tmp_path / "demo").exists()
    assert demo.main(arguments("paper=true")) == 0
    shown = capsys.readouterr().out
    assert all(f"| {name} |" in shown for name in ("untrained", "plain", "curated", "paper"))
    assert "changes R@10" in shown or "R@10 by" in shown
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "R@10 by" in page and 'href="curated/report.html"' in page
    for name in ("plain", "curated", "paper"):
        assert (tmp_path / "demo" / name / "report.html").is_file()
    before = (tmp_path / "demo" / "curated" / "metrics.jsonl").read_bytes()
    assert demo.main(arguments("paper=true")) == 0  # nothing is trained again
    assert (tmp_path / "demo" / "curated" / "metrics.jsonl").read_bytes() == before


def test_a_gain_is_of_the_same_clips(arguments, tmp_path) -> None:
    assert demo.main(arguments()) == 0
    keys = demo.COMMAND.load(None, arguments())
    configs = demo.runs(keys)
    hits = {name: demo.retrieved(config) for name, config in configs.items()}
    assert (hits["plain"][1] == hits["curated"][1]).all()
    results = json.loads((tmp_path / "demo" / "curated" / "retrieval.json").read_text())
    assert hits["curated"][0].mean() == pytest.approx(results["trained"]["text->video"]["R@10"])
    difference, low, high = demo.gain(configs["plain"], configs["curated"])
    assert difference == pytest.approx(float(np.mean(hits["curated"][0]) - np.mean(hits["plain"][0])))
    assert low <= difference <= high


@pytest.mark.parametrize(
    ("bounds", "verb"),
    [((0.01, 0.2), "raises R@10"), ((-0.2, -0.01), "lowers R@10"), ((-0.1, 0.1), "no more than these clips")],
)
def test_the_sentence_claims_what_the_interval_allows(bounds, verb) -> None:
    assert verb in demo.sentence("curated", sum(bounds) / 2, *bounds)


def test_an_older_corpus_without_labels_is_refused(arguments, tmp_path, capsys) -> None:
    assert demo.main(arguments()) == 0
    (corpus,) = (tmp_path / "corpora").iterdir()
    (corpus / "trusted.jsonl").unlink()
    assert demo.main(arguments(f"out={tmp_path / 'again'}")) == 2
    assert "has no trusted.jsonl" in capsys.readouterr().err
