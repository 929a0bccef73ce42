"""The comparison itself: it sees what is wrong in a small parameter, and what goes past autograd."""

import torch
from torch import nn

from tests.harmony.oracle import gram_blocks, per_sample_gradients
from tests.harmony.third_party.architecture import Architecture, normal, vector
from tests.harmony.third_party.case import case
from tests.harmony.third_party.numbers import Numbers, by_hand, worst


def dense() -> Architecture:
    """A small model of this project's own."""
    return Architecture(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6)), (normal(4),), vector)


def of_sizes(**sizes: float) -> Numbers:
    """Numbers of parameters whose gradients have these sizes."""
    update = {n: torch.full((2,), size, dtype=torch.float64) for n, size in sizes.items()}
    return Numbers({n: x.square().expand(3, 2, 2) for n, x in update.items()}, update)


def test_small_parameter_counts() -> None:
    expected = of_sizes(large=1.0, small=1e-6)
    assert worst(expected, expected, 1e-9)[0] == 0
    assert worst(of_sizes(large=1.0, small=2e-6), expected, 1e-9)[0] > 0.01
    assert worst(of_sizes(large=1.0, small=0.0), expected, 1e-9)[0] > 0.01


def test_rounding_does_not_count() -> None:
    assert worst(of_sizes(large=1.0, none=1e-16), of_sizes(large=1.0, none=0.0), 1e-9)[0] < 1e-9


def test_not_a_number_counts() -> None:
    assert worst(of_sizes(large=float("nan")), of_sizes(large=1.0), 1e-9)[0] == float("inf")


def test_by_hand_is_the_definition() -> None:
    given = case(dense, train=True, dtype=torch.float64)
    grads = per_sample_gradients(given.encode, given.losses, given.params, given.batch, "activation")
    total = torch.stack(list(by_hand(given).gram.values())).sum(0)
    torch.testing.assert_close(total, gram_blocks(grads), rtol=1e-12, atol=1e-15)
