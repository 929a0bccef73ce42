"""`make figures`, small: everything is written, and a second call does nothing again."""

import json

import pytest

from recipes.data.index import load_index
from recipes.research import reproduce as recipe
from tests.recipes.conftest import TINY


@pytest.mark.slow
def test_the_figures_are_reproduced_and_not_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "ITERATIONS", 2)
    out = tmp_path / "figures"
    small = [f"corpus.dir={tmp_path / 'corpora'}", "corpus.videos=8", "corpus.test_videos=4", "gram.probe_every=3"]
    arguments = [f"out={out}", *(f"recipe.{override}" for override in [*TINY, *small])]
    assert recipe.main([*arguments, "--dry-run"]) == 0
    assert "realign: would be trained" in capsys.readouterr().out and not out.exists()
    assert recipe.main(arguments) == 0
    written = {path.name for path in out.iterdir()}
    assert written >= {
        "dynamics.png", "dynamics.pdf", "dynamics.json", "dynamics.md", "probes.png", "gallery.html",
        "gallery.png", "detection.json", "detection.md", "wild.parquet", "wild.kept.jsonl",
    }  # fmt: skip
    judged = json.loads((out / "detection.json").read_text())
    assert set(judged) == {"wild", "wild-untuned"} and judged["wild"]["clips"] > 10
    assert sum(len(row["narrations"]) for row in load_index(out / "wild.kept.jsonl")) < judged["wild"]["clips"]

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert recipe.main(arguments) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    capsys.readouterr()
    assert recipe.main([*arguments, "recipe.train.lr=0.1"]) == 2
    assert "train.lr: 0.002 -> 0.1" in capsys.readouterr().err
