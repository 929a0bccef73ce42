"""What each parameter's Gram blocks will cost, two ways, and which one is taken."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from harmony.engines.tape.param_tensor import ParamTensor
from harmony.engines.tape.param_use import MatmulUse, OpaqueUse

Choice = Literal["instantiate", "ghost"]
Update = Literal["kept", "tape", "backward"]

FLOPS_PER_BYTE = 12
"""Floating-point operations that take the time of moving a byte; about the same on a server CPU and on a large GPU."""

GHOST_EFFICIENCY = 0.7
"""Many small products run below the speed of few large ones."""


class ParamBlock(NamedTuple):
    """Parameters whose gradients are computed together, side by side in one buffer.

    Attributes:
        params: Their numbers.
        offsets: Where each begins in the buffer.
        width: Entries in all.
        targets: The shared tensors made of them.
        label: Number of the Gram that is taken over them; -1 for those that are in the update alone.
        choice: Whether their per-sample gradients are computed, or only their products.
        scratch: Entries that one group takes while it is computed.
        flops: For each parameter an estimate for the Gram, for one group and all losses.
        bytes: Memory moved, likewise.
    """

    params: list[int]
    offsets: list[int]
    width: int
    targets: list[ParamTensor]
    label: int
    choice: Choice
    scratch: int
    flops: list[float]
    bytes: list[float]

    @property
    def counted(self) -> bool:
        """Whether a Gram is taken over these parameters."""
        return self.label >= 0


Cost = tuple[float, float]
"""Floating-point operations, bytes."""

SMALL = 1 << 14  # parameters with fewer entries share one buffer: a product for each would be all overhead


def pieces(
    targets: Sequence[ParamTensor], leaves: Sequence[Tensor], label: Sequence[int], reached: Sequence[set[int]],
    group: int, kept: bool,
) -> list[ParamBlock]:  # fmt: skip
    """Sort parameters into pieces, and choose for each how its products are computed.

    Args:
        targets: The shared tensors of the recorded parameters.
        leaves: All parameters.
        label: For each of them the number of its Gram, or -1.
        reached: For each loss, the nodes of the graph that it reaches.
        group: Samples in a group.
        kept: Whether per-sample gradients, once computed, also give the update.
    """
    parts = _connected(_split(targets, label))
    small: dict[int, list[tuple[list[int], list[ParamTensor], Cost]]] = {}
    scratch_of_small: dict[int, int] = {}
    found = []
    for params, members in parts:
        own = label[params[0]]
        alone = len(params) > 1 or leaves[params[0]].numel() >= SMALL
        ghost = _ghost_cost(members, reached, group) if own >= 0 else None
        plain = _instantiate_cost(members, leaves, params, reached, group, kept)
        scratch = len(reached) * sum(leaves[p].numel() for p in params) + _isolated_scratch(members)
        if ghost is not None and _time(ghost) < _time(plain):
            found.append(_piece([(params, members, ghost)], leaves, own, "ghost", _ghost_scratch(members, group)))
        elif alone:
            found.append(_piece([(params, members, plain)], leaves, own, "instantiate", scratch))
        else:
            small.setdefault(own, []).append((params, members, plain))
            scratch_of_small[own] = scratch_of_small.get(own, 0) + scratch
    return found + [
        _piece(together, leaves, own, "instantiate", scratch_of_small[own]) for own, together in small.items()
    ]


def work(targets: Sequence[ParamTensor], group: int = 1, reached: Sequence[set[int]] | None = None) -> float:
    """Floating-point operations of the weight gradients of one group: under the losses that reach them, or one."""
    uses = [pair for target in targets for pair in target.uses]
    if reached is None:
        return group * sum(use.flops for use, _ in uses)
    return group * sum(use.flops for use, outputs in uses for nodes in reached if outputs[0][0] in nodes)


def _split(targets: Sequence[ParamTensor], label: Sequence[int]) -> list[ParamTensor]:
    """Shared tensors that are made of parameters of several labels stand for each label apart."""
    return [
        target._replace(params=[p for p in target.params if label[p] == number])
        for target in targets
        for number in sorted({label[p] for p in target.params}, reverse=True)
    ]


def _connected(targets: Sequence[ParamTensor]) -> list[tuple[list[int], list[ParamTensor]]]:
    """Parameters that one shared tensor is made of belong together."""
    groups: dict[int, tuple[list[int], list[ParamTensor]]] = {}
    group_of: dict[int, int] = {}
    for number, target in enumerate(targets):
        joined = [groups.pop(g) for g in sorted({group_of[p] for p in target.params if p in group_of})]
        params = sorted({*target.params, *(p for others, _ in joined for p in others)})
        groups[number] = params, [member for _, members in joined for member in members] + [target]
        group_of |= dict.fromkeys(params, number)
    return sorted(groups.values(), key=lambda group: group[0])


def _piece(
    parts: Sequence[tuple[list[int], list[ParamTensor], Cost]],
    leaves: Sequence[Tensor],
    label: int,
    choice: Choice,
    scratch: int,
) -> ParamBlock:
    params, offsets, targets, width = [], [], [], 0
    flops, moved = [], []
    for numbers, members, cost in parts:
        targets += members
        for p in numbers:
            params.append(p)
            offsets.append(width)
            width += leaves[p].numel()
            flops.append(cost[0] / len(numbers))
            moved.append(cost[1] / len(numbers))
    return ParamBlock(params, offsets, width, targets, label, choice, scratch, flops, moved)


def _time(cost: Cost) -> float:
    return cost[0] + FLOPS_PER_BYTE * cost[1]


def _instantiate_cost(
    targets: Sequence[ParamTensor],
    leaves: Sequence[Tensor],
    params: Sequence[int],
    reached: Sequence[set[int]],
    group: int,
    kept: bool,
) -> Cost:
    flops = work(targets, group, reached) + (0 if kept else work(targets, group))
    entries = len(reached) * sum(leaves[p].numel() for p in params)
    return flops, (3.0 if kept else 2.0) * 4 * entries


def _ghost_cost(targets: Sequence[ParamTensor], reached: Sequence[set[int]], group: int) -> Cost | None:
    """None where products of rows do not give the Gram."""
    uses = [(target, use) for target in targets for use, _ in target.uses]
    matrices = [(target, use) for target, use in uses if isinstance(use, MatmulUse)]
    if len(matrices) != len(uses) or any(target.moves is None for target, _ in uses):
        return None
    if len({(use.table, use.sizes[0], use.sizes[2:], _orientation(target, use)) for target, use in matrices}) != 1:
        return None
    n, _, i, o = matrices[0][1].sizes
    rows = [
        group * sum(u.sizes[1] for t in targets for u, at in t.uses if isinstance(u, MatmulUse) and at[0][0] in nodes)
        for nodes in reached
    ]
    rows_of_all = group * sum(use.sizes[1] for _, use in matrices)
    pairs = [rows[k] * rows[l] for k in range(len(rows)) for l in range(k, len(rows))]
    affinity = 1 if matrices[0][1].table else 2 * i
    flops = n * (rows_of_all**2 * affinity + 2 * o * sum(pairs)) + work(targets, group)  # the last is the update
    moved = n * (3 * (rows_of_all**2 + sum(pairs)) + (sum(rows) + 2 * rows_of_all) * o)
    return flops / GHOST_EFFICIENCY, 4.0 * moved


def _ghost_scratch(targets: Sequence[ParamTensor], group: int) -> int:
    """Entries of two affinities between all rows of a group."""
    uses = [use for target in targets for use, _ in target.uses if isinstance(use, MatmulUse)]
    return 2 * uses[0].sizes[0] * (group * sum(use.sizes[1] for use in uses)) ** 2


def _isolated_scratch(targets: Sequence[ParamTensor]) -> int:
    """Entries of the gradients that one group sends through ops without a closed form: those of a whole batch."""
    return sum(use.site.output.numel() for target in targets for use, _ in target.uses if isinstance(use, OpaqueUse))


def _orientation(target: ParamTensor, use: MatmulUse) -> object:
    """Ghost products need one way of reading all the factors: as they stand in the parameter."""
    if target.flat or target.transposed:
        return use.out_first != target.transposed
    return target.source  # any rearrangement keeps inner products, as long as there is one
