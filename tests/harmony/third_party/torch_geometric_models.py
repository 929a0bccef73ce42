"""Graph networks of torch_geometric on a batch of small graphs of one size.

The layers take one large graph, so a batch of graphs is put into one, as its loader does: the nodes of all graphs one
behind another, the edges numbered through.
"""

from typing import Any

import torch
import torch_geometric.nn as geometric
from torch import Tensor, nn

from tests.harmony.third_party.architecture import Architecture, B, Builder, normal, vector

NODES, EDGES = 5, 8


class Pooled(nn.Module):
    """Layers on the union of the graphs, and the mean over each graph's nodes."""

    def __init__(self, layers: list[nn.Module], pool: Any = geometric.global_mean_pool, **shared: Any) -> None:
        super().__init__()
        self.layers, self.pool = nn.ModuleList(layers), pool
        self.shared = shared

    def forward(self, nodes: Tensor, edges: Tensor, features: Tensor | None = None) -> Tensor:
        n, size = nodes.shape[:2]
        first = torch.arange(n).mul(size).view(-1, 1, 1)
        union = (edges + first).transpose(0, 1).flatten(1)
        h = nodes.flatten(0, 1)
        extra = () if features is None else (features.flatten(0, 1),)
        for layer in self.layers:
            h = layer(h, union, *extra).relu()
        return self.pool(h, torch.arange(n).repeat_interleave(size))


def graphs(first: Any, second: Any, pool: Any = geometric.global_mean_pool, features: int = 0) -> Architecture:
    """Two layers, and B graphs."""
    edges = torch.randint(NODES, (B, 2, EDGES))
    batch = (normal(NODES, 4), edges) + ((normal(EDGES, features),) if features else ())
    return Architecture(Pooled([first, second], pool), batch, vector)


def mlp(i: int, o: int) -> nn.Module:
    return nn.Sequential(nn.Linear(i, o), nn.ReLU(), nn.Linear(o, o))


g = geometric
BUILDERS: dict[str, Builder] = {
    "GCN": lambda: graphs(g.GCNConv(4, 8), g.GCNConv(8, 6)),
    "SAGE": lambda: graphs(g.SAGEConv(4, 8), g.SAGEConv(8, 6)),
    "SAGE, max": lambda: graphs(g.SAGEConv(4, 8, aggr="max"), g.SAGEConv(8, 6), g.global_max_pool),
    "GAT": lambda: graphs(g.GATConv(4, 4, 2), g.GATConv(8, 6)),
    "GATv2": lambda: graphs(g.GATv2Conv(4, 4, 2, edge_dim=3), g.GATv2Conv(8, 6, edge_dim=3), features=3),
    "GIN": lambda: graphs(g.GINConv(mlp(4, 8), train_eps=True), g.GINConv(mlp(8, 6)), g.global_add_pool),
    "GINE": lambda: graphs(g.GINEConv(mlp(4, 8), edge_dim=3), g.GINEConv(mlp(8, 6), edge_dim=3), features=3),
    "graph transformer": lambda: graphs(g.TransformerConv(4, 4, 2), g.TransformerConv(8, 6)),
    "gated": lambda: graphs(g.GatedGraphConv(8, 2), g.ResGatedGraphConv(8, 6)),
    "Chebyshev": lambda: graphs(g.ChebConv(4, 8, 3), g.ChebConv(8, 6, 2)),
    "edge convolution": lambda: graphs(g.EdgeConv(mlp(8, 8)), g.EdgeConv(mlp(16, 6))),
    "principal neighbours": lambda: graphs(
        g.PNAConv(4, 8, ["mean", "max", "std"], ["identity", "amplification"], torch.tensor([0, 3, 4, 2])),
        g.GraphConv(8, 6),
    ),
    "SGC": lambda: graphs(g.SGConv(4, 8, 2), g.TAGConv(8, 6)),
}
