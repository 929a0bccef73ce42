"""The long run under faults: short here, its damages and its checks one by one."""

import warnings
from pathlib import Path

import pytest

from recipes.data.decode import BrokenClip, open_clip
from recipes.data.index import load_index
from recipes.research.soak import command as soak
from recipes.research.soak.checks import growth
from recipes.research.soak.damage import DAMAGES, damaged_shards
from recipes.research.soak.launch import Watch
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


@pytest.mark.slow
def test_a_short_soak_holds(corpus: Path, tmp_path: Path) -> None:
    where = [f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}"]
    settings = [s for s in TINY if s.partition("=")[0] not in ("train.steps", "train.log_every", "data.workers")]
    arguments = ["--minutes", "1.5", "--rounds", "1", "--share", "0.34", "--out", str(tmp_path / "soak")]
    assert soak.main([*arguments, *settings, *where, "data.workers=1"]) in (0, 1)  # memory of a minute says little
    text = (tmp_path / "soak" / "soak.md").read_text()
    assert text.count("| yes |") >= 5 and "1 of the kind training process, 1 of the kind worker" in text
    assert "| every step was taken once, none is lost | yes |" in text
    assert (tmp_path / "soak" / "soak.png").stat().st_size > 10_000
