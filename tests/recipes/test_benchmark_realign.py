"""The benchmark of realignments, tiny: it runs to the end, catches wrong weights, and scales what it says it scales."""

import csv
from functools import partial

import pytest
import torch

import harmony
from recipes.research.benchmark import racing, realign
from recipes.research.benchmark import realign_peers as peers
from recipes.research.benchmark.__main__ import main
from recipes.research.benchmark.racing import Rules
from recipes.research.benchmark.realign import (
    ALL_PAIRS,
    COMPILED,
    OURS,
    PEER,
    Result,
    all_methods,
    measure,
    pcgrad_in_full,
)
from recipes.research.benchmark.realign_peers import CHECKED_ON, Case, Peer


@pytest.fixture
def fake(monkeypatch):
    """TorchJD and two of its methods, in place of the real ones: a right PCGrad, and one that is not installed."""
    calls = []

    def right(torchjd, case):
        def weigh(gram):
            calls.append(gram)
            return harmony.realign.pcgrad(gram[None])[0] if len(gram) == case.losses else torch.ones(len(gram))

        return weigh

    def missing(torchjd, case):
        raise ImportError("no solver\nsecond line")

    monkeypatch.setattr(peers, "_torchjd", lambda: None)
    monkeypatch.setitem(peers.PEERS, "pcgrad", Peer(right))
    monkeypatch.setitem(peers.PEERS, "upgrad", Peer(missing))
    return calls


def test_every_method_takes_part():
    assert set(peers.OWN) == set(harmony.realign.__all__)
    assert set(peers.PEERS) == set(peers.OWN) - {"normalized"}


def test_gram_blocks_are_those_of_the_gradients():
    gradients, gram = Case(5, 3, dtype=torch.float64).draw()
    assert gradients.shape == (5, 3, peers.ENTRIES)
    for b in range(5):
        for k in range(3):
            for l in range(3):
                assert float(gram[b, k, l]) == pytest.approx(float(gradients[b, k] @ gradients[b, l]))


def test_everybody_on_the_same_blocks_in_every_round_and_the_order_rotates(fake, monkeypatch):
    seen = []

    def recorder(gram, name):
        seen.append((name, gram.clone()))
        return torch.ones(gram.shape[:2])

    for name in ("summed", "mean", "normalized"):
        monkeypatch.setitem(peers.OWN, name, lambda name=name: partial(recorder, name=name))
    monkeypatch.setattr(realign, "PEERS", {})
    ticks = []
    results = measure(all_methods(Case(6, 2), ["summed", "mean", "normalized"], 2), Rules(3), lambda: ticks.append(1))
    rounds = [[name for name, _ in seen[-9:][i : i + 3]] for i in (0, 3, 6)]
    a, b, c = "summed", "mean", "normalized"
    assert rounds == [[a, b, c], [b, c, a], [c, a, b]]
    assert all(torch.equal(gram, Case(6, 2).draw()[1]) for _, gram in seen)
    assert len(ticks) == 4
    assert [r.skipped for r in results] == ["", "has none"] * 3
    assert all(len(r.seconds) == 3 and r.ratios == [1.0] * 3 for r in results if r.who == OURS)


def test_the_peers_time_is_that_of_some_samples_scaled_up(fake, monkeypatch):
    monkeypatch.setattr(racing, "timed", lambda call, device, calls=1: (call(), float(calls))[1])
    ours, theirs = measure(all_methods(Case(40, 2), ["pcgrad"], 4), Rules(2))
    assert (ours.timed, ours.seconds) == (40, [1.0, 1.0])
    assert (theirs.timed, theirs.seconds, theirs.ratios) == (4, [10.0, 10.0], [10.0, 10.0])
    assert len(fake) == CHECKED_ON + (2 + 2) * 4  # the check; then two warm-ups and two rounds of four samples


def test_in_full_nothing_is_scaled(fake, monkeypatch):
    _, loop, pairs = results = measure(pcgrad_in_full(Case(5, 2)), Rules(2))
    assert [(r.who, r.timed, r.skipped) for r in results] == [(OURS, 5, ""), (PEER, 5, ""), (ALL_PAIRS, 5, "")]
    assert loop.deviation == 0 and pairs.deviation is None
    shapes = [tuple(gram.shape) for gram in fake[CHECKED_ON:]]
    assert shapes.count((2, 2)) == (2 + 2) * 5 and shapes.count((10, 10)) == 2 + 2
    gradients, gram = Case(5, 2).draw()
    everything = next(gram for gram in fake if len(gram) == 10)
    torch.testing.assert_close(everything[2:4, 2:4], gram[1])
    torch.testing.assert_close(everything[0, 9], gradients[0, 0] @ gradients[4, 1])


def test_wrong_weights_are_caught_and_not_timed(fake, monkeypatch):
    monkeypatch.setitem(peers.PEERS, "pcgrad", Peer(lambda torchjd, case: lambda gram: gram.diagonal()))
    ours, theirs = measure(all_methods(Case(6, 2), ["pcgrad"], 2), Rules(1))
    assert theirs.skipped.startswith("wrong: its weights and ours differ by") and not theirs.seconds and ours.seconds
    with pytest.raises(racing.WrongAnswer, match="compiled"):
        monkeypatch.setattr(torch, "compile", lambda own, **keywords: lambda gram: 2 * own(gram))
        peers.compiled(harmony.realign.pcgrad, Case(6, 2).draw()[1])


def test_what_is_missing_or_too_slow_is_skipped_with_its_reason(fake):
    *_, missing = measure(all_methods(Case(6, 2), ["upgrad"], 2), Rules(1))
    assert missing.skipped == "not available: no solver"
    slow, *_ = results = measure(all_methods(Case(6, 2), ["upgrad"], 2), Rules(1, limit=0.0))
    assert slow.skipped.startswith("a call takes") and "more than the limit of 0 s" in slow.skipped
    text = realign.report(results, {"machine": "m", "threads": 1, "torch": "t", "torchjd": "j", "date": "d"})
    assert "not available: no solver" in text and "more than the limit" in text


@pytest.mark.parametrize("losses", [2, 3])
def test_torchjd_agrees_where_it_can_be_compared(losses):
    pytest.importorskip("torchjd")
    for name, peer in peers.PEERS.items():
        try:
            deviation, note = peers.check(name, Case(4, losses))
        except ImportError:  # a solver that TorchJD asks for
            continue
        compared = peer.exact in ("any", "most") or (peer.exact == "two" and losses == 2)
        assert (deviation is not None) == compared, name
        assert deviation is None or deviation < 1e-3, name
        assert compared or note


def test_cells():
    case = Case(100, 2)
    ours = Result(case, "pcgrad", OURS, 100, seconds=[1e-3, 1.1e-3, 1.2e-3], ratios=[1.0, 1.0, 1.0])
    theirs = Result(case, "pcgrad", PEER, 4, 2e-16, "so", seconds=[0.2, 0.22, 0.24], ratios=[200.0, 210.0, 190.0])
    none = Result(case, "normalized", PEER, 4, skipped="has none")
    alone = Result(case, "normalized", OURS, 100, seconds=[1e-6] * 3, ratios=[1.0] * 3)
    facts = {"machine": "m", "threads": 1, "torch": "t", "torchjd": "j", "date": "d"}
    text = realign.report([ours, theirs, alone, none], facts)
    assert "| pcgrad | harmony | 100 | 1.10 | 11.0 |  |  |" in text
    assert "| pcgrad | TorchJD | 4 | 220 | 2200 | 200 [195, 205] | 2e-16, so |" in text
    assert "| normalized | harmony | 100 | 0.00100 | 0.0100 |  |  |" in text
    assert "| normalized | TorchJD |  | has none |  |  |  |" in text
    row = realign.records([theirs], facts)[0]
    assert (row["samples_timed"], row["us_per_sample"], row["ratio"]) == (4, pytest.approx(2200), 200)


def test_a_small_suite_from_end_to_end(tmp_path, capsys):
    arguments = "realign batch=[12] losses=[2,3] repeats=2 samples=3 full=4"
    methods = "methods=[summed,normalized,pcgrad,dualproj,imtl_g]"
    assert main([*arguments.split(), f"out={tmp_path}", methods]) == 0
    out = capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"realign.csv", "realign.md"}
    assert all(str(tmp_path / name) in out for name in ("realign.csv", "realign.md"))

    with open(tmp_path / "realign.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = [(r["batch"], r["losses"]) for r in rows]
    assert sizes == [("4", "2")] * 3 + [("4", "3")] * 3 + [("12", "2")] * 10 + [("12", "3")] * 10
    for row in rows:
        assert row["torch"] == torch.__version__ and row["who"] != COMPILED
        if row["who"] == OURS:
            assert row["skipped"] == "" and int(row["rounds"]) == 2
            assert 0 < float(row["seconds_q1"]) <= float(row["seconds"]) <= float(row["seconds_q3"])
        assert (row["who"] == PEER and row["method"] == "normalized") <= (row["skipped"] == "has none")

    text = (tmp_path / "realign.md").read_text()
    assert text in out
    assert all(f"### B={size}" in text for size in ("4, K=2", "4, K=3", "12, K=2", "12, K=3"))
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {8}


@pytest.mark.parametrize(("argument", "message"), [("losses=[1]", "at least 2"), ("methods=[nothing]", "no 'nothing'")])
def test_what_cannot_be_timed_is_refused(capsys, argument, message):
    assert main(["realign", argument]) == 2
    assert message in capsys.readouterr().err
