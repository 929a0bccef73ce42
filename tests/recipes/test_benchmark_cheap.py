"""The suite cheap: its tasks can be learnt, and the whole agrees with itself."""

import csv
from dataclasses import replace

import pytest
import torch

from recipes.research.benchmark import cheap
from recipes.research.benchmark.__main__ import main
from recipes.research.benchmark.cheap_tasks import ATTRIBUTES, SIGNALS, VALUES, WRONG, label, learnable, words
from recipes.research.benchmark.workloads import build, default
from recipes.research.benchmark.workloads.pictures import CLASSES

SIZE = ["batch=6", "tokens=16", "width=16", "layers=2", "samples=10", "repeats=2", "lr=0.01"]
OF_TRANSFORMERS = ("bert", "vit")


def workload_of(name, batch=6):
    if name in OF_TRANSFORMERS:
        pytest.importorskip("transformers")
    size = {} if name == "demo" else {"tokens": 16, "width": 16, "layers": 2}
    return build(replace(default(name), batch=batch, **size))


@pytest.mark.parametrize("name", SIGNALS)
def test_every_workload_is_trained_compared_and_timed(name, tmp_path, capsys):
    workload_of(name)
    assert main(["cheap", f"workloads=[{name}]", "points=[0,2]", f"out={tmp_path}", *SIZE]) == 0
    with open(tmp_path / "cheap.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["over"]) for row in rows] == [(s, over) for s in "02" for over in cheap.READINGS]
    assert all(float(row["ratio"]) > 0 and row["skipped"] == "" and row["samples"] == "12" for row in rows)
    assert all(float(row["rank"]) == pytest.approx(1) == float(row["sign"]) for row in rows if row["over"] == "whole")
    assert all(-1 <= float(row["rank"]) < 1 for row in rows if row["over"] == "features")
    assert len({row["losses"] for row in rows}) == 2  # it has moved
    assert (tmp_path / "cheap.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize("name", SIGNALS)
def test_batches_look_like_the_workloads_own(name):
    workload = workload_of(name)
    batch, own = learnable(workload)(5), workload.draw(5)
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {k: (x.shape, x.dtype) for k, x in own.items()}
    assert "label" not in batch or batch["label"].max() < CLASSES


def test_video_shows_attributes_that_the_text_says_but_for_the_wrong_ones():
    """Least squares on the pictures of some clips give the words of others, but for about the share of wrong texts."""
    torch.manual_seed(0)
    batch = learnable(workload_of("demo"))(600)
    said = batch["text"][:, 0, :ATTRIBUTES] - words(torch.zeros(1, ATTRIBUTES, dtype=torch.long))
    assert said.min() >= 0 and said.max() < VALUES
    video = batch["video"].float().mean(1)[:, ::4, ::4].flatten(1)
    video = (video - video.mean(0)) / 74
    fits, others = slice(0, 500), slice(500, 600)
    targets = torch.nn.functional.one_hot(said, VALUES).float().flatten(1)
    weights = torch.linalg.solve(video[fits].T @ video[fits] + 100 * torch.eye(768), video[fits].T @ targets[fits])
    guessed = (video[others] @ weights).view(-1, ATTRIBUTES, VALUES).argmax(2)
    right = (guessed == said[others]).float().mean(1)
    wrong = float((right < 0.6).float().mean())
    assert WRONG / 2 < wrong < 2 * WRONG and right.median() > 0.9


def test_labels_are_of_two_attributes():
    every = torch.cartesian_prod(*[torch.arange(VALUES)] * 2)
    labels = label(torch.nn.functional.pad(every, (0, ATTRIBUTES - 2)))
    assert sorted(set(labels.tolist())) == list(range(8)) and CLASSES >= 8


@pytest.mark.parametrize(
    ("argument", "message"),
    [("workloads=[gpt]", "no 'gpt' among reference, demo, bert, vit"), ("points=[]", "must name a step")],
)
def test_a_wrong_key_is_refused_before_any_work(argument, message, tmp_path, capsys):
    assert main(["cheap", argument, f"out={tmp_path}"]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
