"""Where the samples lie: encoders that move rows by the data are exact, encoders that mix samples are refused."""

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import harmony
from harmony.engines.errors import HookedTensorError
from tests import zoo
from tests.harmony import oracle
from tests.harmony.options import keywords

EXACT = 1e-9


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def plain_terms(case):
    """The losses of an ordinary pass over the whole batch."""
    return case.losses(case.encode(case.params, case.batch))


def outcome(case, **options):
    """``"refused"``, or the largest error of Gram blocks and update per parameter, against samples encoded alone."""
    truth = oracle.per_sample_gradients(*case, attribution="activation")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = harmony.gram_vjp(*case, **keywords(**options))
            grams = harmony.gram_vjp(*case, labels=lambda name: name, **keywords(**options)).gram
    except (ValueError, NotImplementedError):
        return "refused"
    for name, terms in plain_terms(case).items():
        torch.testing.assert_close(result.values[name], terms.mean().detach())
    weights = torch.rand(result.gram.shape[:2], dtype=result.gram.dtype)
    update = result.pullback(weights)
    errors = [oracle.relative_error(result.gram, oracle.gram_blocks(truth))]
    for name, g in truth.items():
        if g.abs().max() > 0:
            errors.append(oracle.relative_error(grams[name], oracle.gram_blocks({name: g})))
            errors.append(oracle.relative_error(update[name], torch.einsum("bk,bk...->...", weights, g)))
        else:
            assert update[name].abs().max() == 0
    return max(errors)


def assert_tape_is_exact(case):
    assert outcome(case, method="tape") < EXACT
    assert outcome(case, method="tape", update="tape", memory=1) < EXACT
    assert outcome(case, method="auto", group_size=1, chunk_size=3) < EXACT


# Rows that the data move


def lengths_mask(x, lengths):
    return torch.arange(x.shape[1]) < lengths[:, None]


def sorted_and_back(x, lengths, w, v):
    order = lengths.argsort()
    return zoo.over_tokens((x[order] @ w).tanh()[order.argsort()] @ v)


def packed_and_padded(x, lengths, w, v):
    mask = lengths_mask(x, lengths)
    y = torch.zeros(*mask.shape, w.shape[1], dtype=x.dtype)
    y[mask] = (x[mask] @ w).tanh()
    return zoo.over_tokens(y @ v)


def segment_means(x, lengths, w, v):
    rows = (x[lengths_mask(x, lengths)] @ w).tanh()
    return torch.segment_reduce(rows, "sum", lengths=lengths, unsafe=True) @ v


def sparse_pooling(x, lengths, w, v):
    mask = lengths_mask(x, lengths)
    rows = (x[mask] @ w).tanh()
    owner = mask.nonzero()[:, 0]
    indices = torch.stack([owner, torch.arange(len(owner))])
    pool = torch.sparse_coo_tensor(indices, torch.ones(len(owner), dtype=x.dtype), (len(x), len(owner)))
    return torch.sparse.mm(pool, rows) @ v


def added_by_index(x, lengths, w, v):
    mask = lengths_mask(x, lengths)
    rows = (x[mask] @ w).tanh()
    return torch.zeros(len(x), w.shape[1], dtype=x.dtype).index_add(0, mask.nonzero()[:, 0], rows) @ v


def scattered(x, lengths, w, v):
    mask = lengths_mask(x, lengths)
    rows = (x[mask] @ w).tanh()
    owner = mask.nonzero()[:, :1].expand(-1, w.shape[1])
    return torch.zeros(len(x), w.shape[1], dtype=x.dtype).scatter_add(0, owner, rows) @ v


def packed_sequence(x, lengths, w, v):
    lengths = lengths.clamp(min=1)
    packed = nn.utils.rnn.pack_padded_sequence(x @ w, lengths, batch_first=True, enforce_sorted=False)
    h, _ = nn.utils.rnn.pad_packed_sequence(
        packed._replace(data=packed.data.tanh()), batch_first=True, total_length=x.shape[1]
    )
    return zoo.over_tokens(h @ v)


class Unpad(torch.autograd.Function):
    """The valid rows of a padded batch, unknown to every rule."""

    @staticmethod
    def forward(ctx, x, mask):
        ctx.save_for_backward(mask)
        return x[mask]

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return torch.zeros(*mask.shape, grad.shape[-1], dtype=grad.dtype).masked_scatter(mask[..., None], grad), None


class Pad(torch.autograd.Function):
    """Its inverse; the third argument is no tensor."""

    @staticmethod
    def forward(ctx, rows, mask, fill):
        ctx.save_for_backward(mask)
        out = torch.full((*mask.shape, rows.shape[-1]), fill, dtype=rows.dtype)
        out[mask] = rows
        return out

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return grad[mask], None, None


def unpadded_by_a_function(x, lengths, w, v):
    mask = lengths_mask(x, lengths)
    h = Unpad.apply((x @ w).tanh(), mask)
    return zoo.over_tokens(Pad.apply(h @ v, mask, 0.0))


def masked_scatter(x, lengths, w, v):
    mask = lengths_mask(x, lengths)
    rows = (x[mask] @ w).tanh()
    y = torch.zeros(*mask.shape, w.shape[1], dtype=x.dtype).masked_scatter(mask[..., None], rows)
    return zoo.over_tokens(y @ v)


def taken_flat(x, lengths, w, v):
    h = (x @ w).tanh()
    last = (lengths - 1).clamp(min=0) + torch.arange(len(x)) * x.shape[1]
    return h.flatten(0, 1).index_select(0, last) @ v


def by_two_indices(x, lengths, w, v):
    h = (x @ w).tanh()
    return h[torch.arange(len(x)), (lengths - 1).clamp(min=0)] @ v


def block_diagonal(x, lengths, w, v):
    """All tokens in one row, that attend within their sample by a mask."""
    mask = lengths_mask(x, lengths)
    owner = mask.nonzero()[:, 0]
    h = (x[mask] @ w)[None]
    scores = (h @ h.mT).masked_fill(owner[:, None] != owner, -torch.inf)
    h = (scores.softmax(-1) @ h)[0]
    return torch.zeros(len(x), w.shape[1], dtype=x.dtype).index_add(0, owner, h.tanh()) @ v


def block_diagonal_fused(x, lengths, w, v):
    mask = lengths_mask(x, lengths)
    owner = mask.nonzero()[:, 0]
    h = (x[mask] @ w)[None, None]
    h = F.scaled_dot_product_attention(h, h, h, attn_mask=owner[:, None] == owner)[0, 0]
    return torch.zeros(len(x), w.shape[1], dtype=x.dtype).index_add(0, owner, h.tanh()) @ v


BY_DATA = [
    sorted_and_back, packed_and_padded, segment_means, sparse_pooling, added_by_index, scattered, packed_sequence,
    unpadded_by_a_function, masked_scatter, taken_flat, by_two_indices, block_diagonal, block_diagonal_fused,
]  # fmt: skip
LENGTHS = [[3, 3, 3, 3, 3], [3, 2, 4, 1, 5], [5, 1, 2, 4, 3], [1, 1, 1, 1, 1], [5, 5, 5, 5, 5], [2, 5, 5, 2, 1]]


@pytest.mark.parametrize("encode", BY_DATA)
def test_rows_that_the_data_move(encode):
    """Batches of one shape and other lengths, in turn: what was learnt from one batch must not serve for the next."""
    params = {"w": zoo.randn(4, 3), "v": zoo.randn(3, 2)}
    for lengths in [*LENGTHS, *LENGTHS[::-1]]:
        assert_tape_is_exact(zoo.raw(encode, zoo.randn(5, 5, 4), torch.tensor(lengths), **params))


def written(x, mask, w, v, token):
    """A missing modality: its rows hold a token, the others an embedding of what is there."""
    h = token.expand(len(x), -1).clone()
    h[mask] = (x[mask] @ w).tanh()
    return h @ v


def written_into_zeros(x, mask, w, v, token):
    h = x.new_zeros(len(x), w.shape[1])
    h[mask] = (x[mask] @ w).tanh()
    return (h + token) @ v


def written_over_embeddings(x, mask, w, v, token):
    h = (x @ w).sin()
    h[~mask] = (x[~mask] @ w).tanh() * token
    return h @ v


def overwritten_by_a_token(x, mask, w, v, token):
    h = (x @ w).sin()
    h[mask] = token
    return h @ v


@pytest.mark.parametrize("encode", [written, written_into_zeros, written_over_embeddings, overwritten_by_a_token])
def test_masked_writes_for_every_mask(encode):
    params = {"w": zoo.randn(4, 3), "v": zoo.randn(3, 2), "token": zoo.randn(3)}
    for size in (2, 3, 5):
        for mask in itertools.product([False, True], repeat=size):
            case = zoo.raw(encode, zoo.randn(size, 4), torch.tensor(mask), **params)
            assert outcome(case, method="tape") < EXACT, mask


def top_k_experts(x, router, up, down):
    """Tokens are routed to experts, as eager mixtures do: every expert sees rows of any samples, or none."""
    flat = x.flatten(0, 1)
    gates, chosen = (flat @ router).softmax(-1).topk(2, dim=-1)
    out = torch.zeros_like(flat)
    for expert in range(router.shape[1]):
        rows, slot = (chosen == expert).nonzero(as_tuple=True)
        h = (flat[rows] @ up[expert]).relu() @ down[expert]
        out.index_add_(0, rows, h * gates[rows, slot, None])
    return zoo.over_tokens(out.view_as(x))


def test_experts_of_any_batch():
    params = {"router": zoo.randn(4, 6), "up": zoo.randn(6, 4, 5), "down": zoo.randn(6, 5, 4)}
    for size in (2, 3, 4, 5, 8):
        for _ in range(6):
            assert outcome(zoo.raw(top_k_experts, zoo.randn(size, 3, 4), **params), method="tape") < EXACT


# What lies in pieces


def two_modalities(x, y, w, b, v):
    """Tokens of video and of sound, of other numbers, side by side in one layer."""
    rows = torch.cat([x.flatten(0, 1), y.flatten(0, 1)])
    h = F.linear(rows, w, b).tanh()
    f, g = h[: x.shape[0] * x.shape[1]].view(*x.shape[:2], -1), h[x.shape[0] * x.shape[1] :].view(*y.shape[:2], -1)
    return zoo.over_tokens(f @ v) * zoo.over_tokens(g @ v)


def two_modalities_time_first(x, y, w, b, v):
    h = F.linear(torch.cat([x.transpose(0, 1), y.transpose(0, 1)]), w, b).tanh()
    f, g = h.split([x.shape[1], y.shape[1]])
    return f.sum(0) * g.mean(0) @ v


def one_of_two_counts(x, y, w, b, v):
    """The other part of the rows is thrown away."""
    h = F.linear(torch.cat([y[:, 0], x[:, 0]]), w, b).tanh()
    return h[len(x) :] @ v


def class_rows(x, y, w, b, v):
    """A class row that depends on parameters alone, beside the tokens."""
    rows = torch.cat([b.expand(len(x), 1, -1), x @ w.mT], 1).tanh()
    return (rows[:, :1] + rows[:, 1:]).sum(1) @ v


def class_row_for_each_frame(x, y, w, b, v):
    """As TimeSformer has it: one class row per clip, repeated over the frames, averaged again."""
    clip = b.expand(len(x), 1, -1)
    frames = (x @ w.mT).flatten(0, 1)[:, None]
    rows = torch.cat([clip.repeat(1, x.shape[1], 1).reshape(-1, 1, w.shape[0]), frames], 1)
    rows = (rows.softmax(1) * rows).tanh()
    tokens = rows[:, 1:].reshape(len(x), -1, w.shape[0])
    return (rows[:, 0].view(len(x), -1, w.shape[0]).mean(1) + tokens.sum(1)) @ v


def flipped_twice(x, y, w, b, v):
    return (F.linear(x.flip(0), w, b).tanh() @ v).flip(0).sum(1)


def rolled_and_back(x, y, w, b, v):
    return (F.linear(x.roll(1, 0), w, b).tanh() @ v).roll(-1, 0).sum(1)


def every_other_row(x, y, w, b, v):
    h = F.linear(torch.stack([x[:, 0], y[:, 0]], 1).flatten(0, 1), w, b).tanh()
    return (h[::2] * h[1::2]) @ v


@pytest.mark.parametrize("encode", [
    two_modalities, two_modalities_time_first, one_of_two_counts, class_rows, class_row_for_each_frame, flipped_twice,
    rolled_and_back, every_other_row,
])  # fmt: skip
@pytest.mark.parametrize("size", [2, 4, 5])
def test_rows_in_pieces(encode, size):
    params = {"w": zoo.randn(3, 4), "b": zoo.randn(3), "v": zoo.randn(3, 2)}
    case = zoo.raw(encode, zoo.randn(size, 4, 4), zoo.randn(size, 2, 4), **params)
    assert outcome(case, method="tape") < EXACT


def test_a_parameter_with_as_many_rows_as_samples():
    """Nothing is taken for a sample's own because its length happens to be B."""
    for size in (2, 3, 4, 6):
        case = zoo.raw(
            lambda x, w, p, q, t: zoo.over_tokens(((x @ w) * p + t[torch.arange(x.shape[1])]) @ (q * 0.5)),
            zoo.randn(size, size, size),
            w=zoo.randn(size, size), p=zoo.randn(size, size), q=zoo.randn(size, size), t=zoo.randn(size, size),
        )  # fmt: skip
        assert_tape_is_exact(case)


# What is made of parameters, and has as many rows as there are samples


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("encode", [
    lambda x, p, w: (torch.stack([p + row for row in x]) @ w).tanh().mean(1),
    lambda x, p, w: ((torch.stack([p + row for row in x]) + x) @ w).tanh().mean(1),
    lambda x, p, w: torch.stack([p[0] * row[0] for row in x]) @ w,
    lambda x, p, w: (torch.cat([p[None] * part for part in x.split(1)]) @ w).mean(1),
    lambda x, p, w: torch.stack([p[0] @ w] * len(x)),
    lambda x, p, w: torch.cat([(p[0] @ w)[None]] * len(x)) + 0 * x[:, 0, :3],
    lambda x, p, w: x[:, 0] @ w + torch.stack([p[1] @ w] * len(x)),
])  # fmt: skip
def test_rows_of_parameters_put_together_for_each_sample(encode):
    case = zoo.raw(encode, zoo.randn(5, 6, 4), p=zoo.randn(6, 4), w=zoo.randn(4, 3))
    for options in ({}, {"update": "tape"}, {"attribution": "activation", "memory": 1}):
        assert outcome(case, method="auto", **options) < EXACT


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("encode", [
    lambda x, z, w: (z + x[:, 0]) @ w,
    lambda x, z, w: (z * x[:, 0]) @ w,
    lambda x, z, w: (z / x[:, 0].abs()) @ w,
    lambda x, z, w: torch.einsum("bti,bi,io->bo", x, z, w),
    lambda x, z, w: z @ w,
    lambda x, z, w: z.flatten()[:12].as_strided((5, 4), (2, 1)) @ w,
    lambda x, z, w: (z.flatten().unfold(0, 4, 4) @ w) * x[:, 0, :3],
])  # fmt: skip
def test_a_parameter_with_a_row_for_each_sample(encode):
    """No sample can be encoded alone: the truth is in the graph of the whole batch."""
    params, x = {"z": zoo.randn(5, 4), "w": zoo.randn(4, 3)}, zoo.randn(5, 6, 4)
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    f = encode(x, **leaves)
    truth = {name: [] for name in params}
    embeddings = f.detach().requires_grad_()
    for term in zoo.supervised(embeddings).values():
        (cotangent,) = torch.autograd.grad(term.mean(), embeddings, retain_graph=True)
        rows = [torch.autograd.grad(f, list(leaves.values()), own, retain_graph=True, materialize_grads=True)
                for own in torch.diag_embed(cotangent.mT).permute(1, 2, 0)]  # fmt: skip
        for name, of_loss in zip(params, zip(*rows, strict=True), strict=True):
            truth[name].append(torch.stack(of_loss))
    truth = {name: torch.stack(of_losses, 1) for name, of_losses in truth.items()}
    case = zoo.raw(encode, x, **params)
    grams = harmony.gram_vjp(*case, labels=lambda name: name, engine=harmony.Engine(method="tape")).gram
    expected = {name: oracle.gram_blocks({name: g}) for name, g in truth.items()}
    assert oracle.error_per_parameter(grams, expected) < EXACT


# What mixes samples, though no gradient shows it today


def gated(x, gate, w, v):
    h = x @ w
    return torch.where(gate[:, None], h.roll(1, 0), h) @ v


def behind_relu(x, gate, w, v):
    h = x @ w
    return (h + (h.roll(1, 0) * gate.any() - 1000 * ~gate.any()).relu()) @ v


def maximum_of_neighbours(x, gate, w, v):
    h = (x @ w).tanh()
    return torch.maximum(h, h.roll(1, 0) - 10 * ~gate.any()) @ v


def clamped_by_the_batch(x, gate, w, v):
    h = (x @ w).tanh()
    return h.clamp(max=h.detach().amax() + 1 + 0 * h.amax()) @ v


def cumulative(x, gate, w, v):
    return (x @ w).logcumsumexp(0) @ v


def deviation(x, gate, w, v):
    h = x @ w
    return (h - h.mean(0, keepdim=True)) @ v


def similarity(x, gate, w, v):
    h = x @ w
    return (h @ h.mT).softmax(-1) @ h @ v


def flipped_rows(x, gate, w, v):
    h = x @ w
    return (h + h.flip(0)) @ v


def indexed_neighbours(x, gate, w, v):
    h = x @ w
    return (h + h[(torch.arange(len(x)) + 1) % len(x)]) @ v


def sorted_columns(x, gate, w, v):
    return (x @ w).sort(0).values @ v


def running_maximum(x, gate, w, v):
    return (x @ w).cummax(0).values @ v


class Centred(torch.autograd.Function):
    """Subtracts the batch's mean where it is told to."""

    @staticmethod
    def forward(ctx, h, active):
        ctx.active = bool(active)
        return h - h.mean(0) if ctx.active else h.clone()

    @staticmethod
    def backward(ctx, grad):
        return (grad - grad.mean(0) if ctx.active else grad), None


def function_that_mixes_at_times(x, gate, w, v):
    return Centred.apply(x @ w, gate.any()) @ v


MIXING = [
    gated, behind_relu, maximum_of_neighbours, clamped_by_the_batch, cumulative, deviation, similarity, flipped_rows,
    indexed_neighbours, sorted_columns, running_maximum, function_that_mixes_at_times,
]  # fmt: skip


@pytest.mark.parametrize("encode", MIXING)
@pytest.mark.parametrize("method", ["tape", "auto"])
def test_mixing_gives_no_wrong_number_dead_or_alive(encode, method):
    """Dead in the first batches, alive in a later one of the same graph: refused, or exact as long as it is dead."""
    params = {"w": zoo.randn(4, 3), "v": zoo.randn(3, 2)}
    for active in (False, False, False, True, False, True):
        gate = torch.zeros(6, dtype=torch.bool)
        gate[2] = active
        case = zoo.raw(encode, zoo.randn(6, 4), gate, **params)
        result = outcome(case, method=method)
        assert result == "refused" or result < EXACT
        always = encode in (cumulative, deviation, similarity, flipped_rows, indexed_neighbours, sorted_columns,
                            running_maximum)  # fmt: skip
        if active or always:
            alone = torch.cat([encode(x[None], g[None], **params) for x, g in zip(*case.batch, strict=True)])
            if not torch.allclose(alone, encode(*case.batch, **params)):
                assert result == "refused"


@pytest.mark.parametrize("shape", [(5, 6, 4), (5, 4, 4)])
def test_attention_over_the_batch_from_its_first_layer_on(shape):
    """The inputs need no gradient, so that none shows that the keys and values are those of all samples."""

    def encode(x, wq, wk, wv, v):
        q, k, values = (x @ w for w in (wq, wk, wv))
        q, k, values = (h.transpose(0, 1) for h in (q, k, values))
        return F.scaled_dot_product_attention(q, k, values).transpose(0, 1).sum(1) @ v

    case = zoo.raw(
        encode, zoo.randn(*shape), wq=zoo.randn(4, 3), wk=zoo.randn(4, 3), wv=zoo.randn(4, 3), v=zoo.randn(3, 2)
    )
    for method in ("tape", "auto"):
        assert outcome(case, method=method) == "refused"


def test_a_hook_that_swallows_nan_hides_nothing():
    def encode(x, w, v):
        h = x @ w
        mixed = h - h.mean(0)
        mixed.register_hook(torch.nan_to_num)
        return mixed @ v

    params = {"w": zoo.randn(4, 3), "v": zoo.randn(3, 2)}
    case = zoo.Case(
        lambda p, x: encode(x, p["w"], p["v"]) if p["w"].requires_grad else (x @ p["w"]) @ p["v"],
        zoo.supervised, params, zoo.randn(5, 4),
    )  # fmt: skip
    with pytest.raises(HookedTensorError):
        harmony.gram_vjp(*case, engine=harmony.Engine(method="tape"))
    with pytest.raises(ValueError, match="mixes the samples"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        harmony.gram_vjp(*case)


def test_a_hook_that_mixes_gradients_is_found():
    def encode(p, x):
        h = (x @ p["w"]).tanh()
        if h.requires_grad:
            h.grad_fn.register_hook(lambda inputs, outputs: (inputs[0] + inputs[0].flip(0),))
        return h @ p["v"]

    params = {"w": zoo.randn(4, 3), "v": zoo.randn(3, 2)}
    case = zoo.Case(encode, zoo.supervised, params, zoo.randn(6, 4))
    with pytest.raises(ValueError, match="carries gradients of some samples to the places of others"):
        harmony.gram_vjp(*case, engine=harmony.Engine(verify="always"))


def sequence_first(x, module):
    """A recurrent layer that takes the batch for time."""
    return module(x)[0].sum(1)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recurrence_over_the_batch(kind, dtype):
    net = nn.Sequential(nn.Linear(4, 3), kind(3, 3)).to(dtype)
    params = {name: p.detach() for name, p in net.named_parameters()}
    encode = lambda p, x: torch.func.functional_call(net, p, (x,))[0].sum(1)  # noqa: E731
    losses = lambda f: {"a": f[:, 0] ** 2, "b": f[:, 1:].sum(1)}  # noqa: E731
    for method in ("tape", "auto"):
        with warnings.catch_warnings(), pytest.raises((ValueError, NotImplementedError)):
            warnings.simplefilter("ignore")
            harmony.gram_vjp(
                encode, losses, params, torch.randn(5, 6, 4, dtype=dtype), engine=harmony.Engine(method=method)
            )
