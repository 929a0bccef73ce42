"""The study: noise with known truth, rules of the literature, tables that can be resumed and reproduced."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.mixture import GaussianMixture

from recipes import keys
from recipes.config import CONFIGS, ClipFormat, CorpusConfig, TrainConfig
from recipes.model.build import INPUTS
from recipes.research.study import __main__ as study
from recipes.research.study import curated, features, media, noise, summary, table
from recipes.research.study.config import StudyConfig
from recipes.research.study.literature import DENSITY, Q, mixture, rince
from recipes.research.study.rules import RULES

WORLD = features.world(96, 48, seed=0)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(noise.KINDS), st.floats(0, 1), st.integers(0, 1000))
def test_noise_is_of_its_kind_and_comes_with_the_truth(kind, share, seed):
    clean, rare = WORLD.train, WORLD.rare
    clips, aligned, _ = noise.corrupt(clean, kind, share, rare, seed)
    if kind == "text_and_sound":
        texts, sounds = (noise.corrupt(clean, k, share, rare, s) for k, s in (("text", seed), ("sound", seed + 1)))
        assert torch.equal(clips.text, texts.clips.text) and torch.equal(clips.audio, sounds.clips.audio)
        assert torch.equal(aligned, texts.aligned & sounds.aligned)
        return
    hurt = ~aligned[:, 0 if kind in ("sound", "silence") else 1]
    assert aligned[:, 1 if kind in ("sound", "silence") else 0].all()
    assert torch.equal(clips.video, clean.video)
    same_sound = (clips.audio == clean.audio).flatten(1).all(1)
    same_text = (clips.text == clean.text).flatten(1).all(1)
    if kind in ("sound", "silence"):
        assert same_text.all() and torch.equal(same_sound, ~hurt)
        assert kind == "sound" or not clips.audio[hurt].any()
    else:
        assert same_sound.all() and same_text[~hurt].all()
    possible = len(clean) if kind != "text_not_of_rare" else int((~rare[clean.concept]).sum())
    if kind != "shifted_text":  # a recording may say the same twice: then there is no wrong text in it
        assert int(hurt.sum()) == round(share * possible)
    owner = {tuple(text.flatten().tolist()): n for n, text in enumerate(clean.text)}
    for n in hurt.nonzero()[:, 0].tolist() if "text" in kind else ():
        donor = owner[tuple(clips.text[n].flatten().tolist())]
        same_category = clean.category[donor] == clean.category[n]
        if kind == "similar_text":
            assert same_category and clean.concept[donor] != clean.concept[n]
        elif kind == "mixed_text":
            assert clean.concept[donor] != clean.concept[n] or clean.recording[donor] == clean.recording[n]
        elif kind == "shifted_text":
            assert clean.recording[donor] == clean.recording[n]
        else:
            assert not same_category
    if kind == "text_not_of_rare":
        assert not hurt[rare[clean.concept]].any()


@pytest.mark.parametrize("kind", noise.KINDS)
def test_trusted_clips_stay_as_they_are(kind):
    noisy = noise.corrupt(WORLD.train, kind, 1.0, WORLD.rare, 0, trusted=24)
    assert noisy.trusted == 24 and noisy.aligned[-24:].all() and not noisy.aligned[:-24].all(1).all()
    assert torch.equal(noisy.clips.text[-24:], WORLD.train.text[-24:])
    assert torch.equal(noisy.clips.audio[-24:], WORLD.train.audio[-24:])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="shifted_text"):
        noise.corrupt(WORLD.train, "fog", 0.5, WORLD.rare, 0)


def test_a_world_of_features_is_a_function_of_its_seed():
    again, other = features.world(96, 48, seed=0), features.world(96, 48, seed=1)
    assert torch.equal(again.train.video, WORLD.train.video) and not torch.equal(other.train.video, WORLD.train.video)
    assert WORLD.rare.sum() == 12 and int(WORLD.train.text.max()) < WORLD.vocabulary
    counts = torch.bincount(WORLD.train.concept, minlength=48)
    assert counts[WORLD.rare].max() <= counts[~WORLD.rare].min()


def test_rince_is_its_formula():
    g = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(5, 3, generator=g).double(), torch.randn(5, 3, generator=g).double()
    fits = torch.eye(5, dtype=torch.bool)
    fits[0, 3] = True
    s = (torch.nn.functional.normalize(queries) @ torch.nn.functional.normalize(keys).T / 0.5).numpy()
    expected = np.zeros(5)
    for logits, negative in ((s, ~fits.numpy()), (s.T, ~fits.numpy().T)):  # keys of a query, queries of a key
        for b in range(5):
            total = math.exp(s[b, b]) + np.exp(logits[b][negative[b]]).sum()
            expected[b] += (-math.exp(Q * s[b, b]) / Q + (DENSITY * total) ** Q / Q) / 2
    np.testing.assert_allclose(rince(queries, keys, 0.5, fits).numpy(), expected, rtol=1e-12)


def test_the_mixture_weighs_by_the_component_with_the_smaller_losses():
    rng = np.random.default_rng(0)
    clean = np.arange(60) < 30
    losses = np.where(clean, rng.normal(0.5, 0.1, 60), rng.normal(3.0, 0.3, 60))
    terms = torch.tensor(np.stack([losses, losses[::-1]], 1)).float()
    rule, gram = mixture(60, every=1, warmup=1), torch.eye(2).expand(60, 2, 2)
    weights, state = rule.update(gram, rule.init(), terms=terms, ids=torch.arange(60))
    assert (weights == 1).all()  # warming up
    weights, _ = rule.update(gram, state, terms=terms, ids=torch.arange(60))
    fitted = GaussianMixture(2, random_state=0).fit(losses[:, None])
    expected = fitted.predict(losses[:, None]) == fitted.means_.argmin()
    assert np.array_equal(weights[:, 0].numpy() > 0.5, expected) and np.array_equal(expected, clean)
    assert np.array_equal(weights[:, 1].numpy() > 0.5, clean[::-1])


def test_a_clip_without_a_loss_yet_is_not_weighed_down():
    rule, gram = mixture(4, every=1, warmup=1), torch.eye(2).expand(3, 2, 2)
    seen = torch.tensor([[0.1, 0.1], [0.2, 0.2], [5.0, 5.0]])
    _, state = rule.update(gram, rule.init(), terms=seen, ids=torch.arange(3))
    weights, _ = rule.update(gram[:1], state, terms=seen[:1], ids=torch.tensor([3]))
    assert weights.tolist() == [[1, 1]]


def test_the_oracle_weighs_with_the_truth():
    aligned = torch.tensor([[True, False], [True, True], [False, True]])
    rule = RULES["oracle"].transform(TrainConfig(), noise.Noisy(WORLD.train, aligned))
    weights, _ = rule.update(torch.eye(2).expand(2, 2, 2), rule.init(), ids=torch.tensor([2, 0]))
    assert weights.tolist() == [[0, 1], [1, 0]]


STUDY = {
    "seeds": [0, 1],
    "worlds": {
        "features": {
            "clips": 64,
            "test_clips": 40,
            "clip": {"inputs": "features", "frames": 1, "fps": 1, "narrations": 1, "words": 5},
            "model": {"word_width": 8, "drop_token": 0.0, "dropout": 0.0},
            "objective": {"audio_space": 8, "text_space": 8, "temperature": 0.1, "symmetric": True},
            "train": {"steps": 4, "batch_size": 16, "warmup": 1},
            "evaluate_every": 2,
        }
    },
    "cells": {
        "center": {"world": "features", "rules": ["baseline", "oracle", "cross_check"]},
        "clean": {"world": "features", "share": 0.0, "rules": ["baseline", "oracle", "cross_check"]},
    },
}


def written(path: Path, study_: dict) -> Path:
    path.write_text(yaml.safe_dump(study_), encoding="utf-8")
    return path


def test_every_rule_takes_steps(tmp_path, monkeypatch):
    """The whole way through the command line."""
    monkeypatch.setattr(curated, "FILTERS", 2)
    monkeypatch.setattr(curated, "STEPS", 2)
    monkeypatch.setattr(curated.CurateKeys, "draws", 10)
    one = STUDY | {"seeds": [0], "cells": {"center": {"world": "features", "trusted": 16, "rules": list(RULES)}}}
    path = written(tmp_path / "study.yaml", one)
    assert study.main(["--config", str(path), f"out={tmp_path}"]) == 0
    lines = {line["rule"]: line for line in table.read_lines(tmp_path / table.RUNS)}
    assert lines.keys() == RULES.keys()
    assert all(0 <= float(line["text R@10"]) <= 1 and float(line["kept vt"]) > 0 for line in lines.values())
    assert float(lines["oracle"]["kept aligned vt"]) == 1 and float(lines["baseline"]["kept vt"]) == 1
    assert all((line["cosine"] != "") == (RULES[rule].weigh == "gradients") for rule, line in lines.items())
    assert (tmp_path / "rules.png").stat().st_size > 10_000


def test_a_study_goes_on_where_it_stopped_and_its_rows_can_be_run_again(tmp_path, capsys):
    command = ["--config", str(written(tmp_path / "study.yaml", STUDY)), f"out={tmp_path}"]
    assert study.main([*command, "--dry-run"]) == 0 and "12 runs" in capsys.readouterr().out
    assert study.main([*command, "part=1/2"]) == 0
    half = table.read_lines(tmp_path / table.RUNS)
    assert len(half) == 6
    assert study.main(command) == 0
    lines = table.read_lines(tmp_path / table.RUNS)
    assert lines[:6] == half and len({table.Row.of_line(line) for line in lines}) == len(lines) == 12
    assert len(table.read_lines(tmp_path / table.CURVES)) == 24
    tables = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "## clean" in tables and "| cross_check |" in tables and "nan" not in tables

    assert study.main([*command, "row=center/cross_check/1"]) == 0
    assert "the same numbers" in capsys.readouterr().out
    for line in lines:
        line["text R@10"] = "0.123"
    with (tmp_path / table.RUNS).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    assert study.main([*command, "row=center/cross_check/1"]) == 1
    assert "text R@10: 0.123 in the table" in capsys.readouterr().out


def test_lines_go_into_the_columns_of_the_table(tmp_path):
    path = tmp_path / "t.csv"
    table.append_lines(path, [{"a": 1, "b": 2.0}])
    table.append_lines(path, [{"b": 1 / 3, "a": math.nan}])
    assert path.read_text() == "a,b\n1,2\n,0.333333\n"
    with pytest.raises(ValueError, match="other columns"):
        table.append_lines(path, [{"a": 1}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "fog"}, "'cells.center.kind': Invalid value 'fog', expected one of ['text', "),
        ({"rules": ["magic"]}, "'magic' is not one of"),
        ({"world": "mars"}, "cells.center.world='mars'"),
        ({"share": 1.5}, "cells.center.share=1.5 must be"),
        ({"colour": 1}, "cells.center.colour"),
    ],
)
def test_a_wrong_cell_fails_before_any_work(tmp_path, capsys, change, message):
    center = STUDY["cells"]["center"] | change
    path = written(tmp_path / "study.yaml", STUDY | {"cells": {"center": center}})
    assert study.main(["--config", str(path), f"out={tmp_path}"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / table.RUNS).exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("row=center/baseline", "expected CELL/RULE/SEED"),
        ("row=moon/baseline/0", "row=moon/baseline/0: the study has no such run; its cells are center, clean"),
        ("row=clean/mgda/0", "row=clean/mgda/0: the study has no such run"),
        ("worlds.features.train.ema=0.9", "worlds.features.train.ema=0.9 has no effect"),
        ("worlds.features.source=media", "worlds.features.clip.inputs=features: source=media needs raw"),
        *(
            (f"part={part}", "expected i/n with i from 1 to n")
            for part in ("3/2", "0/2", "1", "1/0", "-1/2", "a/b", "1/2/3")
        ),
        ("part=", "it has no value"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(tmp_path, capsys, argument, message):
    path = written(tmp_path / "study.yaml", STUDY)
    assert study.main(["--config", str(path), f"out={tmp_path}", argument]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / table.RUNS).exists()


def test_a_loss_that_is_not_finite_ends_the_study(tmp_path, capsys):
    path = written(tmp_path / "study.yaml", STUDY)
    assert study.main(["--config", str(path), f"out={tmp_path}", "worlds.features.train.lr=1e30"]) == 2
    assert "not finite; lower train.lr" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(Path("recipes/configs").glob("study*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_the_repository_can_be_run(path):
    loaded = keys.load(StudyConfig, path)
    assert len(loaded.seeds) >= 5 and {"baseline", "oracle"} <= set(loaded.cells["center"].rules)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8))
def test_differences_are_those_of_a_paired_t_test(pairs):
    rule, baseline = ({seed: pair[i] for seed, pair in enumerate(pairs)} for i in (0, 1))
    result = summary.compare(rule, baseline, {})
    differences = [a - b for a, b in pairs]
    if np.ptp(differences) > 1e-6:
        expected = stats.ttest_rel(*zip(*pairs, strict=True)).confidence_interval(0.95)
        assert (result.low, result.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert result.difference == pytest.approx(np.mean(differences)) and math.isnan(result.recovered)


def test_at_equal_compute_a_dearer_rule_is_stopped_earlier():
    def lines(rule: str, seconds: float, last: float) -> list[dict[str, str]]:
        return [{"cell": "c", "rule": rule, "seed": s, "cpu_seconds": str(seconds), "x": str(last)} for s in "01"]

    runs = lines("baseline", 10, 0.2) + lines("oracle", 10, 0.6) + lines("dear", 20, 0.8)
    curves = [
        {"cell": "c", "rule": "dear", "seed": s, "step": str(k), "x": str(x)}
        for s in "01"
        for k, x in ((50, 0.3), (100, 0.8))
    ]
    results = summary.Results(runs, curves)
    stopped = results.at_equal_compute("c", "dear", "x")
    assert results.cost("c", "dear") == 2
    assert stopped.mean == pytest.approx(0.3) and stopped.difference == pytest.approx(0.1)


def test_a_world_of_media_is_real_clips_that_belong_together(tmp_path):
    corpus = CorpusConfig(style="wild", dir=str(tmp_path), videos=6, test_videos=2)
    fmt = ClipFormat(frames=4, fps=5, size=32, sample_rate=8000, audio_seconds=0.64, narrations=1, words=10)
    world = media.world(corpus, fmt, clips=5, test_clips=3)
    batch = world.train.batch(torch.arange(2))
    assert batch.keys() == set(INPUTS) and len(world.train) <= 5 and len(world.test) == 3
    assert batch["video"].shape == (2, 4, 32, 32, 3) and batch["audio"].abs().max() > 0
    assert world.train.concept.max() < len(world.rare) and world.train.text.any(-1).all()


@pytest.mark.slow
def test_filters_find_wrong_texts():
    """60% of the texts are wrong; 96 trusted clips show which, in a small world."""
    config = keys.load(StudyConfig, CONFIGS / "study_trusted.yaml").world("center")
    config = replace(config, clips=256, train=replace(config.train, steps=60))
    world = study.make_world(config, seed=0)
    noisy = noise.corrupt(world.train, "text", 0.6, world.rare, 0, trusted=96)
    weights = curated.weigh(config, world, noisy, seed=0).clips.weights
    right, wrong = (weights[:160, 1][noisy.aligned[:160, 1] == truth] for truth in (True, False))
    assert right.mean() > 2 * wrong.mean() and (weights[160:] == 1).all()


def test_rules_of_trusted_clips_need_some(tmp_path, capsys):
    one = STUDY | {"seeds": [0], "cells": {"center": {"world": "features", "rules": ["curated"]}}}
    assert study.main(["--config", str(written(tmp_path / "study.yaml", one))]) == 2
    assert "'curated' needs trusted clips" in capsys.readouterr().err
