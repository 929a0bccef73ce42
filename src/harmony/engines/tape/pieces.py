"""Where a graph with checkpointed regions is cut, so that it is walked a piece at a time, from the outputs inwards."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from harmony.engines.tape.graph import Graph, Output
from harmony.engines.tape.plan import ParamBlock

Sources = dict[int, list[Output]]
"""For each op that holds samples, after all that use it, the outputs with samples that it is made of."""


class Piece(NamedTuple):
    """Ops that the passes of all losses go through before they go on to the next piece."""

    nodes: set[int]
    reads: list[tuple[int, tuple[str, ...]]]  # ops that use parameters, and what is read of them
    needed: set[Output]  # outputs whose gradients the uses of parameters ask for
    leaving: set[Output]  # outputs of later pieces, where gradients wait until these are walked
    blocks: list[ParamBlock]  # parameters that no later piece uses
    later: set[Output]  # what the parameters of later pieces ask for


class Cut(NamedTuple):
    """A graph cut into pieces."""

    numbers: list[int]  # the piece of each node, counted from the outputs
    sources: Sources

    @classmethod
    def whole(cls, graph: Graph) -> "Cut":
        """One piece."""
        nodes = range(len(graph.nodes))
        return cls([0] * len(nodes), {node: [] for node in nodes})

    @property
    def is_whole(self) -> bool:
        return max(self.numbers) == 0

    def walk(self, blocks: Sequence[ParamBlock]) -> list[Piece]:
        """The pieces, as far as some parameters are used in them."""
        numbers = self.numbers
        uses = [pair for block in blocks for tensor in block.tensors for pair in tensor.uses]
        needed = {output for _, outputs in uses for output in outputs}
        leading = {node for node, _ in needed}  # to what is needed
        for node in reversed(self.sources):
            if any(source in leading for source, _ in self.sources[node]):
                leading.add(node)
        last = [max(numbers[node] for node, _ in block.outputs) for block in blocks]
        pieces = []
        for number in range(1 + max(last, default=0)):
            nodes = {node for node in self.sources if numbers[node] == number}
            behind = {source for node in nodes for source in self.sources[node] if source[0] in leading}
            later = [block.outputs for block, n in zip(blocks, last, strict=True) if n > number]
            piece = Piece(
                nodes,
                reads=[(outputs[0][0], use.reads) for use, outputs in uses if outputs[0][0] in nodes],
                needed={output for output in needed if output[0] in nodes},
                leaving={source for source in behind if numbers[source[0]] > number},
                blocks=[block for block, n in zip(blocks, last, strict=True) if n == number],
                later=set().union(*later),
            )
            pieces.append(piece)
        return pieces


def cut_between_regions(graph: Graph, outputs: Iterable[Output], uses: Collection[tuple[int, int]]) -> Cut:
    """Cut a graph between the regions that are computed again; it stays whole where there are none.

    Every region lies in one piece. Other ops go with the nearest region behind them, if they can: what leaves a piece
    is then a sum of residuals, and not its terms.

    Args:
        graph: The graph.
        outputs: The embeddings.
        uses: Ops that use something common to all samples, with the number of the input.
    """
    regions = graph.regions()
    if not any(region is not None for region in regions):
        return Cut.whole(graph)
    sources = _sources(graph, outputs, set(uses))
    ranks = _ranks(sources, regions)
    depths: dict[int, int] = {}  # counted from the inputs
    for node in reversed(sources):
        behind = max((depths[source] for source, _ in sources[node]), default=0)
        depths[node] = ranks.get(regions[node], behind)
    inside = {node for node in sources if regions[node] is not None}
    rest, numbers, number = set(sources), [0] * len(regions), 0
    for depth in range(max(depths.values()), 0, -1):
        part = _apart(sources, {node for node in rest if depths[node] < depth}, inside)
        if part is not None:
            number, rest = number + 1, part
            for node in rest:
                numbers[node] = number
    return Cut(numbers, sources)


def _sources(graph: Graph, outputs: Iterable[Output], uses: Collection[tuple[int, int]]) -> Sources:
    sources: dict[int, list[Output]] = {}
    reached = {node for node, _ in outputs}
    for node in graph.order():
        if node in reached:
            inputs = enumerate(graph.inputs[node])
            sources[node] = [source for slot, source in inputs if source is not None and (node, slot) not in uses]
            reached.update(source for source, _ in sources[node])
    return sources


def _ranks(sources: Sources, regions: Sequence[int | None]) -> dict[int | None, int]:
    """Numbers of the regions from 1 on, each after those behind it; regions within each other have one number."""
    reach: dict[int, int] = {}  # the regions behind each region, itself among them, as bits
    behind: dict[int, int] = {}  # those behind each node
    for node in reversed(sources):
        region = regions[node]
        behind[node] = 0 if region is None else 1 << region
        for source, _ in sources[node]:
            behind[node] |= behind[source]
        if region is not None:
            reach[region] = reach.get(region, 0) | behind[node]
    for via in reach:
        for region in reach:
            if reach[region] >> via & 1:
                reach[region] |= reach[via]
    ranked = sorted(set(reach.values()), key=lambda bits: (bits.bit_count(), bits))
    return {region: 1 + ranked.index(bits) for region, bits in reach.items()}


def _apart(sources: Sources, rest: set[int], inside: Collection[int]) -> set[int] | None:
    """The nodes behind a cut, so that no gradient that waits there goes on to another; None where that cannot be.

    A pass that collects gradients at two outputs, one behind the other, runs on from the first to the second. Where the
    first is that of an op in no region, this op is moved to the front of the cut.
    """
    while True:
        waiting = {source for node in sources.keys() - rest for source, _ in sources[node] if source in rest}
        leading: set[int] = set()  # nodes from which a pass goes on to where gradients wait
        for node in reversed(sources):
            if node in rest and any(source in waiting or source in leading for source, _ in sources[node]):
                leading.add(node)
        moved = waiting & leading
        if not moved:
            return rest
        for node in reversed(sources):
            if node in rest and not moved.isdisjoint(source for source, _ in sources[node]):
                moved.add(node)
        if not moved.isdisjoint(inside):
            return None
        rest = rest - moved
