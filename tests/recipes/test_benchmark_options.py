"""The options of a step, measured: on a tiny step of the recipe's own."""

import csv

import pytest

from recipes.config import load
from recipes.research.benchmark import options
from recipes.research.benchmark.__main__ import main
from recipes.research.benchmark.racing import Rules
from tests.recipes.conftest import DEMO, TINY


def test_variants_are_timed_and_written(tmp_path):
    names = ["harmonized", "harmonized, both"]
    recipe = [f"recipe.{override}" for override in (*TINY, "run.name=tiny")]
    chosen = 'variants=[harmonized,"harmonized, both"]'
    assert main(["options", f"out={tmp_path}", "repeats=3", "measure=time", chosen, *recipe]) == 0
    rows = list(csv.DictReader((tmp_path / "options-tiny.csv").open()))
    assert [row["variant"] for row in rows] == ["plain", *names]
    assert all(int(row["rounds"]) == 3 and float(row["ratio"]) > 0 and not row["skipped"] for row in rows)
    assert rows[0]["ratio"] == "1" and "| harmonized, both |" in (tmp_path / "options-tiny.md").read_text()


def test_what_cannot_be_taken_says_why_and_leaves_the_run_alone(tmp_path):
    results = [options.Result("plain")]
    recipe = load(DEMO, [*TINY, "train.lr=1e30", f"run.dir={tmp_path}"])
    options.measure_time(results, recipe, Rules(repeats=3))
    assert "not finite" in results[0].skipped and results[0].seconds == []
    assert not list(tmp_path.iterdir())
    assert main(["options", "variants=[nothing]"]) == 2


@pytest.mark.parametrize("name", options.VARIANTS)
def test_variants_are_configurations(name):
    assert options.variant(load(DEMO), name) == load(DEMO, options.VARIANTS[name])


@pytest.mark.slow
def test_checkpointing_saves_memory():
    overrides = [*TINY, "train.batch_size=32", "model.drop_token=0", "clip.frames=8", "clip.size=64"]
    results = [options.Result(name) for name in ("plain", "plain, model.checkpoint")]
    options.measure_memory(results, load(DEMO, [*overrides, "model.video_patch=[2,8,8]"]), timeout=300)
    kept, again = (result.memory for result in results)
    assert 0 < again < kept
