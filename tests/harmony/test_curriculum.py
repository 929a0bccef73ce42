"""The threshold curriculum, its schedules, and the laws of chain."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import harmony
from harmony import schedule

cosines = st.lists(st.floats(-1, 1), min_size=1, max_size=8)


def gram_of(cosines, dtype=torch.float64):
    c = torch.tensor(cosines, dtype=dtype)
    return torch.stack([torch.stack([torch.ones_like(c), c], 1), torch.stack([c, torch.ones_like(c)], 1)], 1)


def kept(gamma, cosines):
    transform = harmony.curriculum.threshold(gamma)
    weights, _ = transform.update(gram_of(cosines), transform.init())
    assert weights.shape == (len(cosines), 2) and (weights[:, 0] == weights[:, 1]).all()
    return weights[:, 0].tolist()


@given(cosines, st.floats(-1, 1))
def test_keeps_what_agrees_by_more_than_gamma(values, gamma):
    gamma = float(torch.tensor(gamma, dtype=torch.float32))  # schedules are float32
    assert kept(gamma, values) == [float(c > gamma) for c in values]


@given(cosines, st.floats(-1, 1), st.floats(0, 1))
def test_a_higher_threshold_never_keeps_more(values, gamma, more):
    assert all(high <= low for low, high in zip(kept(gamma, values), kept(gamma + more, values), strict=True))


def test_undefined_samples_are_never_dropped():
    gram = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
    transform = harmony.curriculum.threshold(0.5)
    assert transform.update(gram, transform.init())[0].tolist() == [[1, 1], [0, 0]]


def test_gamma_follows_its_schedule_and_the_state_survives_a_checkpoint():
    transform = harmony.curriculum.threshold(schedule.linear(-0.3, 0.3, steps=10))
    state, seen = transform.init(), []
    gram = gram_of([0.01])
    for _ in range(10):
        weights, state = transform.update(gram, state)
        seen.append(weights[0, 0].item())
        state = type(state)(*(torch.from_numpy(s.numpy().copy()) for s in state))
    assert seen == [1.0] * 6 + [0.0] * 4  # gamma passes 0.01 between steps 5 and 6


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: schedule.constant(0.4), lambda t: 0.4),
        (lambda: schedule.linear(1.0, 3.0, 8), lambda t: 1 + 2 * min(t / 8, 1)),
        (lambda: schedule.cosine(1.0, 3.0, 8), lambda t: 2 - math.cos(math.pi * min(t / 8, 1))),
        (lambda: schedule.quarter_cosine(1.0, 0.5, 8), lambda t: 0.5 + 0.5 * math.cos(math.pi / 2 * min(t / 8, 1))),
        (
            lambda: schedule.warmup(schedule.linear(2.0, 0.0, 4), 4),
            lambda t: t / 2 if t < 4 else 2 - (min(t, 8) - 4) / 2,
        ),
        (lambda: schedule.warmup(schedule.constant(1.0), 0), lambda t: 1.0),
    ],
)
def test_schedules(make, expected):
    value = make()
    for t in range(12):
        assert float(value(torch.tensor(t))) == pytest.approx(expected(t), abs=1e-6)


def test_schedules_refuse_a_way_of_no_length():
    with pytest.raises(ValueError, match="steps >= 1; got 0"):
        schedule.linear(0, 1, steps=0)


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
    b, c = harmony.realign.pcgrad, harmony.curriculum.threshold(-0.5)
    assert (run(harmony.chain(), gram) == 1).all()
    assert torch.equal(run(harmony.chain(a, harmony.chain()), gram), run(a, gram))
    assert torch.equal(
        run(harmony.chain(harmony.chain(a, b), c), gram), run(harmony.chain(a, harmony.chain(b, c)), gram)
    )
    assert torch.equal(run(harmony.chain(a, b), gram), run(a, gram) * run(harmony.chain(b), gram))


def test_chain_says_what_is_wrong():
    gram = gram_of([0.1])
    with pytest.raises(TypeError, match="must be called first"):
        harmony.chain(harmony.curriculum.threshold).update(gram, ((),))
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


def test_a_chain_compiles_without_a_break_and_equals_eager():
    gamma = schedule.warmup(schedule.linear(-0.5, 0.5, steps=4), steps=2)
    chain = harmony.chain(harmony.curriculum.threshold(gamma), harmony.realign.pcgrad)
    update = torch.compile(chain.update, fullgraph=True, backend="aot_eager")
    gram, state, eager = gram_of([-0.9, -0.4, 0.0, 0.3]), chain.init(), chain.init()
    for _ in range(3):
        weights, state = update(gram, state)
        expected, eager = chain.update(gram, eager)
        torch.testing.assert_close(weights, expected)
        assert state == eager
