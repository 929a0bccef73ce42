"""Small architectures, each with a batch and losses, that every engine must differentiate exactly."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import harmony

B = 5


class Case(NamedTuple):
    """An encoder in float64, its losses, parameters and a batch of B samples."""

    encode: Callable[..., Any]
    losses: Callable[..., dict[str, Tensor]]
    params: dict[str, Tensor]
    batch: Any


def contrastive(f: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two losses with in-batch negatives that share the video embedding."""
    return {
        "va": harmony.losses.info_nce(f["video"], f["audio"], temperature=0.5, symmetric=True),
        "vt": harmony.losses.info_nce(f["video"], f["text"], temperature=0.5),
    }


def supervised(f: Tensor) -> dict[str, Tensor]:
    """Three losses on one embedding, without coupling between samples."""
    return {"first": f[:, 0] ** 2, "second": F.softplus(f[:, 1] - f[:, 0]), "norm": f.pow(2).mean(1)}


def from_module(module: nn.Module, batch: Any, losses: Callable[..., Any] = supervised) -> Case:
    """A case out of a module that takes the batch as its only argument."""
    params = {name: p.detach() for name, p in module.named_parameters()}
    return Case(lambda p, x: functional_call(module, p, (x,)), losses, params, batch)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def mlp() -> Case:
    return from_module(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).double(), randn(B, 4))


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


def transformer_train() -> Case:
    return from_module(Pooled().double().train(), randn(B, 5, 8))


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


def shared_backbone() -> Case:
    batch = {"video": randn(B, 4, 6), "audio": randn(B, 3, 6), "text": randn(B, 2, 6)}
    return from_module(SharedBackbone().double(), batch, contrastive)


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


def tied_weights() -> Case:
    return from_module(Tied().double(), torch.randint(7, (B, 3)))


def raw_parameters() -> Case:
    params = {"matrix": randn(3, 4), "gate": randn(4), "table": randn(6, 4)}

    def encode(p: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        x, index = batch
        return torch.einsum("bti,io->bto", x, p["matrix"]).sum(1) * p["gate"].sigmoid() + p["table"][index]

    return Case(encode, supervised, params, (randn(B, 2, 3), torch.randint(6, (B,))))


def partly_reached() -> Case:
    """Parameters that only one loss reaches, and a target that passes through."""
    params = {"trunk": randn(4, 4), "left": randn(4), "right": randn(4)}

    def encode(p: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        h = (batch["x"] @ p["trunk"]).tanh()
        return {"left": h @ p["left"], "right": h @ p["right"], "target": batch["y"]}

    def losses(f: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"left": (f["left"] - f["target"]) ** 2, "right": (f["right"] + f["target"]) ** 2}

    return Case(encode, losses, params, {"x": randn(B, 4), "y": randn(B)})


def single_loss() -> Case:
    return mlp()._replace(losses=lambda f: {"only": f.pow(2).sum(1)})


CASES: dict[str, Callable[[], Case]] = {
    c.__name__: c
    for c in (
        mlp,
        convnet,
        transformer_train,
        transformer_eval,
        shared_backbone,
        tied_weights,
        raw_parameters,
        partly_reached,
        single_loss,
    )
}
