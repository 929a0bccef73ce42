"""Curricula, against plain Python: what is kept, in which order, with which memory."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import harmony
from harmony import curriculum, schedule, score
from tests.harmony.states import through_a_file

cosines = st.lists(st.floats(-1, 1), min_size=1, max_size=8)
some = st.lists(st.floats(-1, 1) | st.none(), max_size=12)
"""Cosines; None for a sample that lacks a modality."""


def gram_of(cosines, dtype=torch.float64):
    """Blocks of unit gradients with the given cosines; without a second gradient where there is none."""
    blocks = [[[1.0, c or 0.0], [c or 0.0, float(c is not None)]] for c in cosines]
    return torch.tensor(blocks, dtype=dtype).reshape(-1, 2, 2)


def factors(transform, cosines, state=None, **extras):
    """Factors of a batch, which are the same for both losses, and the next state."""
    weights, state = transform.update(gram_of(cosines), transform.init() if state is None else state, **extras)
    assert weights.shape == (len(cosines), 2) and (weights[:, 0] == weights[:, 1]).all()
    return weights[:, 0].tolist(), state


def kept(transform, cosines):
    return factors(transform, cosines)[0]


def best(cosines, number):
    """What is kept of the best: 1 for the ``number`` largest, of equals the first, and for those without a cosine."""
    order = sorted((i for i, c in enumerate(cosines) if c is not None), key=lambda i: -cosines[i])
    return [1.0 if c is None or i in order[:number] else 0.0 for i, c in enumerate(cosines)]


# ----------------------------------------------------------------------------------------------------------- thresholds
@given(cosines, st.floats(-1, 1))
def test_threshold_keeps_what_agrees_by_more_than_gamma(values, gamma):
    assert kept(curriculum.threshold(gamma), values) == [float(c > gamma) for c in values]


@given(cosines, st.floats(-1, 1), st.floats(0, 1), st.sampled_from(["threshold", "soft_threshold"]))
def test_a_higher_threshold_never_keeps_more(values, gamma, more, rule):
    low, high = (kept(getattr(curriculum, rule)(g), values) for g in (gamma, gamma + more))
    assert all(h <= l for l, h in zip(low, high, strict=True))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), st.data())
def test_a_higher_score_is_never_kept_less(values, data):
    rule = data.draw(st.sampled_from(list(SIMPLE)))
    factor = kept(SIMPLE[rule], values)
    ordered = sorted(zip(values, factor, strict=True))
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(ordered) if a[0] < b[0])


SIMPLE = {
    "threshold": curriculum.threshold(0.1),
    "soft_threshold": curriculum.soft_threshold(0.1, 0.3),
    "agreement_weight": curriculum.agreement_weight(1.7),
    "quantile": curriculum.quantile(0.4),
    "running_quantile": curriculum.running_quantile(0.4),
    "top_k": curriculum.top_k(3),
    "renormalized": curriculum.renormalized(curriculum.quantile(0.5)),
}


@given(some, st.floats(-0.9, 0.9), st.floats(0.05, 2))
def test_soft_threshold_is_a_sigmoid(values, gamma, temperature):
    expected = [1.0 if c is None else 1 / (1 + math.exp((gamma - c) / temperature)) for c in values]
    assert kept(curriculum.soft_threshold(gamma, temperature), values) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(-1, 1).filter(lambda c: abs(c - 0.25) > 1e-3), max_size=8))
def test_soft_threshold_becomes_the_threshold(values):
    cold = kept(curriculum.soft_threshold(0.25, 1e-6), values)
    assert cold == pytest.approx(kept(curriculum.threshold(0.25), values))
    falling = curriculum.soft_threshold(0.25, schedule.linear(0.1, 0.0, 1))
    state = falling.update(gram_of(values), falling.init())[1]
    assert factors(falling, values, state)[0] == pytest.approx(cold)  # a temperature of zero is no NaN


@given(some, st.floats(0, 4))
def test_agreement_weight_grows_from_opposite_to_equal(values, power):
    expected = [1.0 if c is None else ((1 + c) / 2) ** power for c in values]
    assert kept(curriculum.agreement_weight(power), values) == pytest.approx(expected, abs=1e-9)


# ---------------------------------------------------------------------------------------------------- counts and shares
@given(some, st.floats(0, 1))
def test_quantile_keeps_exactly_its_share_of_the_best(values, share):
    number = math.floor(share * sum(c is not None for c in values) + 0.5)
    assert kept(curriculum.quantile(share), values) == best(values, number)


def test_halves_are_rounded_up_as_people_count_them():
    for size, share, number in ((5, 0.7, 4), (5, 0.9, 5), (10, 0.3, 3), (10, 0.25, 3), (3, 0.1, 0)):
        assert sum(kept(curriculum.quantile(share), [c / size for c in range(size)])) == number


def test_a_threshold_is_the_number_that_was_given():
    assert kept(curriculum.threshold(-0.3), [-0.3, 0.7]) == [0, 1]
    assert kept(curriculum.threshold(0.7), [-0.3, 0.7]) == [0, 0]


@given(some, st.integers(0, 14))
def test_top_k_keeps_exactly_k_of_the_best(values, k):
    assert kept(curriculum.top_k(k), values) == best(values, k)


@given(some, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_what_a_smaller_one_keeps(values, a, b):
    few, many = (kept(curriculum.quantile(share), values) for share in sorted((a, b)))
    assert all(f <= m for f, m in zip(few, many, strict=True))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8, unique=True), st.data())
def test_the_order_of_the_batch_does_not_matter(values, data):
    permutation = data.draw(st.permutations(range(len(values))))
    for rule in SIMPLE.values():
        moved = kept(rule, [values[p] for p in permutation])
        assert moved == pytest.approx([kept(rule, values)[p] for p in permutation])


def test_a_share_follows_its_schedule():
    transform = curriculum.quantile(schedule.piecewise({0: 1.0, 2: 0.5}, interpolate=False))
    state, counts = transform.init(), []
    for _ in range(4):
        factor, state = factors(transform, [0.1, 0.2, 0.3, 0.4], state)
        counts.append(sum(factor))
    assert counts == [4, 4, 2, 2]


@given(st.lists(some, max_size=5), st.floats(0.05, 1), st.floats(0, 0.95))
def test_running_quantile_averages_the_quantiles_of_the_batches(batches, share, decay):
    transform = curriculum.running_quantile(share, decay)
    state, total, weight = transform.init(), 0.0, 0.0
    for values in batches:
        factor, state = factors(transform, values, state)
        known = sorted((c for c in values if c is not None), reverse=True)
        if known:
            place = min(max(share * (len(known) + 1), 1), len(known)) - 1
            lower, upper = known[math.ceil(place)], known[math.floor(place)]
            total = decay * total + (1 - decay) * (upper + (place - math.floor(place)) * (lower - upper))
            weight = decay * weight + (1 - decay)
        for c, f in zip(values, factor, strict=True):
            if c is None or share == 1:
                assert f == 1
            elif abs(c - total / weight) > 1e-6:  # the state is float32
                assert f == float(c > total / weight)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 0.8])
def test_running_quantile_keeps_its_share_in_the_long_run(share):
    transform, kept_ = curriculum.running_quantile(share, decay=0.98), []
    state, generator = transform.init(), torch.Generator().manual_seed(0)
    for _ in range(600):
        factor, state = factors(transform, (2 * torch.rand(10, generator=generator) - 1).tolist(), state)
        kept_ += factor
    assert sum(kept_[1000:]) / 5000 == pytest.approx(share, abs=0.03)


def test_running_quantile_keeps_nothing_of_a_share_of_zero_and_compares_batches():
    assert kept(curriculum.running_quantile(0.0), [0.1, 0.2]) == [0, 0]
    assert kept(curriculum.running_quantile(1.0), [0.1, 0.2]) == [1, 1]
    transform = curriculum.running_quantile(0.5, decay=0.9)
    _, state = factors(transform, [0.1, 0.2, 0.3, 0.4])
    assert factors(transform, [-0.5, -0.4, -0.3, -0.2], state)[0] == [0, 0, 0, 0]  # a bad batch is a bad batch
    assert factors(transform, [0.6, 0.7, 0.8, 0.9], state)[0] == [1, 1, 1, 1]


# --------------------------------------------------------------------------------------------------------------- memory
@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.floats(-1, 1) | st.none()), max_size=6), max_size=6))
def test_hysteresis_remembers_who_was_dropped(batches):
    transform, state, dropped = curriculum.hysteresis(-0.25, 0.25, capacity=997), None, {}
    for batch in batches:
        ids, values = [i for i, _ in batch], [c for _, c in batch]
        factor, state = factors(transform, values, state, ids=torch.tensor(ids, dtype=torch.int64))
        expected = [1.0 if c is None else float(c > (0.25 if dropped.get(i) else -0.25)) for i, c in batch]
        assert factor == expected
        dropped |= {i: f == 0 for (i, c), f in zip(batch, expected, strict=True) if c is not None}


# ------------------------------------------------------------------------------------------------------ renormalisation
@given(some, st.floats(-1, 1))
def test_renormalized_keeps_the_mean_over_those_that_have_a_score(values, gamma):
    before = kept(curriculum.threshold(gamma), values)
    after = kept(curriculum.renormalized(curriculum.threshold(gamma), limit=1e6), values)
    counted = [i for i, c in enumerate(values) if c is not None]
    assert [after[i] for i, c in enumerate(values) if c is None] == [1.0] * (len(values) - len(counted))
    if any(before[i] for i in counted):
        assert sum(after[i] for i in counted) / len(counted) == pytest.approx(1)
        assert [a > 0 for a in after] == [b > 0 for b in before]
    else:
        assert all(after[i] == 0 for i in counted)


def test_renormalized_stops_at_its_limit():
    values = [0.9] + [-0.9] * 99
    assert kept(curriculum.renormalized(curriculum.threshold(0.0), limit=5.0), values) == [5.0] + [0.0] * 99
    assert kept(curriculum.renormalized(lambda gram: torch.ones(gram.shape[:2])), [0.2, None]) == [1.0, 1.0]


# ----------------------------------------------------------------------------------------------------------- every rule
def extras(gram, generator):
    b, k = gram.shape[:2]
    return {
        "terms": torch.rand(b, k, generator=generator),
        "batch_products": torch.randn(b, k, generator=generator),
        "batch_square": torch.rand((), generator=generator),
        "reference_products": torch.randn(b, k, generator=generator),
        "reference_square": torch.rand((), generator=generator),
        "similarity": torch.rand(b, generator=generator),
        "triplet": torch.randn(b, 3, 5, generator=generator),
        "weights": torch.rand(b, k, generator=generator),
        "reference_terms": torch.rand(b, k, generator=generator),
        "first": torch.randn(b, 4, generator=generator),
        "second": torch.randn(b, 3, generator=generator),
        "ids": torch.randint(0, 40, (b,), generator=generator),
    }


RULES = {
    **SIMPLE,
    "hysteresis": curriculum.hysteresis(-0.1, 0.1, capacity=64),
    **{
        f"threshold of {name}": curriculum.threshold(0.1, score=s)
        for name, s in {
            "norm_ratio": score.norm_ratio,
            "gradient_norm": score.gradient_norm,
            "batch_agreement": score.batch_agreement,
            "reference_agreement": score.reference_agreement,
            "small_loss": partial(score.small_loss, losses=[1]),
            "similarity": score.similarity,
            "triangle_area": score.triangle_area,
            "learnability": score.learnability,
            "neighbours": partial(score.neighbours, k=2),
            "ema": score.ema(score.agreement, 0.5, capacity=64),
            "a combination": score.combined(score.standardized(score.agreement), score.ranked(score.small_loss)),
        }.items()
    },
    "weighted": curriculum.weighted(curriculum.threshold(0.1), harmony.realign.pcgrad),
    "chain": harmony.chain(curriculum.quantile(schedule.piecewise({0: 1.0, 3: 0.4})), harmony.realign.pcgrad),
}


def random_grams(number, size, k=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(number):
        g = torch.randn(size, k, 3, generator=generator, dtype=torch.float64)
        g[torch.rand(size, k, generator=generator) < 0.1] = 0
        gram = (g @ g.mT).to(dtype)
        yield gram, extras(gram, generator)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", RULES)
def test_a_run_goes_on_after_a_checkpoint_as_if_there_had_been_none(name, k, tmp_path):
    rule = RULES[name]
    state, restored = rule.init(), rule.init()
    for gram, more in random_grams(5, 12, k):
        weights, state = rule.update(gram, state, **more)
        again, restored = rule.update(gram, restored, **more)
        assert torch.equal(weights, again)
        restored = through_a_file(restored, rule.init(), tmp_path)
        torch.save(restored, tmp_path / "state.pt")
        restored = torch.load(tmp_path / "state.pt")  # its default admits no code


@pytest.mark.parametrize("name", RULES)
def test_compiled_without_a_break_is_the_same(name):
    rule = RULES[name]
    torch.compiler.reset()  # every rule compiles the same few lines anew
    update = torch.compile(rule.update, fullgraph=True, backend="aot_eager")
    state, eager = rule.init(), rule.init()
    for gram, more in random_grams(2, 6):
        weights, state = update(gram, state, **more)
        expected, eager = rule.update(gram, eager, **more)
        torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(state, eager)


@pytest.mark.parametrize("name", RULES)
def test_samplewise_rules_do_the_same_part_by_part(name):
    rule = RULES[name]
    if not rule.samplewise:
        return
    for gram, more in random_grams(3, 10):
        whole, _ = rule.update(gram, rule.init(), **more)
        parts = [
            rule.update(gram[part], rule.init(), **{n: x[part] if x.ndim else x for n, x in more.items()})[0]
            for part in (slice(0, 3), slice(3, 10))
        ]
        # Vector units and the remainder they leave may round differently.
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-14, atol=1e-14)


def test_what_is_samplewise():
    samplewise = {name for name, rule in RULES.items() if rule.samplewise}
    assert samplewise == {
        "threshold", "soft_threshold", "agreement_weight", "threshold of norm_ratio", "threshold of gradient_norm",
        "threshold of small_loss", "threshold of similarity", "threshold of triangle_area",
        "threshold of batch_agreement", "threshold of reference_agreement", "threshold of learnability",
        "weighted",
    }  # fmt: skip
    assert not curriculum.threshold(0.0, score=lambda gram, **extras: gram[:, 0, 0]).samplewise  # nobody said it was


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(data=st.data())
def test_any_finite_block_gives_a_factor_between_zero_and_one(dtype, data):
    largest = torch.finfo(dtype).max
    entry = st.floats(-largest, largest) | st.sampled_from([0.0, 1.0, -1.0, largest, -largest, torch.finfo(dtype).tiny])
    entries = data.draw(st.lists(st.tuples(entry, entry, entry), max_size=5))
    gram = torch.tensor([[[a, b], [b, c]] for a, b, c in entries], dtype=torch.float64).to(dtype).reshape(-1, 2, 2)
    assert gram.isfinite().all()
    for name in (*SIMPLE, "hysteresis", "threshold of norm_ratio", "threshold of gradient_norm"):
        rule = RULES[name]
        more = {"ids": torch.arange(len(gram))}
        weights, _ = rule.update(gram, rule.init(), **more)
        assert weights.dtype == dtype and weights.shape == (len(gram), 2) and weights.isfinite().all()
        assert (weights >= 0).all() and ((weights <= 1).all() or name == "renormalized")


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_tracked_and_an_empty_batch_is_a_step(name):
    rule = RULES[name]
    (gram, more), *_ = random_grams(1, 4)
    weights, state = rule.update(gram.requires_grad_(), rule.init(), **more)
    assert not weights.requires_grad
    nothing = {n: x[:0] if x.ndim else x for n, x in more.items()}
    weights, state = rule.update(gram[:0].detach(), state, **nothing)
    assert weights.shape == (0, 2)
    weights, _ = rule.update(gram.detach(), state, **more)
    assert weights.isfinite().all()


# ------------------------------------------------------------------------------------------------------------ schedules
def test_gamma_follows_its_schedule():
    transform = curriculum.threshold(schedule.linear(-0.3, 0.3, steps=10))
    state, seen = transform.init(), []
    for _ in range(10):
        factor, state = factors(transform, [0.01], state)
        seen += factor
    assert seen == [1.0] * 6 + [0.0] * 4  # gamma passes 0.01 between steps 5 and 6


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: schedule.as_schedule(0.4), lambda t: 0.4),
        (lambda: schedule.linear(1.0, 3.0, 8), lambda t: 1 + 2 * min(t / 8, 1)),
        (lambda: schedule.cosine(1.0, 3.0, 8), lambda t: 2 - math.cos(math.pi * min(t / 8, 1))),
        (
            lambda: schedule.cosine(1.0, 0.5, 8, period=0.25),
            lambda t: 0.5 + 0.5 * math.cos(math.pi / 2 * min(t / 8, 1)),
        ),
        (lambda: schedule.polynomial(1.0, 3.0, 8, power=3.0), lambda t: 1 + 2 * min(t / 8, 1) ** 3),
        (
            lambda: schedule.piecewise({5: 2.0, 0: 1.0, 9: -1.0}, interpolate=False),
            lambda t: 1.0 if t < 5 else 2.0 if t < 9 else -1.0,
        ),
        (lambda: schedule.piecewise({0: 3.0}, interpolate=False), lambda t: 3.0),
        (
            lambda: schedule.piecewise({4: 2.0, 0: 1.0, 8: 0.0}),
            lambda t: 1 + t / 4 if t < 4 else 2 - 2 * (min(t, 8) - 4) / 4,
        ),
        (
            lambda: schedule.warmup(schedule.linear(2.0, 0.0, 4), 4),
            lambda t: t / 2 if t < 4 else 2 - (min(t, 8) - 4) / 2,
        ),
        (lambda: schedule.warmup(1.0, 0), lambda t: 1.0),
    ],
)
def test_schedules(make, expected):
    value = make()
    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")
    for t in range(12):
        found = value(torch.tensor(t))
        assert found.ndim == 0 and found.dtype == torch.float64
        assert float(found) == pytest.approx(expected(t), abs=1e-6)
        assert torch.equal(compiled(torch.tensor(t)), found)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: schedule.linear(0, 1, steps=0), "steps must be at least 1; got 0"),
        (lambda: schedule.cosine(0, 1, 5, period=0.75), "period must be above 0 and at most 0.5; got 0.75"),
        (lambda: schedule.polynomial(0, 1, 5, power=0), "power must be above 0; got 0"),
        (lambda: schedule.piecewise({1: 0.0}, interpolate=False), "start at step 0; got {1: 0.0}"),
        (lambda: schedule.piecewise({}), "start at step 0; got {}"),
        (lambda: schedule.warmup(1.0, -1), "steps must be at least 0; got -1"),
        (lambda: curriculum.soft_threshold(0.0, 0.0), "temperature must be above 0; got 0.0"),
        (lambda: curriculum.quantile(1.5), "share must be at least 0 and at most 1; got 1.5"),
        (lambda: curriculum.running_quantile(0.5, decay=1.0), "decay must be at least 0 and below 1; got 1.0"),
        (lambda: curriculum.top_k(-1), "k must be at least 0; got -1"),
        (lambda: curriculum.agreement_weight(-1.0), "power must be at least 0; got -1.0"),
        (lambda: curriculum.hysteresis(0.2, 0.1), "high must be at least 0.2; got 0.1"),
        (lambda: curriculum.renormalized(curriculum.top_k(1), limit=0.5), "limit must be at least 1; got 0.5"),
        (lambda: curriculum.hysteresis(0.1, 0.2, capacity=0), None),
        (lambda: factors(curriculum.hysteresis(0.1, 0.2), [0.1]), r"hysteresis needs ids \(1,\)"),
    ],
)
def test_wrong_numbers_are_refused_where_they_are_given(wrong, message):
    if message is None:
        with pytest.raises(ValueError, match="capacity must be at least 1; got 0"):
            wrong().init()
    else:
        with pytest.raises(ValueError, match=message):
            wrong()


# ---------------------------------------------------------------------------------------------------------------- chain
def run(transform, gram, steps=3):
    state, out = transform.init(), []
    for _ in range(steps):
        weights, state = transform.update(gram, state)
        out.append(weights)
    return torch.stack(out)


@given(cosines)
def test_chain_obeys_identity_and_associativity(values):
    gram = gram_of(values)
    a = harmony.curriculum.threshold(schedule.linear(-1.0, 1.0, 4))
    b, c = harmony.realign.pcgrad, harmony.curriculum.quantile(0.5)
    assert (run(harmony.chain(), gram) == 1).all()
    assert torch.equal(run(harmony.chain(a, harmony.chain()), gram), run(a, gram))
    assert torch.equal(
        run(harmony.chain(harmony.chain(a, b), c), gram), run(harmony.chain(a, harmony.chain(b, c)), gram)
    )
    assert torch.equal(run(harmony.chain(a, b), gram), run(a, gram) * run(harmony.chain(b), gram))


def test_chain_says_what_is_wrong():
    gram = gram_of([0.1])
    with pytest.raises(TypeError, match="must be called first"):
        harmony.chain(lambda gram: harmony.curriculum.threshold()).update(gram, ((),))
    with pytest.raises(TypeError, match="a Transform or a function"):
        harmony.chain(0.3)
    with pytest.raises(ValueError, match=r"\(B, K, K\); got \(2, 2\)"):
        harmony.chain().update(gram[0], ())
    with pytest.raises(ValueError, match="the state is of 0 members, the chain has 1"):
        harmony.chain(harmony.realign.pcgrad).update(gram, ())


def test_extras_reach_every_member():
    seen = {}

    def update(gram, state, **extras):
        seen.update(extras)
        return torch.ones(gram.shape[:2]), state

    chain = harmony.chain(harmony.realign.pcgrad, harmony.chain(harmony.Transform(lambda: (), update)))
    chain.update(gram_of([0.1]), chain.init(), terms="terms", ids="ids")
    assert seen == {"terms": "terms", "ids": "ids"}
