"""The long run under faults: short here, its damages and its checks one by one."""

import math
import warnings
from pathlib import Path

import pytest

from recipes.config import load
from recipes.data.decode import BrokenClip, open_clip
from recipes.data.index import load_index
from recipes.research.soak import __main__ as soak
from recipes.research.soak.checks import growth
from recipes.research.soak.damage import DAMAGES, damaged_shards
from recipes.research.soak.launch import TRAINER, WORKER, Faults, Watch
from tests.recipes.conftest import TINY


def test_every_damage_is_a_broken_clip_and_the_rest_is_whole(corpus: Path, tmp_path: Path) -> None:
    broken = damaged_shards(str(corpus), tmp_path / "shards", share=5 / 6, seed=0)
    assert sorted(broken.values()) == sorted(DAMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = load_index(tmp_path / "shards")
    assert index["id"][:] == load_index(corpus)["id"][:]
    for row in index:
        if row["id"] in broken:
            with pytest.raises(BrokenClip), open_clip(row["video"]) as clip:
                clip.window(0.0, 2, 5.0, 4000, 4000, 32)
        else:
            with open_clip(row["video"]) as clip:
                clip.window(0.0, 2, 5.0, 4000, 4000, 32)


def test_growth_is_that_of_the_part_after_the_last_fault() -> None:
    """Of 100 s, the last 75 count; the median of their last third is compared with that of the first."""
    seconds = [float(second) for second in range(201)]
    before = [5.0 * second for second in range(101)]
    watch = Watch(seconds, [], [], [(100.0, "worker")])
    assert growth(watch, before + [100.0] * 100) == 0.0
    rising = [100.0 + max(0.0, second - 125) for second in range(101, 201)]
    assert growth(watch, before + rising) == pytest.approx(50 / 113, abs=0.01)
    assert math.isnan(growth(watch, [0.0] * 201))  # nobody was there


def test_killed_are_first_training_processes_then_workers_in_two_thirds_of_the_time() -> None:
    due = [(15, TRAINER), (45, TRAINER), (75, WORKER), (105, WORKER)]
    assert Faults(minutes=3, processes=2, rounds=2).due() == due
    assert Faults(minutes=3, processes=2, rounds=0).due() == []


def test_the_run_of_a_soak_is_prepared_and_a_used_folder_is_refused(corpus, tmp_path, capsys) -> None:
    recipe = soak.endless()
    recipe.data.manifest = str(corpus)
    config, broken = soak.prepare(recipe, tmp_path / "soak", share=0.5)
    assert load(tmp_path / "soak" / "soak.yaml") == config and len(broken) == 3
    assert config.folder == tmp_path / "soak" / "run" and config.train.log_every == 1
    assert soak.main([f"out={tmp_path / 'soak'}"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_soak_holds(corpus: Path, tmp_path: Path) -> None:
    where = [f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}"]
    settings = [s for s in TINY if s.partition("=")[0] not in ("train.steps", "train.log_every", "data.workers")]
    recipe = [f"recipe.{setting}" for setting in (*settings, *where, "data.workers=1")]
    arguments = ["minutes=1.5", "rounds=1", "share=0.34", f"out={tmp_path / 'soak'}"]
    assert soak.main([*arguments, *recipe]) in (0, 1)  # memory of a minute says little
    text = (tmp_path / "soak" / "soak.md").read_text()
    assert text.count("| yes |") >= 5 and "1 of the kind training process, 1 of the kind worker" in text
    assert "| every step was taken once, none is lost | yes |" in text
    assert (tmp_path / "soak" / "soak.png").stat().st_size > 10_000
