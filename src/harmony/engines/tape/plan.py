"""What each parameter's Gram blocks will cost, two ways, and which one is taken."""

from collections.abc import Sequence
from itertools import accumulate, combinations_with_replacement
from typing import Literal, NamedTuple

from torch import Tensor

from harmony.engines.tape.graph import Output
from harmony.engines.tape.param_tensor import ParamTensor
from harmony.engines.tape.param_use import MatmulUse, OpaqueUse

Choice = Literal["instantiate", "ghost"]
Update = Literal["kept", "tape", "backward"]

FLOPS_PER_BYTE = 12  # that take the time of moving a byte; about the same on a server CPU and on a large GPU
GHOST_EFFICIENCY = 0.7  # many small products run below the speed of few large ones
SMALL = 1 << 14  # parameters with fewer entries share a buffer: a product for each would be all overhead
SHARED = 8  # the share of the memory, one in so many, that such a buffer takes at most


class ParamBlock(NamedTuple):
    """Parameters whose gradients are computed together, side by side in one buffer."""

    params: list[int]
    widths: list[int]  # entries of each
    tensors: list[ParamTensor]  # the common tensors made of them
    label: int  # number of the Gram that is taken over them; -1 for those that are in the update alone
    choice: Choice  # whether their per-sample gradients are computed, or only their products
    kept: int  # entries of the gradients of one group under all losses
    passing: int  # entries that one group takes besides while it is computed
    flops: list[float]  # for each parameter an estimate for the Gram, for one group and all losses
    bytes: list[float]  # memory moved, likewise

    @property
    def counted(self) -> bool:
        """Whether a Gram is taken over these parameters."""
        return self.label >= 0

    @property
    def width(self) -> int:
        return sum(self.widths)

    @property
    def columns(self) -> dict[int, slice]:
        """Where each parameter stands in the buffer."""
        stops = accumulate(self.widths)
        return {p: slice(stop - n, stop) for p, n, stop in zip(self.params, self.widths, stops, strict=True)}

    @property
    def outputs(self) -> set[Output]:
        """The outputs whose gradients are needed."""
        return {output for tensor in self.tensors for _, outputs in tensor.uses for output in outputs}


class Load(NamedTuple):
    """What a group asks for."""

    reached: Sequence[set[int]]  # for each loss, the nodes of the graph that it reaches
    group: int  # samples in a group
    groups: int
    memory: int  # entries of gradients that may live at a time
    pieces: Sequence[int]  # for each node, the piece of the graph it is walked with
    kept: bool  # whether per-sample gradients, once computed, also give the update


def param_blocks(
    tensors: Sequence[ParamTensor], leaves: Sequence[Tensor], label: Sequence[int], load: Load
) -> list[ParamBlock]:
    """Sort parameters, by the number of their Gram or -1, into blocks, and choose how the products are computed."""
    large: list[ParamBlock] = []
    small: dict[tuple[int, int], list[list[ParamBlock]]] = {}
    for params, members in _connected(_split(tensors, label)):
        block = _cheapest(params, [leaves[p].numel() for p in params], members, label[params[0]], load)
        if block.choice == "ghost" or len(params) > 1 or block.width >= SMALL:
            large.append(block)
            continue
        last = max(load.pieces[node] for node, _ in block.outputs)
        shared = small.setdefault((block.label, last), [[]])
        if load.groups * sum(b.kept for b in (*shared[-1], block)) > load.memory // SHARED:
            shared.append([])
        shared[-1].append(block)
    return large + [_joined(blocks) for shared in small.values() for blocks in shared if blocks]


def work(tensors: Sequence[ParamTensor], group: int = 1, reached: Sequence[set[int]] | None = None) -> float:
    """Floating-point operations of the weight gradients of one group: under the losses that reach them, or one."""
    uses = [pair for tensor in tensors for pair in tensor.uses]
    if reached is None:
        return group * sum(use.flops for use, _ in uses)
    return group * sum(use.flops for use, outputs in uses for nodes in reached if outputs[0][0] in nodes)


def _split(tensors: Sequence[ParamTensor], label: Sequence[int]) -> list[ParamTensor]:
    """Tensors that are made of parameters of several labels stand for each label apart."""
    return [
        tensor._replace(params=[p for p in tensor.params if label[p] == number])
        for tensor in tensors
        for number in sorted({label[p] for p in tensor.params}, reverse=True)
    ]


def _connected(tensors: Sequence[ParamTensor]) -> list[tuple[list[int], list[ParamTensor]]]:
    """Parameters that one tensor is made of belong together, with all their tensors."""
    groups: dict[int, tuple[list[int], list[ParamTensor]]] = {}  # by each parameter in it
    for tensor in tensors:
        joined = {id(groups[p]): groups[p] for p in tensor.params if p in groups}.values()
        params = sorted({*tensor.params, *(p for params, _ in joined for p in params)})
        members = [member for _, members in joined for member in members]
        groups |= dict.fromkeys(params, (params, [*members, tensor]))
    return [groups[p] for p in sorted(groups) if p == groups[p][0][0]]


def _joined(blocks: Sequence[ParamBlock]) -> ParamBlock:
    return blocks[0]._replace(
        params=[p for block in blocks for p in block.params],
        widths=[n for block in blocks for n in block.widths],
        tensors=[tensor for block in blocks for tensor in block.tensors],
        kept=sum(block.kept for block in blocks),
        passing=max(block.passing for block in blocks),
        flops=[n for block in blocks for n in block.flops],
        bytes=[n for block in blocks for n in block.bytes],
    )


def _cheapest(params: list[int], widths: list[int], tensors: list[ParamTensor], label: int, load: Load) -> ParamBlock:
    """A block of parameters with the cheaper of the two choices."""
    choice: Choice = "instantiate"
    cost = _instantiate_cost(tensors, len(load.reached) * sum(widths), load)
    ghost = _ghost_cost(tensors, load) if label >= 0 else None
    if ghost is not None and ghost.time < cost.time:
        choice, cost = "ghost", ghost
    n = len(params)
    flops, moved = [cost.flops / n] * n, [cost.bytes / n] * n
    return ParamBlock(params, widths, tensors, label, choice, cost.kept, cost.passing, flops, moved)


class _Cost(NamedTuple):
    flops: float
    bytes: float
    kept: int
    passing: int

    @property
    def time(self) -> float:
        return self.flops + FLOPS_PER_BYTE * self.bytes


def _instantiate_cost(tensors: Sequence[ParamTensor], entries: int, load: Load) -> _Cost:
    flops = work(tensors, load.group, load.reached) + (0 if load.kept else work(tensors, load.group))
    return _Cost(flops, (3.0 if load.kept else 2.0) * 4 * entries, entries, max(_passing(t, load) for t in tensors))


def _passing(tensor: ParamTensor, load: Load) -> int:
    """Entries that one group takes on the way to the gradients of a tensor's parameters."""
    factors = max((1 if isinstance(use, OpaqueUse) else load.group) * use.copied for use, _ in tensor.uses)
    totals = 0 if tensor.is_product else (len(load.reached) + 1) * tensor.shape.numel()
    return factors + totals


def _ghost_cost(tensors: Sequence[ParamTensor], load: Load) -> _Cost | None:
    """The cost of products of rows; None where these do not give the Gram."""
    uses = [(tensor, use, outputs[0][0]) for tensor in tensors for use, outputs in tensor.uses]
    matmuls = [
        (tensor, use, node) for tensor, use, node in uses if isinstance(use, MatmulUse) and tensor.moves is not None
    ]
    kinds = {(use.table, use.sizes[0], use.sizes[2:], _orientation(tensor, use)) for tensor, use, _ in matmuls}
    if len(matmuls) < len(uses) or len(kinds) != 1:
        return None
    _, first, _ = matmuls[0]
    n, _, i, o = first.sizes
    rows = [load.group * sum(use.sizes[1] for _, use, node in matmuls if node in nodes) for nodes in load.reached]
    all_rows = load.group * sum(use.sizes[1] for _, use, _ in matmuls)
    pairs = sum(a * b for a, b in combinations_with_replacement(rows, 2))
    flops = n * (all_rows**2 * (1 if first.table else 2 * i) + 2 * o * pairs) + work(tensors, load.group)
    moved = n * (3 * (all_rows**2 + pairs) + (sum(rows) + 2 * all_rows) * o)
    is_copied = len(matmuls) > 1 or any(use.copied for _, use, _ in matmuls)
    factors = n * (all_rows * i * (not first.table) + sum(rows) * o) if is_copied else 0
    return _Cost(flops / GHOST_EFFICIENCY, 4.0 * moved, 0, 2 * n * all_rows**2 + factors)  # two affinities


def _orientation(tensor: ParamTensor, use: MatmulUse) -> object:
    """Ghost products need one way of reading all the factors: as they stand in the parameter."""
    if tensor.flat or tensor.transposed:
        return use.out_first != tensor.transposed
    return tensor.source  # any rearrangement keeps inner products, as long as there is one
