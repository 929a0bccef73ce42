"""Small architectures, each with a batch and losses, that every engine must differentiate exactly.

``CASES`` holds them by name. Sizes differ from B and from one another, so that no axis is found by its size; two cases
are all fives on purpose. ``MIXING`` holds encoders that wrongly mix samples, and that an engine must refuse.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import harmony

B = 5


class Case(NamedTuple):
    """An encoder in float64, its losses, parameters and a batch of B samples."""

    encode: Callable[..., Any]
    losses: Callable[..., dict[str, Tensor]]
    params: dict[str, Tensor]
    batch: Any


CASES: dict[str, Callable[[], Case]] = {}
MIXING: dict[str, Callable[[], Case]] = {}


def case(function: Callable[[], Case]) -> Callable[[], Case]:
    """Put a case into ``CASES`` under the name of its function."""
    CASES[function.__name__] = function
    return function


# Losses


def contrastive(f: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two losses with in-batch negatives that share the video embedding."""
    return {
        "va": harmony.losses.info_nce(f["video"], f["audio"], temperature=0.5, symmetric=True),
        "vt": harmony.losses.info_nce(f["video"], f["text"], temperature=0.5),
    }


def supervised(f: Tensor) -> dict[str, Tensor]:
    """Three losses on one embedding, without coupling between samples."""
    return {"first": f[:, 0] ** 2, "second": F.softplus(f[:, 1] - f[:, 0]), "norm": f.pow(2).mean(1)}


# Ways to write a case


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def over_tokens(y: Tensor) -> Tensor:
    """(B, ..., C) -> (B, C): squashed first, so that the output gradient differs from token to token.

    Inputs must be a few at most: where tanh is one but for rounding, float32 knows nothing of its derivative.
    """
    return y.reshape(len(y), -1, y.shape[-1]).tanh().mean(1)


def over_space(y: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C), squashed first."""
    return y.reshape(*y.shape[:2], -1).tanh().mean(2)


def from_module(module: nn.Module, batch: Any, losses: Callable[..., Any] = supervised) -> Case:
    """A case out of a module that takes the batch as its only argument."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    return Case(lambda p, x: call(module, p, x), losses, params, batch)


def call(module: nn.Module, params: dict[str, Tensor], *args: Tensor) -> Any:
    """``functional_call`` with the buffers in the precision of the parameters, for runs in float32."""
    dtype = next(iter(params.values())).dtype
    buffers = {name: b.to(dtype) if b.is_floating_point() else b for name, b in module.named_buffers()}
    return functional_call(module, (params, buffers), args)


def on(module: nn.Module, batch: Any, pool: Callable[[Tensor], Tensor] = over_tokens) -> Case:
    """A module on a batch (a tuple: several arguments), its output pooled; no parameter stays at a one or a zero."""
    params = {name: p.detach() + 0.3 * randn(*p.shape) for name, p in module.double().named_parameters()}
    args = batch if isinstance(batch, tuple) else (batch,)
    return Case(lambda p, x: pool(call(module, p, *x)), supervised, params, args)


def tokens(module: nn.Module, *shape: int) -> Case:
    """A module on samples of shape (..., C)."""
    return on(module, randn(B, *shape), over_tokens)


def planes(module: nn.Module, *shape: int) -> Case:
    """A module on samples of shape (C, ...)."""
    return on(module, randn(B, *shape), over_space)


def raw(function: Callable[..., Tensor], *batch: Tensor, **params: Tensor) -> Case:
    """A function of the batch and of named raw parameters."""
    return Case(lambda p, x: function(*x, **p), supervised, params, batch)


class Apply(nn.Module):
    """A function as a layer without parameters."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


class SequenceFirst(nn.Module):
    """A module that wants (T, B, C), for batches that are (B, T, C)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return first(self.module(*(x.transpose(0, 1) for x in inputs))).transpose(0, 1)


class First(nn.Module):
    """The first output of a module that has several."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return first(self.module(*inputs))


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


# Small networks: several kinds of layers, of losses, of batches


@case
def mlp() -> Case:
    return from_module(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).double(), randn(B, 4))


@case
def convnet() -> Case:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    return from_module(net.double(), randn(B, 2, 8, 8))


class Pooled(nn.Module):
    """A transformer encoder with a class token and position embeddings as raw parameters."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.encoder(x)[:, 0]


@case
def transformer_train() -> Case:
    return from_module(Pooled().double().train(), randn(B, 5, 8))


@case
def transformer_eval() -> Case:
    return from_module(Pooled().double().eval(), randn(B, 5, 8))


class SharedBackbone(nn.Module):
    """One backbone called on three modalities of different lengths, with raw parameters around it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh())
        self.tokens = nn.ParameterDict({m: nn.Parameter(torch.randn(6)) for m in ("video", "audio", "text")})
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {m: (self.backbone(x + self.tokens[m]) * self.scale).mean(1) for m, x in batch.items()}


@case
def shared_backbone() -> Case:
    batch = {"video": randn(B, 4, 6), "audio": randn(B, 3, 6), "text": randn(B, 2, 6)}
    return from_module(SharedBackbone().double(), batch, contrastive)


@case
def partly_reached() -> Case:
    """Parameters that only one loss reaches, and a target that passes through."""
    params = {"trunk": randn(4, 4), "left": randn(4), "right": randn(4)}

    def encode(p: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h = (batch["x"] @ p["trunk"]).tanh()
        return {"left": h @ p["left"], "right": h @ p["right"], "target": batch["y"]}

    def losses(f: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"left": (f["left"] - f["target"]) ** 2, "right": (f["right"] + f["target"]) ** 2}

    return Case(encode, losses, params, {"x": randn(B, 4), "y": randn(B)})


@case
def single_loss() -> Case:
    return mlp()._replace(losses=lambda f: {"only": f.pow(2).sum(1)})


@case
def never_used() -> Case:
    """A parameter that no output depends on: its gradient is zero."""
    return raw(lambda x, w, spare: over_tokens(x @ w), randn(B, 6, 4), w=randn(4, 3), spare=randn(2))


@case
def only_detached() -> Case:
    """Two parameters: one used twice, once without a gradient, the other only without."""
    return raw(
        lambda x, w, frozen: over_tokens((x @ w) * w.detach().sum(0) + frozen.detach()),
        randn(B, 6, 4), w=randn(4, 3), frozen=randn(3),
    )  # fmt: skip


# Linear maps and convolutions

CASES |= {
    "linear_2d": lambda: tokens(nn.Linear(4, 3), 4),
    "linear_3d": lambda: tokens(nn.Linear(4, 3), 6, 4),
    "linear_4d": lambda: tokens(nn.Linear(4, 3), 2, 6, 4),
    "linear_without_bias": lambda: tokens(nn.Linear(4, 3, bias=False), 6, 4),
    "bilinear": lambda: on(nn.Bilinear(4, 3, 2), (randn(B, 6, 4), randn(B, 6, 3))),
    "prelu": lambda: planes(nn.PReLU(3), 3, 6),
    "conv1d": lambda: planes(nn.Conv1d(3, 4, 3, stride=2, padding=1, dilation=2), 3, 9),
    "conv1d_same": lambda: planes(nn.Conv1d(3, 4, 3, padding="same", dilation=2, bias=False), 3, 7),
    "conv1d_circular": lambda: planes(nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), 3, 7),
    "conv1d_depthwise": lambda: planes(nn.Conv1d(3, 6, 3, groups=3), 3, 8),
    "conv1d_glu": lambda: planes(nn.Sequential(nn.Conv1d(3, 8, 3), nn.GLU(1)), 3, 8),
    "conv2d": lambda: planes(nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), 3, 6, 7),
    "conv2d_grouped": lambda: planes(nn.Conv2d(4, 6, 2, groups=2, bias=False), 4, 3, 6),
    "conv2d_depthwise": lambda: planes(nn.Sequential(nn.Conv2d(3, 3, 2, groups=3), nn.Conv2d(3, 4, 1)), 3, 4, 6),
    "conv3d": lambda: planes(nn.Conv3d(2, 3, (2, 3, 2), stride=(1, 2, 2), padding=(0, 1, 0)), 2, 3, 4, 6),
    "conv3d_grouped": lambda: planes(nn.Conv3d(2, 4, 2, groups=2, dilation=(1, 2, 1)), 2, 3, 4, 3),
    "conv_transpose1d": lambda: planes(nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1), 3, 6),
    "conv_transpose2d": lambda: planes(
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1, dilation=2), 4, 3, 2
    ),
    "conv_transpose3d": lambda: planes(nn.ConvTranspose3d(2, 3, 2, bias=False), 2, 3, 4, 2),
    "patches": lambda: tokens(
        nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), Apply(lambda y: y.flatten(2).mT), nn.Linear(4, 3)), 3, 4, 6
    ),
    "pooling_and_interpolation": lambda: planes(
        nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 4, 2),
            nn.AdaptiveAvgPool2d((2, 3)),
        ), 2, 8, 9,
    ),
}  # fmt: skip


@case
def squeeze_and_excitation() -> Case:
    class Squeeze(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x * super().forward(x.mean((2, 3)))[:, :, None, None].sigmoid()

    net = nn.Sequential(nn.Conv2d(3, 4, 2), Squeeze(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 4)), nn.Conv2d(4, 3, 1))
    return planes(net, 3, 4, 6)


# Normalisation

CASES |= {
    "layer_norm": lambda: tokens(nn.LayerNorm(4), 6, 4),
    "layer_norm_without_bias": lambda: tokens(nn.LayerNorm(4, bias=False), 6, 4),
    "layer_norm_two_axes": lambda: tokens(nn.LayerNorm((6, 4)), 3, 6, 4),
    "layer_norm_plain": lambda: tokens(
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 3)), 6, 3
    ),
    "group_norm": lambda: planes(nn.GroupNorm(2, 4), 4, 3, 6),
    "rms_norm": lambda: tokens(nn.RMSNorm(4), 6, 4),
    "instance_norm": lambda: planes(nn.InstanceNorm1d(4, affine=True), 4, 6),
    "instance_norm_2d": lambda: planes(
        nn.Sequential(nn.Conv2d(2, 4, 2, bias=False), nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 3, 2)), 2, 4, 6
    ),
    "batch_norm_eval": lambda: planes(
        nn.Sequential(nn.Conv2d(3, 4, 2), with_statistics(nn.BatchNorm2d(4)), nn.ReLU(), nn.Conv2d(4, 3, 1)), 3, 4, 6
    ),
    "batch_norm_eval_2d": lambda: tokens(nn.Sequential(nn.Linear(3, 4), with_statistics(nn.BatchNorm1d(4))), 3),
}


def with_statistics(norm: Any) -> nn.Module:
    """Batch normalisation as it is after training: in eval mode, with statistics of its own."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm.eval()


# Embeddings and tied weights


def ids(count: int, *shape: int) -> Tensor:
    return torch.randint(count, (B, *shape))


class Tied(nn.Module):
    """An embedding whose weight is also the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.output = nn.Linear(4, 7, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.hidden(self.embedding(ids)).tanh().mean(1))


@case
def tied_weights() -> Case:
    return from_module(Tied().double(), torch.randint(7, (B, 3)))


CASES |= {
    "embedding": lambda: on(nn.Embedding(7, 4), ids(7, 6)),
    "embedding_padded": lambda: on(nn.Embedding(3, 4, padding_idx=0), ids(3, 2, 6)),
    "embedding_bag": lambda: on(nn.EmbeddingBag(7, 4), ids(7, 6)),
    "table_indexed": lambda: raw(lambda i, w: over_tokens(w[i]), ids(7, 6), w=randn(7, 4)),
    "table_selected": lambda: raw(
        lambda i, w: over_tokens(w.index_select(0, i.flatten()).view(*i.shape, -1)), ids(7, 6), w=randn(7, 4)
    ),
    "tied_autoencoder": lambda: raw(
        lambda x, w, b, c: over_tokens(F.linear(F.linear(x, w, b).tanh(), w.mT, c)),
        randn(B, 6, 4), w=randn(3, 4), b=randn(3), c=randn(4),
    ),
    "tied_convolutions": lambda: raw(
        lambda x, w: over_space(F.conv_transpose1d(F.conv1d(x, w).tanh(), w)), randn(B, 3, 8), w=randn(4, 3, 2)
    ),
}  # fmt: skip


# Attention


def attention(*, padded: bool = False, cross: bool = False, weights: bool = False, **options: Any) -> Case:
    """``nn.MultiheadAttention`` of 6 queries over themselves, or over 7 keys and values of other widths."""
    batch_first = options.get("batch_first", False)
    module = nn.MultiheadAttention(4, 2, **options)

    def attend(x: Tensor, key: Tensor, value: Tensor, padding: Tensor) -> Tensor:
        q, k, v = (x, key, value) if batch_first else (t.transpose(0, 1) for t in (x, key, value))
        k, v = (k, v) if cross else (q, q)
        y = module(q, k, v, key_padding_mask=padding if padded else None, need_weights=weights)[0]
        return y if batch_first else y.transpose(0, 1)

    lengths = torch.tensor([7, 3, 4, 5, 6] if cross else [6, 3, 4, 5, 2])
    padding = torch.arange(7 if cross else 6) >= lengths[:, None]
    net = Apply(attend)
    net.attention = module  # registers the parameters
    return on(net, (randn(B, 6, 4), randn(B, 7, options.get("kdim", 4)), randn(B, 7, options.get("vdim", 4)), padding))


def encoder_layer(*, batch_first: bool = True, **options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 6, batch_first=batch_first, **options)


def decoder_layer(**options: Any) -> nn.Module:
    return nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, **options)


CASES |= {
    "attention_batch_first": lambda: attention(batch_first=True),
    "attention_sequence_first": lambda: attention(),
    "attention_weights": lambda: attention(batch_first=True, weights=True),
    "attention_padded": lambda: attention(batch_first=True, padded=True),
    "attention_padded_sequence_first": lambda: attention(padded=True, weights=True),
    "attention_bias_kv": lambda: attention(batch_first=True, add_bias_kv=True, padded=True),
    "attention_cross": lambda: attention(batch_first=True, cross=True),
    "attention_kdim_vdim": lambda: attention(cross=True, kdim=3, vdim=2, padded=True),
    "encoder_layer_train": lambda: tokens(encoder_layer(dropout=0.0).train(), 7, 4),
    "encoder_layer_eval": lambda: tokens(encoder_layer().eval(), 7, 4),
    "encoder_layer_sequence_first": lambda: tokens(SequenceFirst(encoder_layer(batch_first=False, dropout=0.0)), 7, 4),
    "encoder_layer_sequence_first_eval": lambda: tokens(SequenceFirst(encoder_layer(batch_first=False)).eval(), 7, 4),
    "decoder_layer": lambda: on(decoder_layer(batch_first=True), (randn(B, 6, 4), randn(B, 7, 4))),
    "decoder_layer_sequence_first": lambda: on(SequenceFirst(decoder_layer()), (randn(B, 6, 4), randn(B, 7, 4))),
}


def heads(x: Tensor, count: int) -> Tensor:
    """(..., T, count * d) -> (..., count, T, d)."""
    return x.unflatten(-1, (count, -1)).transpose(-2, -3)


def self_attention(x: Tensor, qkv: Tensor, bias: Tensor | None = None, count: int = 2) -> Tensor:
    """Attention over the last but one axis by one fused projection, with an additive bias (heads, T, T)."""
    q, k, v = (heads(part, count) for part in (x @ qkv).chunk(3, dim=-1))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(-2, -3).flatten(-2)


@case
def sdpa_learned_bias() -> Case:
    def encode(x: Tensor, qkv: Tensor, bias: Tensor) -> Tensor:
        return over_tokens(self_attention(x, qkv, bias))

    return raw(encode, randn(B, 6, 4), qkv=randn(4, 12), bias=randn(2, 6, 6))


@case
def sdpa_causal() -> Case:
    def encode(x: Tensor, wq: Tensor, wk: Tensor) -> Tensor:
        return over_tokens(F.scaled_dot_product_attention(x @ wq, x @ wk, x, is_causal=True))

    return raw(encode, randn(B, 6, 4), wq=randn(4, 3), wk=randn(4, 3))


@case
def relative_position_buckets() -> Case:
    """The bias of T5: a table of buckets of distances, one column per head."""
    distance = torch.arange(6)[:, None] - torch.arange(6)
    buckets = distance.abs().clamp(max=3) + 4 * (distance < 0)

    def encode(x: Tensor, qkv: Tensor, table: Tensor) -> Tensor:
        return over_tokens(self_attention(x, qkv, table[buckets].permute(2, 0, 1)))

    return raw(encode, randn(B, 6, 4), qkv=randn(4, 12), table=randn(8, 2))


@case
def shifted_windows() -> Case:
    """The windows of Swin, (b w1 w2) of 2 x 3 tokens, with one relative bias for all of them."""
    row, column = (i.flatten() for i in torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij"))
    index = (row[:, None] - row + 1) * 5 + column[:, None] - column + 2

    def encode(x: Tensor, qkv: Tensor, table: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        x = torch.roll(x, (1, 1), (1, 2)).view(b, h // 2, 2, w // 3, 3, -1)
        windows = x.permute(0, 1, 3, 2, 4, 5).reshape(b * (h // 2) * (w // 3), 6, -1)
        y = self_attention(windows, qkv, table[index].permute(2, 0, 1))
        return over_tokens(y.view(b, h // 2, w // 3, 2, 3, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1))

    return raw(encode, randn(B, 4, 6, 4), qkv=randn(4, 12), table=randn(15, 2))


@case
def perceiver() -> Case:
    """Learned latents, expanded over the batch, attend to the input."""

    def encode(x: Tensor, latents: Tensor, wk: Tensor, wv: Tensor) -> Tensor:
        queries = latents.expand(len(x), -1, -1)
        return over_tokens(queries + F.scaled_dot_product_attention(queries, x @ wk, x @ wv))

    return raw(encode, randn(B, 6, 4), latents=randn(2, 3), wk=randn(4, 3), wv=randn(4, 3))


@case
def multi_head_einsum() -> Case:
    def encode(x: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, wo: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,hdk->bhtk", x, w) for w in (wq, wk, wv))
        y = torch.einsum("bhts,bhsk->bhtk", torch.einsum("bhtk,bhsk->bhts", q, k).softmax(-1), v)
        return over_tokens(torch.einsum("bhtk,hkd->btd", y, wo))

    wq, wk, wv = (randn(2, 4, 3) for _ in range(3))
    return raw(encode, randn(B, 6, 4), wq=wq, wk=wk, wv=wv, wo=randn(2, 3, 4))


# All sizes are five: batch, tokens and width can only be told apart by what is done with them


class Fives(nn.Module):
    """A position table (tokens, width) that could as well be (batch, width), a linear layer, a transformer layer."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(5, 5))
        self.inner = nn.Linear(5, 5)
        layer = nn.TransformerEncoderLayer(5, 1, 5, dropout=0.0, batch_first=batch_first)
        self.layer = layer if batch_first else SequenceFirst(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.inner(x + self.positions))


CASES |= {
    "fives_batch_first": lambda: tokens(Fives(batch_first=True), 5, 5),
    "fives_sequence_first": lambda: tokens(Fives(batch_first=False), 5, 5),
}


# Raw parameters, element by element


@case
def raw_parameters() -> Case:
    params = {"matrix": randn(3, 4), "gate": randn(4), "table": randn(6, 4)}

    def encode(p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        x, index = batch
        return torch.einsum("bti,io->bto", x, p["matrix"]).sum(1) * p["gate"].sigmoid() + p["table"][index]

    return Case(encode, supervised, params, (randn(B, 2, 3), torch.randint(6, (B,))))


def class_token(x: Tensor, token: Tensor, positions: Tensor) -> Tensor:
    x = torch.cat([token.expand(len(x), 1, -1), x], dim=1)
    return over_tokens(x + positions[: x.shape[1]])


def token_repeated(x: Tensor, token: Tensor, w: Tensor) -> Tensor:
    return over_tokens(torch.cat([x, token.repeat(len(x), 2, 1)], dim=1).cumsum(1) @ w)


def concatenated_to_features(x: Tensor, p: Tensor, w: Tensor) -> Tensor:
    return over_tokens(torch.cat([x, p.expand(*x.shape[:2], -1)], dim=-1) @ w)


def codebook(x: Tensor, w: Tensor, codes: Tensor) -> Tensor:
    """Vector quantisation with a straight-through estimator: which row is read depends on the parameters."""
    h = x @ w
    nearest = codes[(h[:, :, None] - codes).pow(2).sum(-1).argmin(-1)]
    return over_tokens(h + (nearest - h).detach() + nearest)


CASES |= {
    "class_token": lambda: raw(class_token, randn(B, 6, 4), token=randn(4), positions=randn(9, 4)),
    "token_repeated": lambda: raw(token_repeated, randn(B, 6, 4), token=randn(4), w=randn(4, 3) / 5),
    "concatenated_to_features": lambda: raw(concatenated_to_features, randn(B, 6, 4), p=randn(2), w=randn(6, 3)),
    "positions_indexed": lambda: raw(
        lambda x, table: over_tokens(x * table[torch.tensor([3, 0, 0, 2, 5, 3])]), randn(B, 6, 4), table=randn(7, 4)
    ),
    "axial_positions": lambda: raw(
        lambda x, rows, columns: over_tokens(x + rows[:, None] + columns),
        randn(B, 2, 3, 4), rows=randn(2, 4), columns=randn(3, 4),
    ),
    "layer_scale": lambda: raw(
        lambda x, w, scale: over_tokens(x + scale * (x @ w).tanh()), randn(B, 6, 4), w=randn(4, 4), scale=randn(4) / 10
    ),
    "gated_residual_at_zero": lambda: raw(
        lambda x, w, gate: over_tokens(x + gate.tanh() * (x @ w).tanh()), randn(B, 6, 4),
        w=randn(4, 4), gate=torch.zeros((), dtype=torch.float64),
    ),
    "subtracted_from_scalar": lambda: raw(lambda x, p: over_tokens(x * (1 - p)), randn(B, 6, 4), p=randn(4)),
    "dividing_scalar": lambda: raw(lambda x, p: over_tokens(x + 2 / p), randn(B, 6, 4), p=randn(6, 1).exp()),
    "dividing": lambda: raw(lambda x, p: over_tokens(x / p), randn(B, 6, 4), p=randn(4).exp()),
    "temperature": lambda: raw(
        lambda x, w, t: over_tokens(x @ w / t.exp()), randn(B, 6, 4), w=randn(4, 3), t=randn(())
    ),
    "mask_token": lambda: raw(
        lambda x, mask, token, w: over_tokens(torch.where(mask[:, :, None], token, x) @ w),
        randn(B, 6, 4), torch.rand(B, 6) < 0.5, token=randn(4), w=randn(4, 3),
    ),
    "masked_by_parameter": lambda: raw(
        lambda x, low, slope: over_tokens(torch.where(x > low, x, slope * (x - low))),
        randn(B, 6, 4), low=randn(4), slope=randn(()),
    ),
    "maximum": lambda: raw(lambda x, p: over_tokens(torch.maximum(x, p)), randn(B, 6, 4), p=randn(4)),
    "lerp": lambda: raw(
        lambda x, p: over_tokens(torch.lerp(x, x.flip(1), p.sigmoid())), randn(B, 6, 4), p=randn(6, 1)
    ),
    "generalised_mean": lambda: raw(
        lambda x, p: x.abs().add(0.1).pow(p).mean(1).pow(1 / p), randn(B, 6, 4), p=randn(4).exp()
    ),
    "distances_to_prototypes": lambda: raw(
        lambda x, p: over_tokens((x[:, :, None] - p).pow(2).sum(-1)), randn(B, 6, 4), p=randn(3, 4)
    ),
    "codebook": lambda: raw(codebook, randn(B, 6, 4), w=randn(4, 3), codes=randn(7, 3)),
}  # fmt: skip


# Products with raw parameters


def bmm_expanded(x: Tensor, w: Tensor) -> Tensor:
    return over_tokens(torch.bmm(x, w.expand(len(x), -1, -1)))


def bmm_over_time(x: Tensor, w: Tensor) -> Tensor:
    """A matrix of its own for every position: the batch axis of the product is time, not the samples."""
    return over_tokens(torch.bmm(x.transpose(0, 1), w).transpose(0, 1))


CASES |= {
    "einsum_right": lambda: raw(
        lambda x, w: over_tokens(torch.einsum("bti,io->bto", x, w)), randn(B, 6, 4), w=randn(4, 3)
    ),
    "einsum_left": lambda: raw(
        lambda x, w: over_tokens(torch.einsum("oi,bti->bto", w, x)), randn(B, 6, 4), w=randn(3, 4)
    ),
    "einsum_two_parameters": lambda: raw(
        lambda x, u, v: over_tokens(torch.einsum("bti,ir,ro->bto", x, u, v)),
        randn(B, 6, 4), u=randn(4, 2), v=randn(2, 3),
    ),
    "einsum_form": lambda: raw(
        lambda x, y, w: torch.einsum("bi,oij,bj->bo", x, w, y).tanh(), randn(B, 4), randn(B, 3), w=randn(2, 4, 3)
    ),
    "matmul_left": lambda: raw(lambda x, w: over_tokens(w @ x), randn(B, 6, 4), w=randn(3, 6)),
    "matmul_right": lambda: raw(lambda x, w: over_tokens(x @ w), randn(B, 2, 6, 4), w=randn(4, 3)),
    "matmul_both": lambda: raw(lambda x, u, v: over_tokens(u @ x @ v), randn(B, 6, 4), u=randn(2, 6), v=randn(4, 3)),
    "matmul_vector": lambda: raw(lambda x, v: (x @ v).tanh(), randn(B, 6, 4), v=randn(4)),
    "bmm_expanded": lambda: raw(bmm_expanded, randn(B, 6, 4), w=randn(4, 3)),
    "bmm_over_time": lambda: raw(bmm_over_time, randn(B, 6, 4), w=randn(6, 4, 3)),
    "addmm": lambda: raw(
        lambda x, b, w: torch.addmm(b, x, w, beta=2, alpha=0.5).tanh(), randn(B, 4), b=randn(3), w=randn(4, 3)
    ),
    "baddbmm": lambda: raw(
        lambda x, b, w: over_tokens(torch.baddbmm(b, x, w.expand(len(x), -1, -1), alpha=0.5)),
        randn(B, 6, 4), b=randn(6, 3), w=randn(4, 3),
    ),
}  # fmt: skip


# Weights that are computed from parameters


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


def symmetric_linear() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def fused_weight(x: Tensor, w: Tensor) -> Tensor:
    """One parameter cut into the weights of two layers, the second of them reversed."""
    up, down = w[:4], w[4:]
    return over_tokens(F.linear(F.linear(x, up).tanh(), down.flip(0)))


CASES |= {
    "weight_norm_linear": lambda: tokens(parametrizations.weight_norm(nn.Linear(4, 3)), 6, 4),
    "weight_norm_conv": lambda: planes(
        parametrizations.weight_norm(nn.Conv1d(4, 6, 4, padding=2, groups=2), dim=2), 4, 7
    ),
    "orthogonal": lambda: tokens(parametrizations.orthogonal(nn.Linear(4, 3)), 6, 4),
    "spectral_norm": lambda: tokens(parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), 6, 4),
    "symmetric": lambda: tokens(symmetric_linear(), 6, 4),
    "positive_weight": lambda: raw(
        lambda x, w, b: over_tokens(F.linear(x, F.softplus(w), b.exp())), randn(B, 6, 4), w=randn(3, 4), b=randn(3)
    ),
    "weight_standardised": lambda: raw(
        lambda x, w: over_space(F.conv2d(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True))),
        randn(B, 3, 4, 6), w=randn(4, 3, 2, 2),
    ),
    "cosine_classifier": lambda: raw(
        lambda x, w: over_tokens(F.linear(F.normalize(x, dim=-1), F.normalize(w, dim=-1))),
        randn(B, 6, 4), w=randn(3, 4),
    ),
    "low_rank_at_zero": lambda: raw(
        lambda x, w, a, b: over_tokens(F.linear(x, w + b @ a)), randn(B, 6, 4),
        w=randn(3, 4), a=randn(2, 4), b=torch.zeros(3, 2, dtype=torch.float64),
    ),
    "fused_weight": lambda: raw(fused_weight, randn(B, 6, 4), w=randn(7, 4)),
}  # fmt: skip


# Shared over depth, and merged axes


class Looped(nn.Module):
    """One block over and over, with an embedding of the depth."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
        self.depth = nn.Embedding(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        for d in range(3):
            x = x + self.block(x + self.depth(torch.tensor(d)))
        return x


class Merged(nn.Module):
    """A module that sees every token (or frame) as a sample: ``(b t) ...``, or ``(t b) ...``."""

    def __init__(self, module: nn.Module, *, time_first: bool = False) -> None:
        super().__init__()
        self.module, self.time_first = module, time_first

    def forward(self, x: Tensor) -> Tensor:
        if self.time_first:
            return self.merged(x.transpose(0, 1)).transpose(0, 1)
        return self.merged(x)

    def merged(self, x: Tensor) -> Tensor:
        return self.module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def video_net() -> nn.Module:
    frames = nn.Sequential(nn.Conv2d(2, 3, 2, stride=2), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 4))
    return nn.Sequential(Merged(frames), encoder_layer(dropout=0.0))


def two_views(x: Tensor, y: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """Two views of every sample side by side in one batch of 2B, and taken apart again."""
    left, right = F.linear(torch.cat([x, y]), w, b).tanh().chunk(2)
    return (left * right) @ v


def hypotheses(x: Tensor, queries: Tensor, w: Tensor) -> Tensor:
    """Every sample several times, one after the other, each time with another query."""
    repeated = x.repeat_interleave(3, dim=0) + queries.repeat(len(x), 1)
    return over_tokens((repeated @ w).unflatten(0, (len(x), 3)))


@case
def axial_attention() -> Case:
    """Attention along the rows, ``(b h) w d``, and then along the columns, ``(b w) h d``."""
    mlp = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    transpose = Apply(lambda x: x.transpose(1, 2))
    rows, columns = (Merged(encoder_layer(dropout=0.0)) for _ in range(2))
    return tokens(nn.Sequential(rows, transpose, columns, transpose, mlp), 2, 3, 4)


CASES |= {
    "shared_over_depth": lambda: tokens(Looped(), 6, 4),
    "batch_time_merged": lambda: tokens(Merged(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))), 6, 4),
    "time_batch_merged": lambda: tokens(Merged(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), time_first=True), 6, 4),
    "video_frames": lambda: tokens(video_net(), 3, 2, 4, 6),
    "video_frames_time_first": lambda: on(
        Merged(nn.Conv2d(2, 4, 2), time_first=True), randn(B, 3, 2, 4, 6), lambda y: over_space(y.transpose(1, 2))
    ),
    "two_views": lambda: raw(two_views, randn(B, 4), randn(B, 4), w=randn(3, 4), b=randn(3), v=randn(3, 2)),
    "hypotheses": lambda: raw(hypotheses, randn(B, 4), queries=randn(3, 4), w=randn(4, 2)),
}


# Conditioned and computed per sample


def mixture_of_experts(x: Tensor, router: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Every expert on every token, weighted by a soft router."""
    h = torch.einsum("btd,edh->bteh", x, up).relu()
    return over_tokens(torch.einsum("bte,bteh,ehd->btd", (x @ router).softmax(-1), h, down))


class Film(nn.Module):
    """Features scaled and shifted by a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.condition = nn.Linear(4, 3), nn.Linear(2, 6)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale, shift = self.condition(z)[:, None].chunk(2, dim=-1)
        return self.features(x).tanh() * (1 + scale) + shift


class HyperNetwork(nn.Module):
    """The weight of every sample is the output of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Linear(2, 12), nn.Linear(3, 2)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.head(torch.bmm(x, self.weight(z).view(len(z), 4, 3)).tanh())


CASES |= {
    "film": lambda: on(Film(), (randn(B, 6, 4), randn(B, 2))),
    "hypernetwork": lambda: on(HyperNetwork(), (randn(B, 6, 4), randn(B, 2))),
    "mixture_of_experts": lambda: raw(
        mixture_of_experts, randn(B, 6, 4), router=randn(4, 3), up=randn(3, 4, 2), down=randn(3, 2, 4)
    ),
}


# Recurrence

CASES |= {
    "gru": lambda: tokens(First(nn.GRU(3, 4, batch_first=True)), 6, 3),
    "gru_sequence_first": lambda: tokens(SequenceFirst(nn.GRU(3, 4)), 6, 3),
    "lstm": lambda: tokens(First(nn.LSTM(3, 4, batch_first=True)), 6, 3),
    "lstm_sequence_first": lambda: tokens(SequenceFirst(nn.LSTM(3, 2, num_layers=2, bidirectional=True)), 6, 3),
    "rnn": lambda: tokens(First(nn.RNN(3, 4, batch_first=True)), 6, 3),
    "rnn_sequence_first": lambda: tokens(SequenceFirst(nn.RNN(3, 4, num_layers=2)), 6, 3),
}


@case
def leaky_average() -> Case:
    """A diagonal recurrence whose decay is a parameter, unrolled by hand."""

    def encode(x: Tensor, w: Tensor, decay: Tensor) -> Tensor:
        h, states = torch.zeros_like(x[:, 0] @ w), []
        for t in range(x.shape[1]):
            h = decay.sigmoid() * h + x[:, t] @ w
            states.append(h)
        return over_tokens(torch.stack(states, dim=1))

    return raw(encode, randn(B, 6, 4), w=randn(4, 3), decay=randn(3))


# Autograd's own machinery: checkpointing, in-place operations, custom functions, complex numbers


class ReluProduct(torch.autograd.Function):
    """``relu(x @ w)`` with a backward written by hand."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return (x @ w).relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w, output = ctx.saved_tensors
        g = g * (output > 0)
        return g @ w.mT, x.flatten(0, -2).mT @ g.flatten(0, -2)


@case
def checkpointed() -> Case:
    """One block, twice, run again in the backward pass.

    The call of the block with ``p`` is inside the checkpoint: outside, the second run would find the module's own
    parameters again, since the backward pass comes after ``functional_call`` has put them back.
    """
    block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))

    def encode(p: dict[str, Tensor], x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + checkpoint(lambda h: functional_call(block, p, (h,)), x, use_reentrant=False)
        return over_tokens(x)

    return tokens(block, 6, 4)._replace(encode=lambda p, x: encode(p, *x))


def in_place(x: Tensor, w: Tensor, b: Tensor, v: Tensor, token: Tensor, scale: Tensor) -> Tensor:
    h = x @ w
    h += b
    h = h.relu_() @ v
    h[:, 0] = token
    h[:, 2:4].mul_(scale)
    return over_tokens(h)


def fourier_filter(x: Tensor, w: Tensor) -> Tensor:
    """A global filter: learned complex factors in the frequency domain."""
    return over_tokens(torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.view_as_complex(w), n=x.shape[1], dim=1))


CASES |= {
    "checkpointed_function": lambda: raw(
        lambda x, w, v: over_tokens(checkpoint(lambda h, u: (h @ u).tanh(), x, w, use_reentrant=False) @ v),
        randn(B, 6, 4), w=randn(4, 3), v=randn(3, 2),
    ),
    "in_place": lambda: raw(
        in_place, randn(B, 6, 4), w=randn(4, 3), b=randn(3), v=randn(3, 2), token=randn(2), scale=randn(2)
    ),
    "custom_function": lambda: raw(
        lambda x, w, v: over_tokens(ReluProduct.apply(x @ v, w)), randn(B, 6, 4), v=randn(4, 3), w=randn(3, 2)
    ),
    "fourier_filter": lambda: raw(fourier_filter, randn(B, 6, 3), w=randn(4, 3, 2)),
}  # fmt: skip


# Real parameters among complex numbers


def to_complex(x: Tensor) -> Tensor:
    """A real tensor as complex numbers of its precision."""
    return x.to(x.dtype.to_complex())


def parts_over_tokens(z: Tensor) -> Tensor:
    """As ``over_tokens``, of real and imaginary parts side by side."""
    return over_tokens(torch.view_as_real(z).flatten(-2))


def complex_alpha(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Real parameters that are scaled by complex numbers on the way."""
    z = torch.fft.rfft(x, dim=1)
    return parts_over_tokens(torch.sub(torch.add(z, p, alpha=2j), to_complex(q), alpha=1 - 3j))


def complex_alpha_of_products(x: Tensor, w: Tensor, b: Tensor, c: Tensor, v: Tensor) -> Tensor:
    """``addmm`` and ``baddbmm`` with complex factors."""
    w, b, c, v = map(to_complex, (w, b, c, v))
    z = torch.addmm(b, to_complex(x.flatten(0, 1)), w, beta=2j, alpha=1 - 3j).unflatten(0, x.shape[:2])
    return parts_over_tokens(torch.baddbmm(c, z, v.expand(len(x), -1, -1), beta=1 + 1j, alpha=-2j))


def complex_token(x: Tensor, token: Tensor, fill: Tensor, w: Tensor) -> Tensor:
    """A class token, and another one where the mask is."""
    z = torch.fft.rfft(x, dim=1)
    z = torch.where(x[:, : z.shape[1]] > 0, z, torch.view_as_complex(fill)) @ to_complex(w)
    return parts_over_tokens(torch.cat([to_complex(token).expand(len(x), 1, -1), z], dim=1))


CASES |= {
    "complex_linear": lambda: raw(
        lambda x, w, b: over_tokens((torch.fft.rfft(x, dim=1) @ to_complex(w) + b).abs()),
        randn(B, 6, 4), w=randn(4, 3), b=randn(3),
    ),
    "complex_functional_linear": lambda: raw(
        lambda x, w, b: over_tokens(
            torch.view_as_real(F.linear(torch.fft.rfft(x, dim=1), to_complex(w), to_complex(b))).flatten(2)
        ),
        randn(B, 6, 4), w=randn(3, 4), b=randn(3),
    ),
    "complex_of_two": lambda: raw(
        lambda x, re, im: over_tokens(torch.fft.irfft(torch.fft.rfft(x, dim=1) @ torch.complex(re, im), n=6, dim=1)),
        randn(B, 6, 4), re=randn(4, 3), im=randn(4, 3),
    ),
    "complex_einsum": lambda: raw(
        lambda x, w: torch.einsum("bti,tio->bo", torch.fft.fft(x, dim=1), to_complex(w)).abs().tanh(),
        randn(B, 6, 4), w=randn(6, 4, 3) / 9,
    ),
    "complex_bmm": lambda: raw(
        lambda x, w: over_tokens(
            torch.bmm(torch.fft.fft(x, dim=1), to_complex(w).conj().expand(len(x), -1, -1)).abs()
        ),
        randn(B, 6, 4), w=randn(4, 3),
    ),
    "complex_scaled_by_real": lambda: raw(
        lambda x, p, q, r: over_tokens(((torch.fft.fft(x, dim=1) * p + q) / r.exp()).abs()),
        randn(B, 6, 4), p=randn(4), q=randn(6, 1), r=randn(4),
    ),
    "complex_and_real_uses_of_one": lambda: raw(
        lambda x, w: over_tokens((torch.fft.rfft(x @ w, dim=1) @ to_complex(w).mT).abs()), randn(B, 6, 4), w=randn(4, 3)
    ),
    "complex_convolution": lambda: raw(
        lambda x, w: over_space(F.conv1d(torch.fft.fft(x, dim=2), to_complex(w)).abs()[..., None]),
        randn(B, 3, 6), w=randn(4, 3, 2),
    ),
    "complex_rotation": lambda: raw(
        lambda x, w, t: over_tokens(
            torch.view_as_real(
                torch.view_as_complex((x @ w).view(*x.shape[:2], 3, 2)) * torch.polar(t.exp(), t)
            ).flatten(2)
        ),
        randn(B, 6, 4), w=randn(4, 6), t=randn(6, 3),
    ),
    "complex_state_space": lambda: raw(
        lambda x, a, c: over_tokens(
            (to_complex(x)[..., None] * torch.exp(torch.complex(-a.exp(), c))).cumsum(1).real.flatten(2)
        ),
        randn(B, 6, 4), a=randn(4, 3), c=randn(4, 3),
    ),
    "complex_of_samples": lambda: raw(
        lambda x, re, im, w: parts_over_tokens(torch.complex(x @ re, x @ im) @ to_complex(w)),
        randn(B, 6, 4), re=randn(4, 3), im=randn(4, 3), w=randn(3, 2),
    ),
    "complex_alpha": lambda: raw(complex_alpha, randn(B, 6, 4), p=randn(4), q=randn(4)),
    "complex_alpha_of_products": lambda: raw(
        complex_alpha_of_products, randn(B, 6, 4), w=randn(4, 3) / 5, b=randn(3), c=randn(6, 2), v=randn(3, 2) / 5
    ),
    "complex_table": lambda: raw(
        lambda i, re, im: parts_over_tokens(torch.complex(re, im)[i] * (2 - 1j)),
        ids(7, 6), re=randn(7, 4), im=randn(7, 4),
    ),
    "complex_adjoint": lambda: raw(
        lambda x, re, im: parts_over_tokens(torch.fft.rfft(x, dim=1) @ torch.complex(re, im).mH),
        randn(B, 6, 4), re=randn(3, 4), im=randn(3, 4),
    ),
    "complex_token": lambda: raw(
        complex_token, randn(B, 6, 4), token=randn(4), fill=randn(4, 2), w=randn(4, 4)
    ),
    "complex_division": lambda: raw(
        lambda x, p, q, r: parts_over_tokens(torch.complex(p, q) / torch.fft.rfft(x, dim=1) / (r + 3j)),
        randn(B, 6, 4), p=randn(4), q=randn(4), r=randn(4),
    ),
    "complex_wide": lambda: raw(
        lambda x, w, b: over_tokens(F.linear(to_complex(x) * (1 + 1j), to_complex(w), to_complex(b)).abs()),
        randn(B, 2, 140), w=randn(130, 140) / 12, b=randn(130),
    ),
    "complex_wide_tied_to_real": lambda: raw(
        lambda x, w: over_tokens((torch.complex(x @ w, x) @ to_complex(w)).abs()),
        randn(B, 2, 140), w=randn(140, 140) / 12,
    ),
    "complex_transposed_convolution": lambda: raw(
        lambda x, re, im: over_space(
            torch.view_as_real(F.conv_transpose1d(torch.fft.fft(x, dim=2), torch.complex(re, im), groups=2)).flatten(2)
        ),
        randn(B, 4, 5), re=randn(4, 3, 2), im=randn(4, 3, 2),
    ),
    "complex_embeddings": lambda: Case(
        lambda p, x: (torch.fft.rfft(x, dim=1) @ torch.complex(p["re"], p["im"])).mean(1),
        lambda f: {"size": f[:, 0].abs(), "product": (f[:, 1] * f[:, 2]).imag, "spread": (f - f.mean(0)).abs().mean(1)},
        {"re": randn(4, 3), "im": randn(4, 3)}, randn(B, 6, 4),
    ),
}  # fmt: skip


# Encoders that mix samples, between two layers with parameters: no gradient per sample exists


def mixed(mix: Callable[[Tensor], Tensor] | nn.Module, *shape: int) -> Case:
    """A hidden layer of six features, what mixes the samples, and an output layer."""
    mix = mix if isinstance(mix, nn.Module) else Apply(mix)
    net = nn.Sequential(nn.Linear(4, 6), mix, nn.Tanh(), nn.Linear(6, 3), Apply(over_tokens))
    return from_module(net.double(), randn(B, *shape, 4))


def mixed_planes(norm: nn.Module) -> Case:
    return planes(nn.Sequential(nn.Conv2d(3, 4, 2), norm, nn.ReLU(), nn.Conv2d(4, 3, 1)), 3, 4, 6)


def split_in_another_order(x: Tensor) -> Tensor:
    """Merged as ``(t b) d`` and split as ``(b t) d``: the shapes are right and the samples are not."""
    return x.transpose(0, 1).reshape(-1, x.shape[-1]).view(x.shape)


def attention_over_batch() -> Case:
    """A module that wants the sequence first, fed the batch first: it attends over the samples."""
    module = nn.MultiheadAttention(6, 2)
    net = Apply(lambda x: module(x, x, x, need_weights=False)[0])
    net.attention = module
    return mixed(net, 7)


MIXING |= {
    "batch_norm_train": lambda: mixed(nn.BatchNorm1d(6)),
    "batch_norm_2d_train": lambda: mixed_planes(nn.BatchNorm2d(4)),
    "batch_norm_without_statistics": lambda: mixed(nn.BatchNorm1d(6, track_running_stats=False)),
    "batch_norm_2d_without_statistics_eval": lambda: mixed_planes(nn.BatchNorm2d(4, track_running_stats=False).eval()),
    "batch_mean_subtracted": lambda: mixed(lambda x: x - x.mean(0)),
    "softmax_over_batch": lambda: mixed(lambda x: x.softmax(0)),
    "rolled_over_batch": lambda: mixed(lambda x: x + torch.roll(x, 1, 0)),
    "attention_over_batch": attention_over_batch,
    "scaled_by_mean": lambda: mixed(lambda x: x * x.mean()),
    "divided_by_norm": lambda: mixed(lambda x: x / x.norm()),
    "split_in_another_order": lambda: mixed(split_in_another_order, 7),
    "summed_over_batch": lambda: mixed(lambda x: x.cumsum(0)),
    "similarities_of_batch": lambda: mixed(lambda x: (x @ x.mT).softmax(-1) @ x),
}
