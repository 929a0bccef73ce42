"""On a CUDA device: the numbers of brute force, whatever kernels run there. Skipped where there is none.

``PYTHONPATH=src python -m pytest -m gpu tests/harmony`` needs torch, pytest and hypothesis, and nothing of the recipes.
"""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils import _pytree as pytree

import harmony
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.filterwarnings("ignore:.*has no closed form:UserWarning"),
]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture(autouse=True)
def on_cuda():
    """Everything is made on the device, and float32 is not rounded to TF32."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    with torch.device("cuda"):
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def cast(case, dtype):
    to = lambda x: x.to(dtype) if x.is_floating_point() else x  # noqa: E731
    return case._replace(params=pytree.tree_map(to, case.params), batch=pytree.tree_map(to, case.batch))


def assert_exact(case, truth, tolerance, **options):
    """Gram blocks by parameter, and the update, against gradients {name: (B, K, ...)}."""
    result = harmony.gram_vjp(*case, labels=lambda name: name, **keywords(**options))
    assert all(gram.is_cuda for gram in result.gram.values())
    assert oracle.error_per_block(result.gram, {n: oracle.gram_blocks({n: g}) for n, g in truth.items()}) < tolerance
    weights = torch.rand(next(iter(result.gram.values())).shape[:2], dtype=torch.float64) + 0.5
    expected = {n: torch.einsum("bk,bk...->...", weights, g.double()) for n, g in truth.items()}
    assert oracle.error_per_parameter(result.pullback(weights), expected) < tolerance


@pytest.mark.parametrize("name", zoo.CASES)
def test_the_zoo(name):
    case = zoo.CASES[name]()
    truth = oracle.per_sample_gradients(*case, attribution="activation")
    for dtype, tolerance in TOLERANCE.items():
        assert_exact(cast(case, dtype), truth, tolerance, method="tape")
    assert_exact(case, truth, 1e-9, method="tape", chunk_size=2)


@pytest.mark.parametrize("name", zoo.CASES)
def test_products_with_a_given_gradient(name):
    case = zoo.CASES[name]()
    truth = oracle.per_sample_gradients(*case, attribution="activation")
    direction = {n: torch.randn(p.shape, dtype=torch.float64) for n, p in case.params.items()}
    expected = sum(torch.einsum("bk...,...->bk", g, direction[n]) for n, g in truth.items())
    for dtype, tolerance in TOLERANCE.items():
        products = harmony.gram_vjp(*cast(case, dtype), products_with=direction).products
        assert products.is_cuda and oracle.relative_error(products.double(), expected) < tolerance


@pytest.mark.parametrize("name", zoo.MIXING)
def test_mixed_samples_are_refused(name):
    case = zoo.MIXING[name]()
    with pytest.raises((ValueError, NotImplementedError)):
        harmony.gram_vjp(*case)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layout", [{}, {"bidirectional": True, "num_layers": 2}], ids=["one", "deep"])
def test_recurrent_layers_of_cudnn(kind, layout, packed):
    layer, x = kind(5, 4, batch_first=True, **layout).double(), zoo.randn(6, 7, 5)
    lengths = torch.tensor([7, 3, 5, 2, 7, 4], device="cpu")

    def encode(p, batch):
        x, lengths = batch
        if packed:
            x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = torch.func.functional_call(layer, p, (x,))
        return zoo.over_tokens(pad_packed_sequence(out, batch_first=True, total_length=7)[0] if packed else out)

    params = {name: p.detach() for name, p in layer.named_parameters()}
    case = zoo.Case(encode, zoo.supervised, params, (x, lengths))
    with torch.backends.cudnn.flags(enabled=False):
        truth = oracle.per_sample_gradients(*case, attribution="activation")
    for dtype, tolerance in TOLERANCE.items():
        assert_exact(cast(case, dtype), truth, tolerance)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("causal", [False, True])
def test_kernels_of_attention(backend, causal):
    width, heads = 64, 2
    params = {
        n: torch.randn(3 * width, width) / width**0.5 if n == "qkv" else torch.rand(width) + 0.5
        for n in ("qkv", "norm")
    }
    x = torch.randn(6, 9, width)

    def encode(p, x):
        h = F.rms_norm(x, (width,), p["norm"])
        q, k, v = F.linear(h, p["qkv"]).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        return zoo.over_tokens(
            F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2).float()
        )

    case = zoo.Case(encode, zoo.supervised, params, x)
    truth = oracle.per_sample_gradients(*cast(case, torch.float64)._replace(encode=encode), attribution="activation")
    if backend == SDPBackend.FLASH_ATTENTION:  # of half precision only
        with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(backend):
            assert_exact(case, truth, 0.1, method="tape")
    else:
        with sdpa_kernel(backend):
            assert_exact(case, truth, 1e-4, method="tape")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("update", ["kept", "tape", "backward"])
def test_autocast(update, dtype):
    case = cast(zoo.transformer_train(), torch.float32)
    truth = oracle.per_sample_gradients(*case, attribution="activation")
    with torch.autocast("cuda", dtype), warnings.catch_warnings():
        warnings.simplefilter("error")  # no fallback
        result = harmony.gram_vjp(*case, engine=harmony.Engine(update=update))
        grads = result.pullback(torch.ones(result.gram.shape[:2]))
    assert result.gram.dtype == torch.float32 and {g.dtype for g in grads.values()} == {torch.float32}
    assert oracle.relative_error(result.gram, oracle.gram_blocks(truth)) < 0.1
    assert oracle.error_per_parameter(grads, {n: g.sum((0, 1)) for n, g in truth.items()}) < 0.1


@pytest.mark.parametrize("products_with", [None, "batch", "given"])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"update": "tape"}, {"update": "backward"}])
def test_a_step_waits_for_nothing(options, products_with):
    """After the first steps, which look closer, no step reads a number of the device."""
    encoder = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    params = {n: p.detach() for n, p in encoder.named_parameters()}
    encode = lambda p, x: zoo.over_tokens(torch.func.functional_call(encoder, p, (x,)))  # noqa: E731
    score = {"batch": harmony.score.batch_agreement, "given": harmony.score.reference_agreement}
    rule = harmony.curriculum.threshold(-0.3, score=score.get(products_with, harmony.agreement))
    harmonizer = harmony.chain(rule, harmony.realign.pcgrad)
    options = keywords(verify="never", products_with=params if products_with == "given" else products_with, **options)
    step = harmony.harmonized_grad(encode, zoo.supervised, harmonizer, **options)
    state = harmonizer.init()
    for _ in range(2):
        _, state, _ = step(params, torch.randn(6, 7, 16), state)
    batch = torch.randn(6, 7, 16)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(params, batch, state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
