"""What a run evaluates on, when, by which processes, and which checkpoint it keeps."""

import json
import threading

import pytest
import torch

from recipes import keys
from recipes.data import vocabulary
from recipes.data.clips import EvalClips
from recipes.data.held_out import limited
from recipes.data.index import SCHEMA, captions, mapped
from recipes.errors import ConfigError
from recipes.evaluation.during_training import keep_best
from recipes.evaluation.embedding import embed
from recipes.evaluation.retrieval import table
from recipes.pretrain import main, pretrain
from recipes.restore import restore
from recipes.splits import train_and_test
from recipes.training import checkpoint
from recipes.training.processes import Processes


def index_of(videos, narrations=5, group=None):
    return mapped(
        (
            {
                "id": f"v{i}", "video": f"/v{i}.mp4", "split": "", "group": group and group(i),
                "narrations": [{"start": n, "end": n + 1, "text": f"text {n} of {i}"} for n in range(narrations)],
            }
            for i in videos
        ),
        SCHEMA,
    )  # fmt: skip


def chosen(index, limit):
    rows = limited(index, vocabulary.build(captions(index)), 16, limit)
    return [narration["text"] for row in rows for narration in row["narrations"]]


def test_the_limit_takes_one_clip_of_a_video_before_a_second() -> None:
    few, more = chosen(index_of(range(50)), 20), chosen(index_of(range(50)), 120)
    assert len({text.split()[-1] for text in few}) == len(few) == 20
    videos = [text.split()[-1] for text in more]
    assert len(more) == 120 and {videos.count(v) for v in videos} == {2, 3} and set(few) <= set(more)
    assert chosen(index_of(range(50)), None) == chosen(index_of(range(50)), 250)


def test_the_clips_stay_when_the_data_grow() -> None:
    before, after = set(chosen(index_of(range(100)), 40)), set(chosen(index_of(range(110)), 40))
    assert len(before & after) >= 32
    assert after - before <= {t for t in after if int(t.split()[-1]) >= 100}
    assert (
        chosen(index_of(reversed(range(100))), 40) != [] and set(chosen(index_of(reversed(range(100))), 40)) == before
    )


def test_without_words_a_video_is_a_clip() -> None:
    index = index_of(range(30), narrations=0)
    assert len(limited(index, vocabulary.build([]), 16, 8)) == 8


class Half(Processes):
    """One of two processes, as threads."""

    parts: dict = {}  # noqa: RUF012
    barrier = threading.Barrier(2)

    def collect(self, items):
        self.parts[self.rank] = list(items)
        self.barrier.wait(60)
        return [item for rank in range(self.world) for item in self.parts[rank]]


def test_processes_share_the_clips_and_all_get_them(checkpoint) -> None:
    _, config, tokenizer, modules = restore(checkpoint)
    modules.eval()
    clips = EvalClips(train_and_test(config).test, tokenizer, config.clip)
    alone, halves = embed(modules, clips, 4, config.data), {}

    def run(rank: int) -> None:
        halves[rank] = embed(modules, clips, 4, config.data, Half(rank, 2))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for half in halves.values():
        assert half.items == alone.items and torch.equal(half.starts, alone.starts)
        assert all(torch.equal(half.vectors[name], vector) for name, vector in alone.vectors.items())


def test_evaluations_in_between_change_nothing_and_the_best_checkpoint_stays(tiny, monkeypatch) -> None:
    plain = tiny("run.name=plain", "train.ema=0.9", "evaluate.untrained=false")
    assert set(pretrain(plain)) == {"trained"}
    config = tiny(
        "run.name=often", "train.ema=0.9", "evaluate.every=2", "evaluate.limit=5", "train.keep=1",
        "evaluate.best=text->video R@1",
    )  # fmt: skip
    scores = iter([0.1, 0.9, 0.5])
    monkeypatch.setattr(
        "recipes.pretrain.keep_best",
        lambda place, step, figures, name: keep_best(place, step, {"text->video": {"R@1": next(scores)}}, name),
    )
    results = pretrain(config)
    assert list(results) == ["untrained", "step 2", "step 4", "trained"]
    assert results["trained"]["text->video"]["pairs"] == 5
    best = checkpoint.latest(config.folder / "checkpoints" / "best")
    assert json.loads(best.with_name("best.json").read_text()) == {"figure": "text->video R@1", "value": 0.9, "step": 4}
    assert checkpoint.load_facts(best)["step"] == 4 and restore(best)
    assert [p.name for p in (config.folder / "checkpoints").glob("step_*")] == ["step_00000006"]
    ends = [checkpoint.read_tensors(checkpoint.latest(c.folder), "") for c in (plain, config)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_of_ranks_the_least_is_best_and_a_figure_that_is_not_there_is_said(tmp_path, caplog) -> None:
    for step, rank in ((1, 5.0), (2, 3.0), (3, 4.0)):
        (tmp_path / f"step_{step:08d}").mkdir()
        keep_best(tmp_path, step, {"audio->video": {"median_rank": rank}}, "audio->video median_rank")
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2
    keep_best(tmp_path, 3, {}, "text->video R@1")
    assert "no clip that is held out" in caplog.text


@pytest.mark.parametrize("name", ["R@10", "text->video R@2", "video->text R@10", "text->video  R@10"])
def test_no_figure(tiny, name) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.best"):
        tiny(f"evaluate.best={name}")


def test_a_recall_that_chance_gives_is_said_to_be_void() -> None:
    few, many = ({"pairs": n, "R@10": 1.0, "R@10_chance": min(10 / n, 1.0), "median_rank": 1} for n in (10, 200))
    lines = table({"few": {"text->video": few}, "many": {"text->video": many}}).splitlines()
    assert "10 (R@10 void: by chance 100.0)" in lines[2] and "void" not in lines[3]


def test_a_plan_says_what_a_run_will_be_and_writes_nothing(tiny, capsys):
    config = tiny("train.ema=0.9", "evaluate.untrained=false")
    config.folder.parent.mkdir()
    keys.save(config, config.folder.with_suffix(".yaml"))
    assert main(["--config", str(config.folder.with_suffix(".yaml")), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "batch_size: 4",
        "| steps | 6 of 4 clips, 4.0 epochs |",
        "| learning rate | 0 at the first step, 0.002 after 2 steps, ",
        "| harmonizer | threshold of agreement, gamma -1",
        "| moving average | 0.0",
        "| activations of 4 clips | 0.0",
        "| **to step 0** | ",
    ):
        assert line in printed, line
    assert not config.folder.exists()
    saved = ["--config", str(config.folder.with_suffix(".yaml")), "--dry-run"]
    assert main([*saved, "train.init_from=nowhere"]) == 2 and "no checkpoint here" in capsys.readouterr().err
    assert main([*saved, f"run.dir={__file__}"]) == 2 and "no folder" in capsys.readouterr().err
    (config.folder / "mine").mkdir(parents=True)
    assert main(saved) == 2 and "cannot be moved aside" in capsys.readouterr().err
