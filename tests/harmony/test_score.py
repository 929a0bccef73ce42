"""Scores against explicit gradients and plain Python."""

from decimal import Decimal
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import harmony
from harmony import score

seeds = st.integers(0, 100_000)


def gradients(seed, size=9, k=3):
    """Explicit gradients (B, K, D), some of them zero, and their Gram blocks."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(size, k, 5, dtype=torch.float64, generator=generator)
    g[torch.rand(size, k, generator=generator) < 0.25] = 0
    return g, g @ g.mT


def values(s, gram, **extras):
    s = score.as_score(s)
    return s.update(gram, s.init(), **extras)[0]


def assert_equal(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), equal_nan=True, rtol=1e-6, atol=1e-9)


@given(seeds)
def test_scores_of_the_gram_are_those_of_its_gradients(seed):
    g, gram = gradients(seed)
    nan = float("nan")
    least, ratio, norm, pair = [], [], [], []
    for row in g:
        nonzero = [x for x in row if x.any()]
        cosines = [float(torch.cosine_similarity(x, y, dim=0)) for i, x in enumerate(nonzero) for y in nonzero[i + 1 :]]
        norms = [float(x.norm()) for x in nonzero]
        least.append(min(cosines) if cosines else nan)
        ratio.append(min(norms) / max(norms) if cosines else nan)
        norm.append(float(row.sum(0).norm()) if cosines else nan)
        pair.append(float(torch.cosine_similarity(row[1], row[2], dim=0)) if row[1].any() and row[2].any() else nan)
    assert_equal(values(score.agreement, gram), least)
    assert_equal(values(score.norm_ratio, gram), ratio)
    assert_equal(values(score.gradient_norm, gram), norm)
    assert_equal(values(partial(score.pair_cosine, k=1, l=2), gram), pair)


@given(seeds)
def test_batch_agreement_is_the_cosine_with_the_others(seed):
    g, gram = gradients(seed)
    products = torch.einsum("bkd,d->bk", g, g.sum((0, 1)))
    expected = []
    for row in g:
        rest = g.sum((0, 1)) - row.sum(0)
        defined = sum(bool(x.any()) for x in row) >= 2
        expected.append(float(torch.cosine_similarity(row.sum(0), rest, dim=0)) if defined else float("nan"))
    assert_equal(values(score.batch_agreement, gram, batch_products=products, batch_square=products.sum()), expected)


def test_a_sample_alone_agrees_with_nobody():
    g, gram = gradients(3, size=1)
    products = torch.einsum("bkd,d->bk", g, g.sum((0, 1)))
    found = values(score.batch_agreement, gram, batch_products=products, batch_square=products.sum())
    assert found.isnan().all() or found.item() == 0


@given(seeds)
def test_losses_and_similarities_are_those_of_samples_with_an_agreement(seed):
    _, gram = gradients(seed)
    generator = torch.Generator().manual_seed(seed)
    terms, near = torch.rand(9, 3, generator=generator), torch.rand(9, generator=generator)
    seen = harmony.defined(gram)
    for found, expected in (
        (values(score.small_loss, gram, terms=terms), -terms.sum(1)),
        (values(partial(score.small_loss, losses=[2]), gram, terms=terms), -terms[:, 2]),
        (values(score.similarity, gram, similarity=near), near),
    ):
        assert torch.equal(found[seen], expected[seen]) and found[~seen].isnan().all()


@given(seeds, st.none() | st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
def test_learnability_is_the_loss_less_that_of_the_reference(seed, losses):
    _, gram = gradients(seed)
    generator = torch.Generator().manual_seed(seed)
    known = {name: torch.rand(9, 3, generator=generator).double() for name in ("terms", "reference_terms")}
    chosen = range(3) if losses is None else losses
    learner, reference = ([sum(row[k] for k in chosen) for row in x.tolist()] for x in known.values())
    expected = {
        "learnability": [l - r for l, r in zip(learner, reference, strict=True)],
        "hard_learner": learner,
        "easy_reference": [-r for r in reference],
    }
    seen = harmony.defined(gram)
    for criterion, rows in expected.items():
        found = values(partial(score.learnability, losses=losses, criterion=criterion), gram, **known)
        assert found[seen].tolist() == pytest.approx([x for x, s in zip(rows, seen.tolist(), strict=True) if s])
        assert found[~seen].isnan().all()


def test_learnability_asks_for_what_its_criterion_needs():
    gram, terms = torch.eye(2).expand(3, 2, 2), torch.ones(3, 2)
    assert values(partial(score.learnability, criterion="hard_learner"), gram, terms=terms).tolist() == [2] * 3
    alone = partial(score.learnability, criterion="easy_reference")
    assert values(alone, gram, reference_terms=terms).tolist() == [-2] * 3
    with pytest.raises(ValueError, match=r"learnability needs reference_terms \(3, 2\): call the step with extras="):
        values(score.learnability, gram, terms=terms)
    with pytest.raises(ValueError, match=r"criterion must be one of 'learnability', .*; got 'hard'"):
        values(partial(score.learnability, criterion="hard"), gram, terms=terms)


@given(seeds)
def test_combinations(seed):
    _, gram = gradients(seed, k=2)
    terms = torch.rand(9, 2, generator=torch.Generator().manual_seed(seed)).double()
    a, b = values(score.agreement, gram), values(score.small_loss, gram, terms=terms)
    seen = ~a.isnan()
    ask = partial(values, gram=gram, terms=terms)
    torch.testing.assert_close(ask(score.negative(score.agreement)), -a, equal_nan=True)
    torch.testing.assert_close(
        ask(score.combined(score.agreement, score.small_loss, weights=[2.0, 0.5])), 2 * a + b / 2, equal_nan=True
    )
    torch.testing.assert_close(ask(score.least(score.agreement, score.small_loss)), torch.minimum(a, b), equal_nan=True)
    standard = ask(score.standardized(score.small_loss))
    assert standard[~seen].isnan().all()
    if seen.sum() > 1:
        assert standard[seen].mean().abs() < 1e-6
        assert standard[seen].std(correction=0).item() == pytest.approx(1, abs=1e-6)
        assert torch.equal(standard[seen].argsort(), b[seen].argsort())


@given(st.lists(st.sampled_from([0.25, 1.0, 4.0, 9.0]) | st.none(), min_size=1, max_size=9))
def test_ranks_are_shared_by_equals(norms):
    gram = torch.stack([torch.eye(2) * (n or 1.0) * torch.tensor([1.0, float(n is not None)])[:, None] for n in norms])
    found = values(score.ranked(score.gradient_norm), gram.double())
    known = sorted(n for n in norms if n is not None)
    for n, rank in zip(norms, found.tolist(), strict=True):
        if n is None:
            assert rank != rank
        elif len(known) == 1:
            assert rank == 0.5
        else:
            places = [i for i, m in enumerate(known) if m == n]
            assert rank == pytest.approx(sum(places) / len(places) / (len(known) - 1))


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.floats(0.1, 3)), max_size=5), max_size=6), st.floats(0, 0.95))
def test_ema_follows_each_sample_by_its_id(batches, decay):
    ema = score.ema(score.gradient_norm, decay, capacity=997)
    state, past = ema.init(), {}
    for batch in batches:
        gram = torch.stack([torch.eye(2, dtype=torch.float64) * x**2 / 2 for _, x in batch] or [torch.eye(2)])[
            : len(batch)
        ]
        ids = torch.tensor([i for i, _ in batch], dtype=torch.int64)
        found, state = ema.update(gram, state, ids=ids)
        expected = [decay * past[i] + (1 - decay) * x if i in past else x for i, x in batch]
        assert found.tolist() == pytest.approx(expected, rel=1e-5)
        past |= dict(zip(ids.tolist(), expected, strict=True))


def test_a_sample_without_a_score_keeps_its_history():
    ema = score.ema(score.gradient_norm, 0.5, capacity=16)
    state, ids = ema.init(), torch.tensor([4])
    blocks = [torch.eye(2) * 2, torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2) * 0.5]
    seen = []
    for block in blocks:
        found, state = ema.update(block[None], state, ids=ids)
        seen += found.tolist()
    assert seen[0] == 2 and seen[1] != seen[1] and seen[2] == 1.5


def test_what_is_missing_is_said_with_its_remedy():
    gram = torch.eye(2).expand(4, 2, 2)
    for wrong, message in (
        (lambda: values(score.small_loss, gram), r"small_loss needs terms \(4, 2\): call the step with"),
        (lambda: values(score.batch_agreement, gram), 'call the step with products_with="batch"'),
        (lambda: values(score.similarity, gram), "call the step with extras=lambda embeddings"),
        (lambda: values(score.ema(score.agreement), gram), r"ema needs ids \(4,\)"),
        (
            lambda: values(score.small_loss, gram, terms=torch.ones(8, 2)),
            r"terms of shape \(4, 2\), one for each Gram block; got \(8, 2\).*group_size=1",
        ),
        (lambda: score.combined(), "at least one score"),
        (lambda: score.combined(score.agreement, weights=[1.0, 2.0]), "a weight for each; got 1 and 2"),
        (lambda: score.least(), "at least one score"),
        (lambda: score.ema(score.agreement, decay=1.0), "below 1; got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(TypeError, match=r"expected one number each, shape \(4,\)"):
        values(lambda gram, **extras: gram, gram)
    with pytest.raises(TypeError, match="a score is a function"):
        score.as_score(3)


def test_a_single_loss_has_scores_that_need_no_pair():
    gram, terms = torch.tensor([[[4.0]], [[0.0]], [[9.0]]]), torch.tensor([[1.0], [2.0], [3.0]])
    assert values(score.small_loss, gram, terms=terms)[[0, 2]].tolist() == [-1, -3]
    assert values(score.gradient_norm, gram).isnan().tolist() == [False, True, False]
    assert values(score.agreement, gram).isnan().all()


def test_what_is_not_finite_is_no_score():
    gram, terms = torch.eye(2).expand(2, 2, 2), torch.tensor([[1.0, 1.0], [torch.inf, 1.0]])
    assert values(score.small_loss, gram, terms=terms).isnan().tolist() == [False, True]
    ema = score.ema(score.small_loss, 0.5, capacity=8)
    state, ids = ema.init(), torch.tensor([1, 2])
    for _ in range(2):
        _, state = ema.update(gram, state, terms=terms, ids=ids)
    found, _ = ema.update(gram, state, terms=torch.ones(2, 2), ids=ids)
    assert found.tolist() == [-2, -2]  # nothing is left of the infinity


def test_a_score_of_ones_own():
    gram = torch.eye(2) * torch.tensor([1.0, 3.0, 2.0])[:, None, None]
    for own in (lambda gram: gram[:, 0, 0], harmony.agreement, lambda gram, ids: ids.float()):
        assert values(own, gram, terms=None, ids=torch.arange(3)).shape == (3,)
    rule = harmony.curriculum.top_k(1, score=lambda gram, **extras: gram[:, 0, 0])
    weights, _ = rule.update(torch.eye(2) * torch.tensor([1.0, 3.0, 2.0])[:, None, None], rule.init())
    assert weights[:, 0].tolist() == [0, 1, 0]


def area_by_heron(triplet):
    """Minus the area of the triangle between three unit vectors, from the lengths of its sides, in exact order."""
    x = [[Decimal(float(v)) for v in row] for row in triplet]
    unit = [[v / sum(w * w for w in row).sqrt() for v in row] for row in x]
    a, b, c = (
        sum((p - q) ** 2 for p, q in zip(unit[i], unit[j], strict=True)).sqrt() for i, j in ((0, 1), (1, 2), (2, 0))
    )
    s = (a + b + c) / 2
    return -float(max(s * (s - a) * (s - b) * (s - c), Decimal(0)).sqrt())


@given(seeds, st.integers(2, 6), st.sampled_from([1.0, 1e-3, 1e-6, 0.0]))
def test_triangle_area_is_minus_the_area_between_unit_embeddings(seed, dimensions, spread):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(4, 1, dimensions, dtype=torch.float64, generator=generator)
    near = common + spread * torch.randn(4, 3, dimensions, dtype=torch.float64, generator=generator)
    gram = torch.eye(2).expand(4, 2, 2)
    found = values(score.triangle_area, gram, triplet=near)
    expected = torch.tensor([area_by_heron(triplet) for triplet in near], dtype=torch.float64)
    sides = (F.normalize(near, dim=-1) - F.normalize(near.roll(1, 1), dim=-1)).norm(dim=-1).amax(1)
    # To a few units in the last place of the embeddings, however small the area: no digit is lost by a square root.
    assert ((found - expected).abs() <= 1e-15 * sides * 4 + 1e-30).all()
    if dimensions == 3:
        u, v = (F.normalize(near, dim=-1)[:, i] - F.normalize(near, dim=-1)[:, 0] for i in (1, 2))
        torch.testing.assert_close(found, -torch.linalg.cross(u, v).norm(dim=-1) / 2, rtol=1e-6, atol=1e-15)


def test_triangle_area_needs_triplets_and_an_agreement():
    gram = torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 0.0]))])
    found = values(score.triangle_area, gram, triplet=torch.eye(3).expand(2, 3, 3))
    assert found[0].item() == pytest.approx(-(3**0.5) / 2) and found[1].isnan()
    assert values(score.triangle_area, gram, triplet=torch.ones(2, 3, 4, dtype=torch.bfloat16))[0] == 0
    with pytest.raises(ValueError, match=r"triangle_area needs triplet \(2, 3, D\): call the step with extras="):
        values(score.triangle_area, gram)
    with pytest.raises(ValueError, match=r"triplet of shape \(2, 3, D\), one for each Gram block; got \(2, 2, 4\)"):
        values(score.triangle_area, gram, triplet=torch.ones(2, 2, 4))
