"""Cosines and agreement from Gram blocks, against explicit vectors."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import harmony


@given(seed=st.integers(0, 10_000), k=st.integers(1, 4))
def test_cosines_are_those_of_the_vectors(seed, k):
    g = torch.randn(6, k, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    gram = g @ g.mT
    expected = F.cosine_similarity(g[:, :, None], g[:, None, :], dim=-1)
    torch.testing.assert_close(harmony.cosine(gram), expected)
    pairs = torch.triu_indices(k, k, offset=1)
    least = expected[:, pairs[0], pairs[1]].amin(1) if k > 1 else torch.full((6,), torch.nan, dtype=torch.float64)
    torch.testing.assert_close(harmony.agreement(gram), least, equal_nan=True)
    assert harmony.defined(gram).tolist() == [k > 1] * 6


def test_only_pairs_of_nonzero_gradients_count():
    g = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 0.0]])
    assert harmony.agreement((g @ g.T)[None]).item() == pytest.approx(0.6)
    g[1] = 0
    gram = (g @ g.T)[None]
    assert harmony.agreement(gram).isnan().item() and not harmony.defined(gram).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("extreme", ["max", "tiny"])
def test_extreme_entries_stay_finite(dtype, extreme):
    x = getattr(torch.finfo(dtype), extreme)
    gram = torch.tensor([[[x, -x], [-x, x]], [[x, 0.0], [0.0, 1.0]]], dtype=dtype)
    cos = harmony.agreement(gram)
    assert cos.isfinite().all() and cos[1] == 0
    torch.testing.assert_close(cos[0].double().item(), -1.0, rtol=0, atol=0.01)


@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_gradients_that_are_not_finite_have_no_agreement(broken):
    gram = torch.tensor([[[broken, broken], [broken, 1.0]]])
    assert harmony.agreement(gram).isnan().item() and not harmony.defined(gram).item()


def test_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match=r"\(B, K, K\); got \(3, 2\)"):
        harmony.agreement(torch.zeros(3, 2))
