"""Nothing waits for the device: every method and rule, on a device that holds no numbers.

A meta tensor knows its shape and type alone. What reads a number (``.item()``, ``if``, boolean indexing) fails there,
and copies from the host, which wait on a real device, are seen by their operation.
"""

from functools import partial

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import harmony
from harmony import curriculum, realign, schedule, score

B = 6


class NoCopies(TorchDispatchMode):
    """Refuse operations that bring a tensor from the host to the device, or back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        # A number on the host may take part in arithmetic on the device: it goes there with the call, not as a copy.
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        tensors = [x for x in pytree.tree_leaves((args, outputs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.ndim or copies}
        assert len(devices) < 2, f"{func} copies between {devices}"
        return outputs


PREFERRING = (realign.upgrad, realign.dualproj, realign.cagrad, realign.aligned_mtl, realign.config)


def preferring(method, gram):
    """A method that prefers the first loss."""
    return method(gram, preference=[1.0, *[0.5] * (gram.shape[1] - 1)])


METHODS = {
    **{name: getattr(realign, name) for name in realign.__all__ if name not in ("gradvac", "pcgrad_random", "random")},
    "pcgrad, another order": lambda gram: realign.pcgrad(gram, order=range(gram.shape[1] - 1, -1, -1)),
    "pcgrad, mean": partial(realign.pcgrad, order="mean"),
    **{f"{f.__name__}, preference": partial(preferring, f) for f in PREFERRING},
}
TRANSFORMS = {
    "pcgrad_random": realign.pcgrad_random(),
    "random": realign.random(),
    "gradvac": realign.gradvac(),
    "gradvac, target": realign.gradvac(schedule.linear(0.0, 0.5, 10)),
    "threshold": curriculum.threshold(schedule.linear(-0.3, 0.0, 10)),
    "soft_threshold": curriculum.soft_threshold(0.0, schedule.piecewise({0: 0.2, 5: 0.1}, interpolate=False)),
    "agreement_weight": curriculum.agreement_weight(2.0),
    "quantile": curriculum.quantile(schedule.piecewise({0: 1.0, 10: 0.5})),
    "running_quantile": curriculum.running_quantile(0.5),
    "top_k": curriculum.top_k(3),
    "hysteresis": curriculum.hysteresis(-0.1, 0.1, capacity=8),
    "renormalized": curriculum.renormalized(curriculum.quantile(0.5)),
    "weighted": curriculum.weighted(curriculum.threshold(0.0), realign.pcgrad),
    "chain": harmony.chain(curriculum.threshold(0.0), realign.pcgrad),
}
SCORES = {
    "pair_cosine": score.pair_cosine,
    "norm_ratio": score.norm_ratio,
    "gradient_norm": score.gradient_norm,
    "batch_agreement": score.batch_agreement,
    "reference_agreement": score.reference_agreement,
    "reference_agreement, one loss": partial(score.reference_agreement, losses=[1]),
    "small_loss": score.small_loss,
    "similarity": score.similarity,
    "triangle_area": score.triangle_area,
    "learnability": score.learnability,
    "neighbours": score.neighbours,
    "negative": score.negative(score.small_loss),
    "combined": score.combined(score.standardized(score.agreement), score.ranked(score.small_loss), weights=[1.0, 2.0]),
    "least": score.least(score.agreement, score.norm_ratio),
    "ema": score.ema(score.agreement, capacity=8),
}
TRANSFORMS |= {f"threshold, {name}": curriculum.threshold(0.0, score=s) for name, s in SCORES.items()}


def on_device(state):
    """A state as it is after its first update: what was computed is on the device, what counts steps is not."""
    return pytree.tree_map(
        lambda x: torch.empty_like(x, device="meta") if x.ndim or x.is_floating_point() else x, state
    )


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("name", [*METHODS, *TRANSFORMS])
def test_no_number_is_read_and_nothing_is_copied(name, k):
    gram = torch.empty(B, k, k, device="meta")
    if name in METHODS:
        with NoCopies():
            weights = METHODS[name](gram)
    else:
        extras = {
            "terms": torch.empty(B, k, device="meta"),
            "batch_products": torch.empty(B, k, device="meta"),
            "batch_square": torch.empty((), device="meta"),
            "reference_products": torch.empty(B, k, device="meta"),
            "reference_square": torch.empty((), device="meta"),
            "similarity": torch.empty(B, device="meta"),
            "triplet": torch.empty(B, 3, 5, device="meta"),
            "weights": torch.empty(B, k, device="meta"),
            "reference_terms": torch.empty(B, k, device="meta"),
            "first": torch.empty(B, 5, device="meta"),
            "second": torch.empty(B, 3, device="meta"),
            "ids": torch.empty(B, device="meta", dtype=torch.int64),
        }
        state = on_device(TRANSFORMS[name].init())
        for _ in range(2):
            with NoCopies():
                weights, state = TRANSFORMS[name].update(gram, state, **extras)
    assert weights.device.type == "meta" and weights.shape == (B, k) and weights.dtype == gram.dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("name", [*METHODS, *TRANSFORMS])
def test_cuda_gives_the_numbers_of_the_cpu(name, k):
    g = torch.randn(64, k, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g[::7, 0] = 0
    extras = {
        "terms": g[:, :, 0].abs(),
        "batch_products": g[:, :, 1],
        "batch_square": g[:, :, 1].sum().abs(),
        "reference_products": g[:, :, 2],
        "reference_square": torch.tensor(1.0, dtype=torch.float64),
        "similarity": g[:, 0, 2],
        "triplet": torch.randn(64, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        "weights": g[:, :, 3].abs(),
        "reference_terms": g[:, :, 4].abs(),
        "first": g[:, 1],
        "second": g[:, 1, :3] + 0.1 * g[:, 1, 3:6],
        "ids": torch.arange(64) % 9,
    }
    found = {}
    for device in ("cpu", "cuda"):
        gram, own = (g @ g.mT).to(device), {n: x.to(device) for n, x in extras.items()}
        transform = harmony.chain(METHODS[name]) if name in METHODS else TRANSFORMS[name]
        state = transform.init()
        for _ in range(2):
            weights, state = transform.update(gram, state, **own)
        found[device] = weights.cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-9, atol=1e-12)


def test_the_pretence_catches_what_waits():
    reads = {
        "item": lambda gram: gram * float(gram[0, 0, 0]),
        "indexing": lambda gram: gram[gram > 0],
        "copy": lambda gram: gram + torch.tensor([1.0, 2.0]).to("meta"),
    }
    for read in reads.values():
        with NoCopies(), pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
            read(torch.empty(B, 2, 2, device="meta"))
