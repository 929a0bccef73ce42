"""Weights of a manifest: how far the text and the sound of a clip are to be trusted, from the file to the step."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes.config import ObjectiveConfig
from recipes.data.clips import TrainClips, collate, trusted
from recipes.data.index import load_index
from recipes.data.manifest import fields_of, read_manifest
from recipes.data.vocabulary import build as vocabulary_of
from recipes.model.harmonizer import harmonizer
from recipes.model.objective import Objective
from recipes.model.vatt import SIZES
from recipes.pretrain import pretrain
from recipes.training.metrics import read_metrics
from recipes.training.setup import step_options
from recipes.training.step import Learner, train_step
from tests.recipes.test_model import batch, model

OBJECTIVE = ObjectiveConfig(audio_space=16, text_space=16, norm="layer")


def weigh(corpus: Path, out: Path, sound: float | None, text: float | None) -> Path:
    """A copy of the corpus' manifest with weights on every row and narration."""
    rows = []
    for row in load_index(corpus):
        narrations = [n | {"weight": text} for n in row["narrations"]]
        rows.append(fields_of(row | {"sound_weight": sound, "narrations": narrations}, row["video"]))
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_weights_survive_the_way_through_index_and_manifest(corpus: Path, tmp_path: Path) -> None:
    weighed = weigh(corpus, tmp_path / "weighed.jsonl", 0.25, 0.5)
    index = load_index(weighed)
    again = tmp_path / "again.jsonl"
    again.write_text("".join(json.dumps(fields_of(row, row["video"])) + "\n" for row in index))
    assert load_index(again).to_list() == index.to_list()
    assert set(index["sound_weight"]) == {0.25} and {n["weight"] for row in index for n in row["narrations"]} == {0.5}


def test_the_weight_of_a_text_of_the_whole_clip(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"video")
    fields = {"video": "a.mp4", "text": "a cat", "text_weight": 0}
    (tmp_path / "m.jsonl").write_text(json.dumps(fields))
    [row] = read_manifest(tmp_path / "m.jsonl")
    assert row["narrations"][0]["weight"] == 0
    assert fields_of(row, "a.mp4")["text_weight"] == 0
    (tmp_path / "m.csv").write_text("video,text,text_weight,sound_weight\na.mp4,a cat,,0.5\n")
    [row] = read_manifest(tmp_path / "m.csv")
    assert row["sound_weight"] == 0.5 and row["narrations"][0]["weight"] is None


@pytest.mark.parametrize("value", [-1, "soon", True, float("nan"), float("inf"), [1]])
@pytest.mark.parametrize("name", ["text_weight", "sound_weight"])
def test_a_weight_that_is_none_names_file_and_line(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "m.jsonl").write_text(json.dumps({"video": "a.mp4", "text": "a cat", name: value}))
    with pytest.raises(ValueError, match=f"m.jsonl, line 1: expected '{name}' to be a number, 0 or more"):
        load_index(tmp_path / "m.jsonl")


def test_texts_without_weight_leave_a_clip_that_has_better_ones() -> None:
    narrations = [{"text": text, "weight": weight} for text, weight in (("a", 0.5), ("b", 0.0), ("c", None))]
    kept, weight = trusted(narrations)
    assert [narration["text"] for narration in kept] == ["a", "c"] and weight == pytest.approx(0.75)
    assert trusted(narrations[1:2]) == (narrations[1:2], 0.0)  # it stays a negative for others
    assert trusted([]) == ([], 0.0)


def test_a_batch_carries_the_weights_of_its_clips(corpus: Path, tmp_path: Path, tiny) -> None:
    index = load_index(weigh(corpus, tmp_path / "weighed.jsonl", 0.25, 0.5))
    clips = TrainClips(index, vocabulary_of(["a"]), tiny().clip, 0, tiny().augment)
    assert collate([clips[0, 0], clips[0, 1]])["weights"].tolist() == [[0.25, 0.5]] * 2


@pytest.mark.parametrize("harmonize", ["none", "both"])
@pytest.mark.parametrize("every", [0, 1])
def test_gradients_are_those_of_the_weighed_losses(tiny, corpus: Path, tmp_path: Path, harmonize, every) -> None:
    """Pairs of weight zero have no loss; with weights of one, the step is the plain one, to the bit."""
    losses = {}
    for sound, text in ((1.0, 1.0), (0.0, 1.0), (None, None)):
        manifest = weigh(corpus, tmp_path / f"{sound}-{text}.jsonl", sound, text)
        overrides = [f"data.manifest={manifest}", f"run.name=r{sound}", f"harmonize={harmonize}", f"gram.every={every}"]
        config = tiny(*overrides, "train.steps=2", "model.drop_token=0.0", "model.dropout=0.0")
        pretrain(config)
        rows = read_metrics(config.folder)
        losses[sound, text] = [(row["loss_va"], row["loss_vt"], row["gradient_norm"]) for row in rows]
    assert losses[1.0, 1.0] == losses[None, None]
    assert all(row[0] == 0 for row in losses[0.0, 1.0])


@pytest.mark.parametrize(("harmonize", "every"), [("none", 0), ("none", 1), ("curriculum", 1)])
def test_the_gradient_of_a_weighed_batch_by_hand(tiny, harmonize: str, every: int) -> None:
    config = tiny(f"harmonize={harmonize}", f"gram.every={every}")
    net, inputs = model(dropout=0.0, drop_token=0.0), batch()
    weights = torch.rand(len(inputs["index"]), 2)
    modules = nn.ModuleDict({"model": net, "objective": Objective(OBJECTIVE, SIZES["demo"].output)})
    terms = modules["objective"](net(**inputs))
    weighed = sum((terms[name] * weights[:, k]).mean() for k, name in enumerate(terms))
    expected = torch.autograd.grad(weighed, list(net.backbone.parameters()))
    learner = Learner(modules, torch.optim.SGD(modules.parameters(), lr=0.0), harmonizer(config))
    result = train_step(learner, inputs | {"weights": weights}, step_options(config, 0))
    assert result.taken
    torch.testing.assert_close([p.grad for p in net.backbone.parameters()], list(expected), rtol=1e-3, atol=1e-5)
