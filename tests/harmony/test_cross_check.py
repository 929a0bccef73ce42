"""The curriculum by the third side: which pairs it drops, and how many."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import harmony
from harmony.curriculum.third_pair import side_ranks

B = 16


def extras(seed: int, wrong_text: torch.Tensor, b: int = B, signal: float = 3.0) -> dict[str, torch.Tensor]:
    """Terms and sides of a batch; the texts of some clips fit neither their video nor their sound."""
    g = torch.Generator().manual_seed(seed)
    own = signal * torch.eye(b)
    told = own * ~wrong_text[:, None]
    sides = torch.stack([own, told, told], 1) + torch.randn(b, 3, b, generator=g)
    terms = torch.stack([s.logsumexp(1) - s.diagonal() for s in sides[:, :2].unbind(1)], 1)
    return {"terms": terms, "sides": sides}


def blocks(b: int = B) -> torch.Tensor:
    return torch.eye(2).expand(b, 2, 2)


def brute_ranks(sides: torch.Tensor, there: list[bool]) -> torch.Tensor:
    """Ranks by counting, pair by pair."""
    b, s = sides.shape[:2]
    ranks = torch.full((b, s), 0.5, dtype=torch.float64)
    for i in range(b):
        others = [j for j in range(b) if j != i and there[i] and there[j]]
        for side in range(s):
            wins = [(sides[i, side, i] > x) + 0.5 * (sides[i, side, i] == x) for j in others
                    for x in (sides[i, side, j], sides[j, side, i])]  # fmt: skip
            if wins:
                ranks[i, side] = sum(float(w) for w in wins) / len(wins)
    return ranks


@given(st.integers(0, 10_000), st.lists(st.booleans(), min_size=2, max_size=7))
def test_ranks_are_the_share_of_the_others_that_fit_less_well(seed, there):
    b = len(there)
    sides = torch.randint(4, (b, 3, b), generator=torch.Generator().manual_seed(seed)).double()  # with ties
    torch.testing.assert_close(side_ranks(sides, torch.tensor(there)), brute_ranks(sides, there))


@given(st.integers(0, 10_000), st.permutations(range(B)))
def test_order_in_the_batch_does_not_matter(seed, order):
    order = torch.tensor(order)
    given_ = extras(seed, torch.arange(B) < B // 2)
    moved = {"terms": given_["terms"][order], "sides": given_["sides"][order][:, :, order]}
    rule = harmony.curriculum.cross_check(share=0.5)
    weights, _ = rule.update(blocks(), rule.init(), **given_)
    again, _ = rule.update(blocks(), rule.init(), **moved)
    torch.testing.assert_close(again, weights[order])


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_a_given_share_is_kept_of_each_loss(seed, share):
    rule = harmony.curriculum.cross_check(share=share)
    weights, _ = rule.update(blocks(), rule.init(), **extras(seed, torch.zeros(B, dtype=torch.bool)))
    assert weights.sum(0).tolist() == [int(share * B + 0.5)] * 2 or abs(share * B % 1 - 0.5) < 1e-5


def after(steps: int, wrong: float, **keywords) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights over many batches of which a share has wrong texts, after the estimates have settled, and which."""
    rule = harmony.curriculum.cross_check(**keywords)
    state, kept, truth = rule.init(), [], []
    for step in range(steps):
        bad = torch.randperm(B, generator=torch.Generator().manual_seed(step)) < wrong * B
        weights, state = rule.update(blocks(), state, **extras(step, bad, signal=6.0))
        if step >= steps // 2:
            kept.append(weights)
            truth.append(~bad)
    return torch.cat(kept), torch.cat(truth)


def test_it_estimates_how_many_texts_are_wrong_and_blames_the_side_that_lacks():
    kept, right = after(400, wrong=0.5)
    assert abs(kept[:, 1].mean() - 0.5) < 0.1
    assert kept[:, 0].mean() > 0.95  # sound and picture belong together
    assert right[kept[:, 1] > 0].double().mean() > 0.9


def test_nothing_is_dropped_where_nothing_is_wrong():
    kept, _ = after(200, wrong=0.0)
    assert kept.mean() > 0.98


def test_a_model_that_knows_nothing_keeps_the_floor_of_both_sides_together():
    rule = harmony.curriculum.cross_check(floor=0.3)
    state, kept = rule.init(), []
    for seed in range(300):
        weights, state = rule.update(blocks(), state, **extras(seed, torch.zeros(B, dtype=torch.bool), signal=0.0))
        kept.append(weights)
    dropped = 1 - torch.cat(kept[100:]).mean(0)
    assert dropped.sum() == pytest.approx(0.7, abs=0.1)


def test_the_warm_up_drops_nothing_at_first():
    rule = harmony.curriculum.cross_check(warmup=10, share=0.0)
    state, given_ = rule.init(), extras(0, torch.zeros(B, dtype=torch.bool))
    kept = []
    for _ in range(11):
        weights, state = rule.update(blocks(), state, **given_)
        kept.append(int(weights[:, 0].sum()))
    assert kept[0] == B and kept[5] == B // 2 and kept[10] == 0


@given(st.integers(0, 10_000), st.integers(0, B - 1))
def test_a_sample_without_an_agreement_is_kept_and_changes_nothing_for_the_others(seed, missing):
    given_, gram = extras(seed, torch.arange(B) < B // 2), blocks().clone()
    gram[missing, 1, 1] = 0
    rule = harmony.curriculum.cross_check(share=0.5)
    weights, _ = rule.update(gram, rule.init(), **given_)
    rest = torch.arange(B) != missing
    alone = {"terms": given_["terms"][rest], "sides": given_["sides"][rest][:, :, rest]}
    expected, _ = rule.update(blocks(B - 1), rule.init(), **alone)
    assert weights[missing].tolist() == [1, 1]
    torch.testing.assert_close(weights[rest], expected)


@pytest.mark.parametrize("keywords", [{"warmup": -1}, {"floor": 0.0}, {"decay": 1.0}, {"share": 1.5}])
def test_numbers_out_of_range_are_refused(keywords):
    with pytest.raises(ValueError):
        harmony.curriculum.cross_check(**keywords)


def test_what_is_missing_is_named():
    rule = harmony.curriculum.cross_check()
    with pytest.raises(ValueError, match="sides"):
        rule.update(blocks(), rule.init(), terms=torch.zeros(B, 2))
    with pytest.raises(ValueError, match="two losses"):
        rule.update(torch.eye(3)[None], rule.init(), terms=torch.zeros(1, 3), sides=torch.zeros(1, 3, 1))
