"""Curation: folds, scores, calibration, and the whole command on real mp4 files."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes import curate
from recipes.curation import exchange
from recipes.curation.calibration import Calibration, HeldOut, Kind, calibrate
from recipes.curation.filters import halves
from recipes.curation.folds import fold_of
from recipes.curation.judging import Bank, Embeddings
from recipes.curation.pairs import pair_scores
from recipes.curation.verdict import Verdict, as_markdown
from recipes.curation.weighed import Labels, Weights
from recipes.data import storage
from recipes.data.index import index_of, load_index
from recipes.pretrain import pretrain
from tests.recipes.conftest import DEMO, TINY

groups = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=40)


@given(groups, st.integers(2, 8), st.integers(0, 5))
def test_a_recording_is_in_one_fold_and_no_fold_is_empty(names: list[str], folds: int, seed: int) -> None:
    if len(set(names)) < folds:
        with pytest.raises(ValueError, match="cannot be dealt"):
            fold_of(names, folds, seed)
        return
    numbers = fold_of(names, folds, seed)
    assert all(len({n for n, other in zip(numbers, names, strict=True) if other == name}) == 1 for name in names)
    assert set(numbers) == set(range(folds))


@given(groups, st.integers(2, 8), st.integers(0, 5))
def test_half_of_the_filters_leave_out_a_recording(names: list[str], filters: int, seed: int) -> None:
    left_out = halves(names, filters, seed)
    assert left_out.shape == (filters, len(names)) and (left_out.sum(0) == filters // 2).all()
    for name in set(names):
        of_name = left_out[:, [n == name for n in names]]
        assert (of_name == of_name[:, :1]).all()


@given(st.integers(0, 1000), st.floats(0.05, 2.0))
def test_the_score_of_a_pair_is_the_logarithm_of_its_lift(seed: int, temperature: float) -> None:
    """By sums over the bank, one after the other, in float64; and a batch changes nothing."""
    g = torch.Generator().manual_seed(seed)
    queries, keys, bank_queries, bank_keys = (torch.randn(n, 5, generator=g).double() for n in (4, 4, 7, 7))
    scores = pair_scores(queries, keys, bank_queries, bank_keys, temperature)

    def similar(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(np.exp(float(x @ y / x.norm() / y.norm()) / temperature))

    for i, score in enumerate(scores.tolist()):
        by_key = np.mean([similar(queries[i], key) for key in bank_keys])
        by_query = np.mean([similar(query, keys[i]) for query in bank_queries])
        expected = np.log(similar(queries[i], keys[i])) - np.log(by_key) / 2 - np.log(by_query) / 2
        assert score == pytest.approx(expected, rel=1e-9, abs=1e-9)
    alone = pair_scores(queries[2:3], keys[2:3], bank_queries, bank_keys, temperature)
    torch.testing.assert_close(alone, scores[2:3])


@given(groups, st.integers(0, 1000))
def test_exchanged_pairs_are_wrong(names: list[str], seed: int) -> None:
    rng, group = np.random.default_rng(seed), np.array(names)
    texts = rng.integers(0, 4, len(names))
    clips, partners = exchange.at_random(group, texts, rng)
    assert (group[clips] != group[partners]).all() and (texts[clips] != texts[partners]).all()
    clips, partners = exchange.among_similar(rng.random((len(names),) * 2), group, texts, rng)
    assert (group[clips] != group[partners]).all() and (texts[clips] != texts[partners]).all()
    clips, partners = exchange.in_recording(group, texts, rng)
    assert (group[clips] == group[partners]).all() and (texts[clips] != texts[partners]).all()


def test_similar_partners_are_the_most_similar() -> None:
    names, texts = np.arange(30), np.arange(30)
    similarity = -np.abs(np.subtract.outer(names, names)).astype(float)
    clips, partners = exchange.among_similar(similarity, names, texts, np.random.default_rng(0))
    assert (np.abs(clips - partners) <= 3).all()


@given(st.floats(-3, 3), st.floats(0.1, 4), st.floats(0.1, 6), st.floats(0.1, 4), st.floats(0.01, 0.99))
def test_the_better_the_score_the_more_probable(mean, deviation, gap, wrong_deviation, share) -> None:
    fitted = Calibration(Kind(mean, deviation), Kind(mean - gap, wrong_deviation), share)
    posterior = fitted.posterior(np.linspace(-40, 40, 500))
    assert (np.diff(posterior) >= 0).all() and (posterior >= 0).all() and (posterior <= 1).all()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.7, 1.0])
@pytest.mark.parametrize("filters", [1, 8])
def test_the_share_of_right_pairs(share: float, filters: int) -> None:
    """Held-out scores are of one filter, those of the data a mean of several; filters differ more about wrong pairs."""
    rng = np.random.default_rng(0)
    right = rng.random(4000) < share
    own = np.where(right, rng.normal(2, 0.8, 4000), rng.normal(-1.5, 1.0, 4000))
    each = own + np.where(right, 0.5, 1.5) * rng.standard_normal((filters, 4000))
    spread = each.var(0, ddof=1) if filters > 1 else np.zeros(4000)
    held = [rng.normal(mean, np.hypot(a, b), 400) for mean, a, b in ((2, 0.8, 0.5), (-1.5, 1.0, 1.5))]
    held_out = HeldOut(held[0], np.arange(400), held[1], np.arange(400))
    fitted = calibrate(each.mean(0), spread, filters, held_out)
    assert fitted.share == pytest.approx(share, abs=0.06)
    weights = fitted.weights(np.append(each.mean(0), np.nan))
    assert weights[-1] == 1  # there is no pair
    if 0 < share < 1:  # a weight is the probability that the pair is right
        weights = weights[:-1]
        assert weights[right].sum() / weights.sum() == pytest.approx((weights**2).sum() / weights.sum(), abs=0.06)


def test_only_filters_that_have_not_learnt_from_a_clip_judge_it() -> None:
    g = torch.Generator().manual_seed(0)
    spaces = [{"va": tuple(torch.randn(6, 4, generator=g) for _ in range(2))} for _ in range(3)]
    valid = {"va": np.array([True] * 5 + [False])}
    embeddings = Embeddings(list(range(6)), spaces, valid, np.arange(6), [0.0] * 6, [])
    bank = Bank.of(embeddings, 0.5)
    judges = np.array([[True, True, False, True, False, True], [True] * 6, [True, False, False, True, False, True]])
    mean, variance = bank.judge(embeddings, judges, "va")
    single = np.stack([bank.scores(f, "va", *spaces[f]["va"]) for f in range(3)])
    for clip in range(5):
        chosen = single[judges[:, clip], clip]
        assert mean[clip] == pytest.approx(chosen.mean(), rel=1e-5)
        assert variance[clip] == pytest.approx(chosen.var(ddof=1) if len(chosen) > 1 else 0, rel=1e-4, abs=1e-9)
    assert np.isnan(mean[5]) and np.isnan(variance[5])


def load_rows(path: Path) -> list[dict]:
    """The lines of a manifest."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def trusted_manifest(corpus: Path, out: Path, every: int = 1, **fields: object) -> Path:
    """Labels of some narrations of a corpus."""
    rows = []
    for row in load_index(corpus):
        for number, narration in enumerate(row["narrations"][::every]):
            label = {"text_weight": int(number % 3 > 0), "sound_weight": 1, "group": row["id"]} | fields
            times = {name: narration[name] for name in ("start", "end", "text")}
            rows.append({"id": f"{row['id']}#{number}", "video": row["video"], "split": "train"} | times | label)
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


@pytest.fixture
def arguments(corpus: Path, tmp_path: Path):
    """Function of overrides that gives the command line of a tiny curation."""

    def make(*overrides: str, trusted: Path | None = None) -> list[str]:
        trusted = trusted or trusted_manifest(corpus, tmp_path / "trusted.jsonl")
        where = [f"data.manifest={corpus}", f"data.test={corpus / 'test.jsonl'}", f"run.dir={tmp_path / 'runs'}"]
        curation = [f"curate.trusted={trusted}", f"curate.out={tmp_path / 'out'}", "curate.filters=2", "curate.steps=3"]
        return ["--config", str(DEMO), *TINY, *where, *curation, "curate.draws=10", *overrides]

    return make


def test_a_curation_and_the_training_that_follows(arguments, corpus: Path, tmp_path: Path, capsys, tiny) -> None:
    assert curate.main(["--dry-run", *arguments()]) == 0 and not (tmp_path / "out").exists()
    assert curate.main(arguments()) == 0
    out, shown = tmp_path / "out", capsys.readouterr().out
    assert "Video and sound" in shown and "Video and text" in shown and "manifest.jsonl" in shown
    table = pq.read_table(out / "scores.parquet").to_pylist()
    data = load_index(corpus)
    assert len(table) == sum(max(len(row["narrations"]), 1) for row in data)
    assert all(0 <= row[f"weight_{space}"] <= 1 for row in table for space in ("va", "vt"))
    weighed = load_index(out / "manifest.jsonl")
    assert set(weighed["split"]) == {"train", "test"}
    labels = {row["text"]: row["text_weight"] for row in load_rows(tmp_path / "trusted.jsonl")}
    for row in weighed:
        if row["split"] == "train":
            assert row["sound_weight"] is not None
            assert all(n["weight"] == labels[n["text"]] for n in row["narrations"])  # a label counts more
    numbers = json.loads((out / "report.json").read_text())
    assert numbers["vt"]["trusted"] == sum(labels.values())
    assert not numbers["vt"]["able"] or len(numbers["vt"]["thresholds"]) == 9
    results = pretrain(tiny(f"data.manifest={out / 'manifest.jsonl'}", "data.test=null", "harmonize=none"))
    assert "trained" in results


def test_a_curation_that_was_killed_goes_on(arguments, tmp_path: Path, monkeypatch) -> None:
    class Killed(BaseException):
        """What nobody catches."""

    assert curate.main(arguments()) == 0
    expected = {name: (tmp_path / "out" / name).read_bytes() for name in ("manifest.jsonl", "report.json")}
    rows = pq.read_table(tmp_path / "out" / "scores.parquet")
    (tmp_path / "out").rename(tmp_path / "whole")
    for place in ("pretrain", "judge", "write"):

        def die(*_: object, **__: object) -> None:
            raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(curate, place, die)
            curate.main(arguments())
    assert curate.main(arguments()) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in expected} == expected
    assert pq.read_table(tmp_path / "out" / "scores.parquet").equals(rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["curate.filters=50"], "cannot be dealt to 50 folds"),
        (["curate.trusted=nowhere.jsonl"], "nowhere.jsonl: there is nothing here"),
        (["curate.filters=1"], "filters=1"),
        (["data.sources={a: {manifest: x}}", "data.manifest=null"], "curate one manifest at a time"),
    ],
)
def test_what_cannot_be_curated_is_said_before_any_work(arguments, tmp_path, capsys, overrides, message) -> None:
    assert curate.main(arguments(*overrides)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_trusted_clips_that_are_held_out_are_refused(arguments, corpus: Path, tmp_path: Path, capsys) -> None:
    video = str(corpus / load_rows(corpus / "test.jsonl")[0]["video"])
    path = trusted_manifest(corpus, tmp_path / "leaking.jsonl", video=video)
    assert curate.main(arguments(trusted=path)) == 2
    assert "trusted clip(s) are of videos to be tested on" in capsys.readouterr().err


def test_another_curation_in_the_folder_is_refused(arguments, corpus: Path, tmp_path: Path, capsys) -> None:
    assert curate.main(arguments("curate.rounds=1")) == 0
    fewer = trusted_manifest(corpus, tmp_path / "fewer.jsonl", every=2)
    assert curate.main(arguments("curate.rounds=1", trusted=fewer)) == 2
    assert "holds another curation (trusted differ)" in capsys.readouterr().err
    assert curate.main(arguments("curate.rounds=1", "model.dropout=0.2")) == 2
    assert "configuration.model.dropout" in capsys.readouterr().err


def test_data_without_texts_are_curated_by_their_sounds(arguments, corpus: Path, tmp_path: Path, capsys) -> None:
    mute = tmp_path / "mute.jsonl"
    rows = [{"id": row["id"], "video": row["video"], "split": "train", "text": ""} for row in load_index(corpus)]
    mute.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trusted = tmp_path / "sounds.jsonl"
    trusted.write_text("".join(json.dumps(row | {"sound_weight": 1}) + "\n" for row in rows))
    assert curate.main(arguments(f"data.manifest={mute}", "curate.rounds=1", trusted=trusted)) == 0
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())
    assert numbers["vt"] == {"pairs": 0, "trusted": 0, "able": False} and numbers["va"]["trusted"] > 0
    assert "cannot say how many are right" in capsys.readouterr().out


def test_more_rounds_than_before_are_another_curation(arguments, capsys) -> None:
    assert curate.main(arguments("curate.rounds=1")) == 0
    assert curate.main(arguments("curate.rounds=2")) == 2
    assert "holds another curation (rounds differ)" in capsys.readouterr().err


def test_a_trusted_row_has_one_text(arguments, corpus: Path, capsys) -> None:
    assert curate.main(arguments(trusted=corpus)) == 2
    assert "have several narrations" in capsys.readouterr().err


def weighed(
    rows: list[dict], by_space: dict[str, list[float]], labels: list[dict], seconds: float = 1.0, readable=None
):
    """The clips of some rows with their weights."""
    readable = np.ones(len(by_space["vt"]), bool) if readable is None else np.array(readable)
    weights = Weights({space: np.array(values) for space, values in by_space.items()}, readable)
    return [row for _, row in weights.clips(index_of("data", rows), Labels(index_of("labels", labels)), seconds)]


def data_row(name: str, *texts: str) -> dict:
    """A row with narrations of two seconds each."""
    narrations = [{"start": 4.0 * n, "end": 4.0 * n + 2, "text": text} for n, text in enumerate(texts)]
    return {"id": name, "video": f"/v/{name}.mp4", "split": "train", "narrations": narrations}


LABEL = {"id": "l", "video": "/v/a.mp4", "split": "train", "sound_weight": 0.0}
LABEL |= {"narrations": [{"start": 4.0, "end": 6.0, "text": "two", "weight": 1.0}]}


def test_what_is_trained_on_is_what_was_judged() -> None:
    rows = [data_row("a", "one", "two"), data_row("b")]
    clips = weighed(rows, {"vt": [0.3, 0.1, 1.0], "va": [0.9, 0.8, 0.5]}, [LABEL], seconds=3.0)
    assert [(clip["id"], clip["start"], clip["end"]) for clip in clips] == [
        ("a#0", 0.0, 3.0),  # no shorter than a window, and not before the video
        ("a#1", 3.5, 6.5),
        ("b", None, None),  # without a text it is the whole video
    ]
    assert [clip["sound_weight"] for clip in clips] == [0.9, 0.0, 0.5]  # a label counts more
    assert [n["weight"] for clip in clips for n in clip["narrations"]] == [0.3, 1.0]
    assert {clip["group"] for clip in clips[:2]} == {storage.same("/v/a.mp4")}


def test_clips_that_are_worth_nothing_or_cannot_be_read_are_left_out() -> None:
    rows = [data_row("a", "one", "two"), data_row("b", "three")]
    clips = weighed(rows, {"vt": [0.0, 0.0, 1.0], "va": [0.0, 0.0, 1.0]}, [LABEL], readable=[True, True, False])
    assert [clip["id"] for clip in clips] == ["a#1"]  # somebody said that its text fits


def test_a_trusted_clip_that_is_not_of_the_data_comes_after_it() -> None:
    labels = Labels(index_of("labels", [LABEL, LABEL | {"id": "m", "video": "/v/other.mp4"}]))
    row = index_of("data", [data_row("a", "one", "two")])[0]
    assert labels.of(row, "one") is None and labels.of(row, "two")["id"] == "l"
    assert [row["id"] for row in labels.unused()] == ["m"]


def test_weights_stay_one_where_the_filters_cannot_tell() -> None:
    rng = np.random.default_rng(0)
    scores, spread = rng.normal(0, 1, 500), np.ones(500)
    held_out = HeldOut(rng.normal(0.1, 1, 100), np.arange(100), rng.normal(0, 1, 100), np.arange(100))
    verdict = Verdict(scores, spread, np.ones(500, bool), 8, held_out, 50)
    assert not verdict.able and (verdict.weights() == 1).all()
    assert "cannot say how many are right" in as_markdown("vt", verdict, {})


def test_the_report_says_what_a_threshold_would_keep() -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(2, 1, 400), rng.normal(-2, 1, 600)])
    held_out = HeldOut(rng.normal(2, 1, 200), np.arange(200), rng.normal(-2, 1, 200), np.arange(200))
    others = {"similar": rng.normal(0, 1, 100), "labelled": np.empty(0)}
    verdict = Verdict(scores, np.zeros(1000), np.ones(1000, bool), 1, held_out, 50)
    text, rows = as_markdown("vt", verdict, others), verdict.thresholds(others)
    share = verdict.calibration.share
    assert share == pytest.approx(0.4, abs=0.03) and f"{share:.0%} of" in text
    assert "precision, similar" in text
    assert "labelled" not in text  # nobody labelled a wrong one
    truth = np.arange(1000) < 400
    for row in rows:
        kept = scores > row["threshold"]
        assert row["precision"] == pytest.approx(truth[kept].mean(), abs=0.05)
        assert row["recall"] == pytest.approx((kept & truth).sum() / 400, abs=0.05)
        assert row["precision low"] <= row["precision"] <= row["precision high"]
        assert row["precision, similar"] <= row["precision"] + 0.05
