"""What is made on the way to Gram blocks and update fits into ``Engine.memory``."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import harmony
from harmony.engines.tape.matmul import multiply, product
from harmony.engines.tape.per_sample import PerSampleGradients
from tests import zoo

WITHOUT_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
MEMORY = 2**18
SIZE = 16
IMAGE = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1, groups=2))
CASES = {
    "convolutions": (nn.Sequential(IMAGE, nn.Flatten(), nn.Linear(16 * 256, 4)), (SIZE, 8, 16, 16)),
    "norm": (nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 8)), (SIZE, 64, 256)),
    "tokens": (nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 8)), (SIZE, 100, 128)),
    "recurrence": (nn.GRU(32, 32), (40, SIZE, 32)),
}


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {x.untyped_storage().data_ptr() for x in tensors(args)}
        output = func(*args, **(kwargs or {}))
        fresh = [x for x in tensors(output) if x.untyped_storage().data_ptr() not in inputs]
        self.bytes = max([self.bytes, *(x.numel() * x.itemsize for x in fresh)])
        return output


def tensors(tree):
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("update", ["kept", "tape"])
@pytest.mark.parametrize("name", CASES)
def test_products_fit_into_the_memory(name, update, monkeypatch):
    torch.manual_seed(0)
    module, shape = CASES[name]
    params = {n: p.detach() for n, p in module.named_parameters()}

    def encode(p, x):
        y = functional_call(module, p, (x if name != "recurrence" else x.transpose(0, 1),))
        y = y[0].transpose(0, 1) if isinstance(y, tuple) else y
        return y if y.ndim == 2 else y.mean(1)

    batch = torch.randn(shape) if name != "recurrence" else torch.randn(shape).transpose(0, 1).contiguous()
    largest, outputs = [], []
    original = PerSampleGradients.fused

    def watched(self, group_size, weigh):
        outputs.append(max(g.numel() * g.itemsize for loss in self.grads for g in loss.values()))
        with Largest() as mode:
            result = original(self, group_size, weigh)
        largest.append(mode.bytes)
        return result

    monkeypatch.setattr(PerSampleGradients, "fused", watched)
    harmonizer = harmony.chain(harmony.realign.pcgrad)
    engine = harmony.Engine("tape", update=update, memory=MEMORY, verify="never")
    step = harmony.harmonized_grad(encode, zoo.supervised, harmonizer, engine=engine)
    for _ in range(2):  # the second reuses what the first has taken
        step(params, batch, harmonizer.init())
    # Mixed output gradients are as large as those that the losses sent.
    assert largest[1] <= max(MEMORY, outputs[1])
    assert sum(p.numel() for p in params.values()) * 3 * SIZE * 4 > MEMORY


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, WITHOUT_GPU])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_of_any_precision_are_summed_in_float32(dtype, device):
    """Into a buffer of which each sample's part lies among others', against float64."""
    torch.manual_seed(0)
    left, right = (torch.randn(3, n, 500, device=device).to(dtype) for n in (8, 16))
    expected = left.double() @ right.double().mT
    buffer = torch.full((3, 200), 7.0, device=device)
    out = buffer[:, 40:168].view(3, 8, 16)
    multiply(out, left, right.mT, add=False)
    assert torch.allclose(out.double(), expected, atol=1e-4)
    multiply(out, left, right.mT, add=True)
    assert torch.allclose(out.double(), 2 * expected, atol=1e-4)
    assert bool((buffer[:, :40] == 7).all()) and bool((buffer[:, 168:] == 7).all())
    assert torch.allclose(product(left, right.mT, torch.float32).double(), expected, atol=1e-4)
