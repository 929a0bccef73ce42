"""Checkpoints are whole or absent; metrics forget nothing and repeat nothing."""

import json
import os
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn

import harmony
from recipes.config import Config, CurriculumConfig, RealignConfig
from recipes.data.skipped import Skipped, SkippedClips
from recipes.files import jsonl
from recipes.model.harmonizer import compares_with_gamma, described, gamma_schedule, gram_options, harmonizer
from recipes.training import checkpoint
from recipes.training.metrics import Metrics, read_metrics
from recipes.training.step import idle_state


def modules():
    return nn.ModuleDict({"model": nn.Linear(3, 2), "objective": nn.BatchNorm1d(2)})


def test_a_checkpoint_brings_everything_back(tmp_path):
    torch.manual_seed(0)
    net = modules()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net["objective"](net["model"](torch.randn(5, 3))).pow(2).sum().backward()
        optimizer.step()
    transform = harmonizer(Config(harmonize="both"))
    _, state = transform.update(torch.eye(2)[None], transform.init())
    tensors = checkpoint.optimizer_tensors(net, optimizer) | checkpoint.tree_tensors("harmonizer", state)
    checkpoint.save(tmp_path, 3, net, tensors | checkpoint.random_tensors(), {"counts": {"skipped": 1}})
    expected = torch.rand(2)

    torch.manual_seed(1)
    fresh = modules()
    other = torch.optim.Adam(fresh.parameters(), lr=0.1)
    folder = checkpoint.latest(tmp_path)
    checkpoint.load_weights(folder, fresh)
    checkpoint.load_optimizer(folder, fresh, other)
    checkpoint.load_random(checkpoint.read_tensors(folder, "random."))
    assert torch.equal(torch.rand(2), expected)
    assert checkpoint.load_facts(folder) == {"step": 3, "counts": {"skipped": 1}}
    assert checkpoint.load_tree("harmonizer", transform.init(), checkpoint.read_tensors(folder, "harmonizer.")) == state
    x = torch.randn(5, 3)
    for n, o in ((net, optimizer), (fresh, other)):
        o.zero_grad()
        n["objective"](n["model"](x)).pow(2).sum().backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_a_crash_while_writing_leaves_the_checkpoint_before(tmp_path):
    net = modules()
    checkpoint.save(tmp_path, 1, net, {}, {})

    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, net, {}, {}, full)
    assert checkpoint.latest(tmp_path).name == "step_00000001"
    assert [p.name for p in tmp_path.glob("step_*")] == ["step_00000001"]
    checkpoint.save(tmp_path, 2, net, {}, {})  # what was left behind is in nobody's way
    assert checkpoint.latest(tmp_path).name == "step_00000002"


def test_a_step_saved_again_is_never_absent_and_a_lost_name_is_found_by_what_is_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, modules(), {}, {})
    replace, present = os.replace, []

    def watched(source, target):
        replace(source, target)
        present.append(any((p / checkpoint.TENSORS).exists() for p in tmp_path.glob("*step_00000001*")))

    monkeypatch.setattr(os, "replace", watched)
    checkpoint.save(tmp_path, 1, modules(), {}, {})
    assert all(present) and checkpoint.latest(tmp_path).name == "step_00000001"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000001"]
    (tmp_path / "latest").write_text("step_00000009")
    assert checkpoint.latest(tmp_path).name == "step_00000001"


def test_a_torn_list_of_skipped_clips_is_mended(tmp_path):
    (tmp_path / "skipped.jsonl").write_text('{"id": "a", "reason": "x"}\n{"id": "b", "rea')
    skipped = SkippedClips(tmp_path)
    assert skipped.record([Skipped("a", "x"), Skipped("c", "y")]) == 2
    assert [row["id"] for row in jsonl.read_rows(tmp_path / "skipped.jsonl")] == ["a", "c"]


def test_old_checkpoints_are_removed(tmp_path):
    for step in range(5):
        checkpoint.save(tmp_path, step, modules(), {}, {})
    assert [p.name for p in sorted(tmp_path.glob("step_*"))] == ["step_00000003", "step_00000004"]


def test_metrics_are_means_over_an_interval_with_the_moments_of_the_cosines(tmp_path):
    log = Metrics(tmp_path, 0)
    log.add({"loss": 1.0, "rare": 5.0}, torch.tensor([0.5, -0.5, 0.9]), torch.tensor([True, True, False]))
    log.add({"loss": 3.0}, None, None)
    row = log.write(2, lr=0.1)
    assert row["loss"] == 2 and row["rare"] == 5 and row["lr"] == 0.1
    assert row["agreement_mean"] == 0 and row["agreement_std"] == pytest.approx(0.5**0.5)
    log.add({"loss": 7.0}, torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    assert "agreement_mean" not in log.write(3)
    log.close()
    assert [r["loss"] for r in read_metrics(tmp_path)] == [2.0, 7.0]


def test_rows_after_the_checkpoint_are_dropped_on_resume_and_torn_lines_ignored(tmp_path):
    rows = "".join(json.dumps({"step": s}) + "\n" for s in (2, 4, 6))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 8, "lo')
    assert [r["step"] for r in read_metrics(tmp_path)] == [2, 4, 6]
    Metrics(tmp_path, 4).close()
    assert [r["step"] for r in read_metrics(tmp_path)] == [2, 4]


@pytest.mark.parametrize(
    ("kind", "middle", "end"), [("linear", -0.15, 0.0), ("cosine", -0.15, 0.0), ("constant", -0.3, -0.3)]
)
def test_gamma_follows_the_configuration(kind, middle, end):
    config = Config()
    config.gamma.schedule = kind
    for steps in (None, 10):
        config.gamma.steps = steps
        gamma = gamma_schedule(config.gamma, steps=10 if steps is None else 999)
        assert [float(gamma(torch.tensor(t))) for t in (0, 5, 10)] == pytest.approx([-0.3, middle, end])


@pytest.mark.parametrize("rule", ["threshold", "soft_threshold", "quantile", "running_quantile", "agreement_weight"])
@pytest.mark.parametrize("score", ["agreement", "batch_agreement", "small_loss", "norm_ratio", "gradient_norm"])
def test_every_rule_on_every_score(rule, score):
    gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, -0.1], [-0.1, 4.0]], [[1.0, 0.5], [0.5, 2.0]]])
    extras = {
        "terms": torch.rand(3, 2),
        "batch_products": torch.rand(3, 2),
        "batch_square": torch.tensor(1.0),
        "ids": torch.arange(3),
    }
    config = Config(curriculum=CurriculumConfig(rule=rule, score=score, history=0.5, renormalize=True))
    transform = harmonizer(config)
    weights, state = transform.update(gram, idle_state(transform, transform.init()), **extras)
    assert weights.shape == (3, 2) and weights.isfinite().all()
    assert f"{rule} of {score} (history 0.5)" in described(config) and "renormalized; pcgrad" in described(config)
    assert compares_with_gamma(config) == (rule.endswith("threshold") and score == "agreement")
    tensors = checkpoint.tree_tensors("harmonizer", state)
    restored = checkpoint.load_tree("harmonizer", transform.init(), tensors)
    assert torch.equal(transform.update(gram, restored, **extras)[0], transform.update(gram, state, **extras)[0])


def test_words_for_the_harmonizer():
    assert described(Config()) == "threshold of agreement, gamma -0.3 to 0, linear; pcgrad"
    assert described(Config(harmonize="none")) == "none"
    quantile = Config(harmonize="curriculum", curriculum=CurriculumConfig(rule="quantile", score="small_loss"))
    assert described(quantile) == "quantile of small_loss, share 0.7"
    assert described(Config(harmonize="realign", realign=RealignConfig("mgda", r"\d+"))) == r"mgda by \d+"


@pytest.mark.parametrize("layers", [None, r"^backbone\.\w+\.\d+"])
@pytest.mark.parametrize("method", get_args(get_type_hints(RealignConfig)["method"]))
def test_every_method_takes_a_step_of_a_model(method, layers):
    config = Config(harmonize="realign", realign=RealignConfig(method, layers))
    transform = harmonizer(config)
    parameters = {f"backbone.layers.{i}.weight": torch.eye(2) + i for i in range(2)} | {"backbone.norm": torch.ones(2)}

    def encode(p, x):
        for name in ("backbone.layers.0.weight", "backbone.layers.1.weight"):
            x = torch.tanh(x @ p[name])
        return x * p["backbone.norm"]

    step = harmony.harmonized_grad(
        encode, lambda f: {"a": f[:, 0], "b": f[:, 1] - f[:, 0]}, transform, **gram_options(config)
    )
    grads, _, info = step(parameters, torch.rand(5, 2), idle_state(transform, transform.init()))
    assert all(g.isfinite().all() for g in grads.values())
    labels = {"backbone.layers.0", "backbone.layers.1", "the rest"} if layers else set()
    assert set(info.weights_of) == labels and info.weights.isfinite().all()


@pytest.mark.parametrize(
    ("mode", "weights"),
    [("none", [[1, 1], [1, 1]]), ("realign", [[1.5, 1.5], [1.1, 1.1]]), ("curriculum", [[0, 0], [1, 1]]),
     ("both", [[0, 0], [1.1, 1.1]])],
)  # fmt: skip
def test_modes(mode, weights):
    gram = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]], [[1.0, -0.1], [-0.1, 1.0]]])
    transform = harmonizer(Config(harmonize=mode))
    torch.testing.assert_close(transform.update(gram, transform.init())[0], torch.tensor(weights, dtype=torch.float32))
