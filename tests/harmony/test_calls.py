"""How many operations a step calls, against a plain one: what a GPU waits for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

import harmony

VIEWS = {
    "alias",
    "as_strided",
    "detach",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
}
VIEWS |= {"t", "transpose", "unbind", "unsqueeze", "view", "_reshape_alias", "_unsafe_view", "empty", "new_empty"}
RULE = harmony.chain(harmony.realign.pcgrad)
WIDTH = 32


class Calls(TorchDispatchMode):
    """Counts the operations that compute."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name.removeprefix("aten::") not in VIEWS
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Modalities(nn.Module):
    """Video, sound and text through the same layers."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.Sequential(*(Block() for _ in range(layers)))

    def forward(self, batch):
        return {name: self.layers(x).mean(1) for name, x in batch.items()}


def losses(f):
    pairs = {"va": ("video", "audio"), "vt": ("video", "text")}
    return {name: harmony.losses.info_nce(f[x], f[y], temperature=0.1) for name, (x, y) in pairs.items()}


def calls_of(layers, engine, size):
    """Calls of a plain step, and of a harmonized one."""
    torch.manual_seed(0)
    model = Modalities(layers)
    params = dict(model.named_parameters())
    lengths = {"video": 48, "audio": 32, "text": 16}
    step = harmony.harmonized_grad(lambda p, b: functional_call(model, p, (b,)), losses, RULE, engine=engine)
    counts = []
    for _ in range(3):
        batch = {name: torch.randn(size, t, WIDTH) for name, t in lengths.items()}
        with Calls() as plain:
            torch.stack([term.mean() for term in losses(model(batch)).values()]).sum().backward()
        with Calls() as harmonized:
            step({n: p.detach() for n, p in params.items()}, batch, RULE.init())
        counts.append((plain.count, harmonized.count))
    assert counts[1] == counts[2]  # a step like the one before derives nothing anew
    return torch.tensor(counts[2])


LARGEST = 4 * WIDTH * WIDTH * 2 * 4  # bytes of one sample's gradients of the largest parameter under two losses
OF_A_LAYER = 3 * LARGEST


@pytest.mark.parametrize(
    ("memory", "at_most"),
    [
        (2**30, 1.5),  # all at once
        (8 * LARGEST, 3.0),  # a part of the batch at a time, parameter by parameter
        (4 * LARGEST, 4.0),
    ],
)
def test_calls_for_each_layer_that_is_added(memory, at_most):
    """16 clips, video, sound and text through the same layers; 12.6 MB of gradients under two losses in a layer."""
    engine = harmony.Engine(memory=memory, verify="never")
    plain, harmonized = (calls_of(6, engine, 16) - calls_of(4, engine, 16)).tolist()
    assert harmonized < at_most * plain


def test_calls_do_not_grow_with_the_batch_where_memory_allows():
    engine = harmony.Engine(memory=2**30, verify="never")
    assert calls_of(2, engine, 4)[1] == calls_of(2, engine, 16)[1]
