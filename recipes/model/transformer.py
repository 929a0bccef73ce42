"""A pre-LN transformer encoder."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Transformer(nn.Module):
    """Pre-LN layers and a final LayerNorm; tokens (b, n, d) -> (b, n, d)."""

    def __init__(self, layers: int, width: int, mlp: int, heads: int, dropout: float, again: bool = False) -> None:
        """Build it; with ``again``, activations of a layer are not kept but computed once more in the backward pass."""
        super().__init__()
        self.again = again
        self.layers = nn.ModuleList(Layer(width, mlp, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode tokens; ``mask`` (b, n) is True where a token may be attended to."""
        for layer in self.layers:
            x = checkpoint(layer, x, mask, use_reentrant=False) if self.again else layer(x, mask)
        return self.norm(x)


class Layer(nn.Module):
    """Self-attention and an MLP, each normalised before and added after."""

    def __init__(self, width: int, mlp: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (b, n, d) -> (b, n, d)."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if mask is None else mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))
