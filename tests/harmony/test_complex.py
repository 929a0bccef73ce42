"""Complex numbers between real parameters and the losses: inner products are those of the real parts and imaginary."""

import pytest
import torch

import harmony
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords
from tests.harmony.test_tape import truth_of

COMPLEX = [name for name in zoo.CASES if name.startswith("complex")]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def feature_gradients(case, attribution):
    """Gradients (B, K, entries) of the embeddings, as pairs of real numbers, by plain autograd."""
    parts = torch.view_as_real(case.encode(case.params, case.batch)).requires_grad_()
    size, rows = len(parts), []
    for term in case.losses(torch.view_as_complex(parts)).values():
        if attribution == "activation":
            rows.append(torch.autograd.grad(term.mean(), parts, retain_graph=True)[0].flatten(1))
            continue
        per_term = [torch.autograd.grad(t / size, parts, retain_graph=True)[0] for t in term]
        own = [g[b].flatten() if attribution == "anchor" else g.flatten() for b, g in enumerate(per_term)]
        rows.append(torch.stack(own))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("attribution", ["activation", "anchor", "loss"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_gram_of_complex_features(attribution, chunk_size):
    case = zoo.CASES["complex_embeddings"]()
    rows = feature_gradients(case, attribution)
    options = {"space": "features", "attribution": attribution, "chunk_size": chunk_size}
    gram = harmony.gram_vjp(*case, **keywords(**options)).gram
    assert oracle.relative_error(gram, rows @ rows.mT) < 1e-12


def test_products_of_complex_features_with_the_batch():
    case = zoo.CASES["complex_embeddings"]()
    rows = feature_gradients(case, "activation")
    products = harmony.gram_vjp(*case, space="features", products_with="batch").products
    assert oracle.relative_error(products, rows @ rows.sum((0, 1))) < 1e-12


@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"memory": 1}, {"method": "vmap"}])
@pytest.mark.parametrize("name", COMPLEX)
def test_products_of_real_parameters_with_the_batch(name, options):
    case = zoo.CASES[name]()
    truth = truth_of(case)
    expected = sum(g.flatten(2) @ g.flatten(2).sum((0, 1)) for g in truth.values())
    products = harmony.gram_vjp(*case, products_with="batch", **keywords(**options)).products
    assert oracle.relative_error(products, expected) < 1e-9


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match=r"must be a floating-point tensor; got torch.complex64"):
        harmony.gram_vjp(
            lambda p, x: (x @ p["w"]).abs(), zoo.supervised, {"w": torch.ones(4, 3) * 1j}, torch.ones(5, 4)
        )
