"""Contrastive losses against loops over the definition, with masks, bags and repeated captions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmony.losses import info_nce, mil_nce

seeds = st.integers(0, 10_000)


def by_definition(q, c, t, valid, fits, symmetric):
    """MIL-NCE term by term; q (B, D), c (B, P, D), valid (B, P), fits (B, B, P) with own candidates included."""
    q, c = q / q.norm(dim=-1, keepdim=True), c / c.norm(dim=-1, keepdim=True)
    B, P = valid.shape
    e = {(a, b, p): math.exp(float(q[a] @ c[b, p]) / t) for a in range(B) for b in range(B) for p in range(P)}
    there = [bool(valid[b].any()) for b in range(B)]
    pairs = [(a, b, p) for a, b, p in e if there[a] and valid[b, p]]
    terms = []
    for b in range(B):
        if not there[b]:
            terms.append(0.0)
            continue
        ways = [[i for i in pairs if i[0] == b], [i for i in pairs if i[1] == b]][: 2 if symmetric else 1]
        shares = [sum(e[i] for i in way if fits[i]) / sum(e[i] for i in way) for way in ways]
        terms.append(-sum(math.log(s) for s in shares) / len(shares))
    return torch.tensor(terms, dtype=torch.float64) * B / max(sum(there), 1)


@given(seed=seeds, size=st.integers(1, 5), bag=st.integers(1, 3), symmetric=st.booleans(), masked=st.booleans())
def test_mil_nce_is_its_definition(seed, size, bag, symmetric, masked):
    g = torch.Generator().manual_seed(seed)
    q, c = (torch.randn(*s, 4, dtype=torch.float64, generator=g) for s in ((size,), (size, bag)))
    valid = torch.rand(size, bag, generator=g) > 0.3 if masked else torch.ones(size, bag, dtype=torch.bool)
    extra = torch.rand(size, size, bag, generator=g) > 0.8
    fits = extra | torch.eye(size, dtype=torch.bool)[:, :, None]
    got = mil_nce(q, c, temperature=0.3, symmetric=symmetric, valid=valid, positives=extra)
    torch.testing.assert_close(got, by_definition(q, c, 0.3, valid, fits, symmetric))


@given(seed=seeds, symmetric=st.booleans())
def test_info_nce_is_cross_entropy(seed, symmetric):
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 6, 4, dtype=torch.float64, generator=g)
    logits = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).T / 0.07
    target = torch.arange(6)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    if symmetric:
        expected = (expected + torch.nn.functional.cross_entropy(logits.T, target, reduction="none")) / 2
    torch.testing.assert_close(info_nce(q, k, symmetric=symmetric), expected)


@given(seed=seeds, symmetric=st.booleans())
def test_missing_samples_take_no_part(seed, symmetric):
    """The mean over the batch is the mean over the valid samples alone, and nothing flows to or from the others."""
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 6, 4, dtype=torch.float64, generator=g).requires_grad_().unbind()
    valid = torch.tensor([True, False, True, True, False, True])
    terms = info_nce(q, k, valid=valid, symmetric=symmetric)
    torch.testing.assert_close(terms.mean(), info_nce(q[valid], k[valid], symmetric=symmetric).mean())
    grads = torch.stack(torch.autograd.grad(terms.sum(), (q, k)))
    assert (grads[:, ~valid] == 0).all() and (terms[~valid] == 0).all()


def test_nothing_valid_is_zero_without_nan():
    q = torch.randn(3, 4, requires_grad=True)
    terms = info_nce(q, q.detach(), valid=torch.zeros(3, dtype=torch.bool), symmetric=True)
    (grad,) = torch.autograd.grad(terms.sum(), q)
    assert (terms == 0).all() and (grad == 0).all()


def test_equal_captions_do_not_repel():
    """Two samples with the same caption: marked as positives, their similarity is not pushed down."""
    q, k = torch.eye(4)[:2], torch.eye(4)[:1].repeat(2, 1)
    same = torch.ones(2, 2, dtype=torch.bool)
    torch.testing.assert_close(info_nce(q, k, positives=same), torch.zeros(2))
    assert (info_nce(q, k) > 0.5).all()


def test_temperature_learns_and_half_precision_is_raised():
    t = torch.tensor(0.5, requires_grad=True)
    x = torch.randn(4, 8)
    info_nce(x, x + torch.randn(4, 8), temperature=t).mean().backward()
    assert t.grad.isfinite() and t.grad != 0
    assert info_nce(x.bfloat16(), x.bfloat16()).dtype == torch.float32


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"queries and keys \(B, D\); got \(3, 4\) and \(2, 4\)"):
        info_nce(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"got candidates \(4,\)"):
        mil_nce(torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match=r"candidates \(3, 2, 4\) and valid \(3,\)"):
        mil_nce(torch.ones(3, 4), torch.ones(3, 2, 4), valid=torch.ones(3, dtype=torch.bool))
