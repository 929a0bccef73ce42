"""Agreement of a pair with those of its neighbours, against plain Python, on grids where there are ties and copies."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import harmony
from harmony import score

entries = st.integers(-1, 1)
"""Few values: many embeddings are equal, and many are equally near."""

pairs = st.lists(st.tuples(st.tuples(entries, entries, entries), st.tuples(entries, entries)), min_size=1, max_size=9)
TINY = 1e-9


def cosine(u, v):
    return sum(a * b for a, b in zip(u, v, strict=True)) / math.hypot(*u) / math.hypot(*v)


def mean_of_nearest(near, alike, k):
    """The mean of ``alike`` over the k largest ``near``, where equals share the last places."""
    ordered = sorted(zip(near, alike, strict=True), reverse=True)
    k = min(k, len(ordered))
    limit = ordered[k - 1][0]
    above = [a for n, a in ordered if n > limit + TINY]
    level = [a for n, a in ordered if abs(n - limit) <= TINY]
    return (sum(above) + (k - len(above)) * sum(level) / len(level)) / k


def by_hand(rows, k):
    """The score of each pair; None without embeddings or others."""
    known = [i for i, (x, y) in enumerate(rows) if any(x) and any(y)]
    result = [None] * len(rows)
    for b in known:
        near, alike = [], []
        for c in known:
            of_x, of_y = cosine(rows[b][0], rows[c][0]), cosine(rows[b][1], rows[c][1])
            if c != b and not (of_x > 1 - TINY and of_y > 1 - TINY):
                near.append(of_x)
                alike.append(of_y)
        if near:
            by_first = mean_of_nearest(near, alike, k) - sum(alike) / len(alike)
            by_second = mean_of_nearest(alike, near, k) - sum(near) / len(near)
            result[b] = (by_first + by_second) / 2
    return result


def scored(first, second, k=5, gram=None):
    gram = torch.eye(2).expand(len(first), 2, 2) if gram is None else gram
    return score.neighbours(gram, first=first, second=second, k=k)


@settings(max_examples=200)
@given(pairs, st.integers(1, 10), st.sampled_from([torch.float32, torch.float64]))
def test_the_score_is_what_is_counted_by_hand(rows, k, dtype):
    first, second = (torch.tensor(side, dtype=dtype) for side in zip(*rows, strict=True))
    values = scored(first, second, k)
    for value, expected in zip(values.tolist(), by_hand(rows, k), strict=True):
        assert math.isnan(value) if expected is None else value == pytest.approx(expected, abs=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_it_knows_no_order_no_scale_and_no_first_modality(seed, k):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(12, d, generator=generator, dtype=torch.float64) for d in (4, 7))
    values, order = scored(x, y, k), torch.randperm(12, generator=generator)
    torch.testing.assert_close(scored(x[order], y[order], k), values[order])
    torch.testing.assert_close(scored(y, x, k), values)
    lengths = torch.rand(12, 1, generator=generator, dtype=torch.float64) + 0.1
    torch.testing.assert_close(scored(x * lengths, y / lengths, k), values)
    turn = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q
    torch.testing.assert_close(scored(x, y @ turn, k), values)  # the modalities share no space
    assert scored(x, y, 11).abs().max() < 1e-12  # all others are neighbours


@given(st.integers(0, 10_000))
def test_who_lacks_a_modality_is_nobodys_neighbour(seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(9, 4, generator=generator) for _ in range(2))
    gram = torch.eye(2).repeat(9, 1, 1)
    expected = scored(x[3:], y[3:], 2)
    gram[0, 1, 1] = 0
    x[1], y[2] = torch.nan, 0
    values = scored(x, y, 2, gram)
    assert values[:3].isnan().all()
    torch.testing.assert_close(values[3:], expected)


def test_wrong_texts_score_below_right_ones():
    torch.manual_seed(0)
    kinds = torch.arange(64) % 8
    video, text = torch.randn(8, 16)[kinds] + 0.3 * torch.randn(64, 16), torch.randn(8, 12)[kinds]
    text += 0.3 * torch.randn(64, 12)
    wrong = torch.arange(64) < 16
    text[wrong] = text[wrong].roll(1, 0)
    values = scored(video, text)
    assert values[wrong].max() < values[~wrong].min()


def test_a_copy_of_a_pair_does_not_speak_for_it():
    video = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0]])
    text = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])  # the first one is wrong
    alone = scored(video, text, 1)
    with_copy = scored(torch.cat([video, video[:1] * 2]), torch.cat([text, text[:1]]), 1)
    torch.testing.assert_close(with_copy[0], alone[0])
    assert with_copy[0] == with_copy[5] and alone.argmin() == 0


def test_few_samples_low_precision_and_a_single_loss():
    assert scored(torch.ones(1, 2), torch.ones(1, 2)).isnan().all()
    assert scored(torch.ones(3, 2), torch.ones(3, 2)).isnan().all()  # copies of one another
    assert scored(torch.ones(0, 2), torch.ones(0, 2)).shape == (0,)
    x, y = torch.randn(6, 3), torch.randn(6, 3)
    for dtype in (torch.float16, torch.bfloat16):
        low = scored(x.to(dtype), y.to(dtype), 2)
        torch.testing.assert_close(low, scored(x.to(dtype).float(), y.to(dtype).float(), 2))
    assert torch.equal(scored(x, y, 2, gram=torch.ones(6, 1, 1)), scored(x, y, 2))


def test_it_says_what_it_needs():
    gram = torch.eye(2).expand(4, 2, 2)
    with pytest.raises(ValueError, match=r"neighbours needs first \(4, D\): call the step with extras="):
        score.neighbours(gram)
    with pytest.raises(ValueError, match=r"second of shape \(4, D\), one for each Gram block; got \(3, 2\)"):
        score.neighbours(gram, first=torch.ones(4, 2), second=torch.ones(3, 2))
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        scored(torch.ones(4, 2), torch.ones(4, 2), 0)


def test_a_step_takes_them_from_the_embeddings():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(6, 4), torch.randn(8, 6)
    rule = harmony.curriculum.quantile(0.5, score=score.neighbours)
    info, _ = harmony.backward(
        model,
        x,
        lambda f: {"left": f[:, 0] ** 2, "right": f[:, 1] ** 2},
        rule,
        extras=lambda f: {"first": f, "second": x},
    )
    values = scored(model(x).detach(), x)
    assert info.weights[:, 0].tolist() == (values >= values.sort(descending=True).values[3]).tolist()
