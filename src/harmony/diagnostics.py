"""What the engine does with an encoder, and whether it does it right: ``plan`` and ``check``."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony import cotangents
from harmony.distributed.shares import alone
from harmony.engines.chunks import Options, encode_batch, narrow
from harmony.engines.encoded import Cotangent, Encoded, Trace, by_label, pull_mixed
from harmony.engines.precision import inner_products
from harmony.engines.random import snapshot
from harmony.engines.tape.errors import UnsupportedError
from harmony.engines.tape.fill import Storage
from harmony.engines.tape.graph import dtypes
from harmony.engines.tape.plan import Piece
from harmony.engines.tape.trace import Run, reached_by, record, trace_of
from harmony.engines.tape.trace import plan as plan_pieces
from harmony.engines.tape.use import Isolated
from harmony.engines.trace import Inputs, trace_loop, trace_vmap
from harmony.gram import PyTree, Wrt, check_options, choose_params, flatten

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


class Row(NamedTuple):
    """What is done for one parameter.

    Attributes:
        name: The parameter.
        shape: Its shape.
        ops: The ops that use it, or something made of it, with how often.
        choice: ``"instantiate"``, its per-sample gradients are computed; ``"ghost"``, only their products are;
            ``"isolated"``, an op has no closed form and runs its own backward once a sample; ``"update only"``, it is
            not part of the Gram; ``"unused"``.
        flops: Floating-point operations for the Gram, for one group of samples, estimated.
        bytes: Memory moved, likewise.
    """

    name: str
    shape: tuple[int, ...]
    ops: str
    choice: str
    flops: float
    bytes: float


class Plan(NamedTuple):
    """How Gram blocks and update are computed; print it.

    Attributes:
        engine: ``"tape"``, ``"vmap"`` or ``"loop"``.
        reason: Why.
        update: Where the update comes from: ``"kept"``, ``"tape"`` or ``"backward"``.
        rows: One for each parameter; none where the engine is not the tape.
    """

    engine: str
    reason: str
    update: str
    rows: list[Row]

    def __str__(self) -> str:
        """A table."""
        lines = [f"engine {self.engine}: {self.reason}", f"update {self.update}"]
        if not self.rows:
            return "\n".join(lines)
        cells = [("parameter", "shape", "ops", "choice", "MFLOP", "MB")] + [
            (r.name, "x".join(map(str, r.shape)), r.ops, r.choice, f"{r.flops / 1e6:.2f}", f"{r.bytes / 1e6:.2f}")
            for r in self.rows
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(6)]
        lines += [
            "  ".join(c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in cells
        ]
        return "\n".join(line.rstrip() for line in lines)


class Check(NamedTuple):
    """Largest deviations of the tape from the reference, relative to the largest entry.

    Attributes:
        gram: Of the Gram blocks.
        update: Of the update, the worst parameter.
        embeddings: Of the embeddings of a sample alone from those in the batch; None where the encoder is random.
        reference: What was compared with.
    """

    gram: float
    update: float
    embeddings: float | None
    reference: str


def plan(
    encode: Callable[[PyTree, PyTree], PyTree],
    losses: Callable[..., Mapping[str, Tensor]],
    params: PyTree,
    batch: PyTree,
    *,
    wrt: Wrt | None = None,
    loss_params: PyTree | None = None,
    **options: Any,
) -> Plan:
    """Show how a harmonized step with these options would be computed, and why; nothing is trained.

    Encodes the batch (its first chunk) and evaluates the losses once.

    Args:
        encode: As in [gram_vjp][harmony.gram_vjp].
        losses: As in [gram_vjp][harmony.gram_vjp].
        params: As in [gram_vjp][harmony.gram_vjp].
        batch: As in [gram_vjp][harmony.gram_vjp].
        wrt: As in [gram_vjp][harmony.gram_vjp].
        loss_params: As in [gram_vjp][harmony.gram_vjp].
        **options: ``method``, ``update``, ``memory``, ``group_size``, ``chunk_size``.

    Returns:
        A [Plan][harmony.Plan].

    Raises:
        ValueError: As [gram_vjp][harmony.gram_vjp].

    Examples:
        >>> import torch, harmony
        >>> params = {"w": torch.ones(3, 2), "b": torch.zeros(2)}
        >>> encode = lambda p, x: torch.addmm(p["b"], x, p["w"])
        >>> losses = lambda f: {"left": f[:, 0], "right": f[:, 1]}
        >>> print(harmony.plan(encode, losses, params, torch.ones(4, 3)))
        engine tape: the autograd graph has a closed form for every use of a parameter
        update kept
        parameter  shape  ops      choice       MFLOP    MB
        w          3x2    Addmm 1  ghost         0.00  0.00
        b          2      Addmm 1  instantiate   0.00  0.00
    """
    settings = Options(**options)
    check_options(settings)
    inputs = flatten(encode, params, batch, wrt)
    if settings.method in ("vmap", "loop"):
        return Plan(settings.method, "it was asked for", "backward", [])
    encoded = encode_batch(inputs, settings, per_sample=False)
    first = slice(0, min(settings.chunk_size or inputs.size, inputs.size))
    per_loss = [narrow(c, first) for c in _cotangents(encoded, inputs, losses, loss_params)]
    inputs = inputs.narrow(first)
    try:
        run = record(inputs)
    except UnsupportedError as error:
        if settings.method == "tape":
            raise
        name, _ = _reference(inputs)
        engine = "vmap" if name == "vmap" else "loop"
        return Plan(engine, f"the tape cannot record this encoder: {error}", "backward", [])
    update, pieces = plan_pieces(run, inputs, settings, reached_by(run, per_loss), fused=True)
    piece_of = {p: piece for piece in pieces for p in piece.params}
    rows = [_row(p, name, inputs, piece_of.get(p)) for p, name in enumerate(inputs.names)]
    isolated = [row.name for row in rows if row.choice == "isolated"]
    reason = (
        f"the autograd graph has no closed form for what uses {', '.join(isolated)}"
        if isolated
        else "the autograd graph has a closed form for every use of a parameter"
    )
    return Plan("tape", reason, update, rows)


def check(
    encode: Callable[[PyTree, PyTree], PyTree],
    losses: Callable[..., Mapping[str, Tensor]],
    params: PyTree,
    batch: PyTree,
    *,
    wrt: Wrt | None = None,
    loss_params: PyTree | None = None,
    **options: Any,
) -> Check:
    """Compare the tape with the reference engine on two samples of a batch, and raise where they differ.

    Run it once on a new encoder. It also finds what no gradient shows: samples whose embeddings depend on their
    neighbours. An encoder that draws random numbers (dropout) cannot be run twice with one mask; it is compared with
    ordinary backward passes through the same graph, one for each sample and loss.

    Args:
        encode: As in [gram_vjp][harmony.gram_vjp].
        losses: As in [gram_vjp][harmony.gram_vjp].
        params: As in [gram_vjp][harmony.gram_vjp].
        batch: As in [gram_vjp][harmony.gram_vjp]; all of it is encoded once.
        wrt: As in [gram_vjp][harmony.gram_vjp].
        loss_params: As in [gram_vjp][harmony.gram_vjp].
        **options: ``update``, ``memory``.

    Returns:
        A [Check][harmony.Check].

    Raises:
        ValueError: The two differ by more than rounding; names what differs most.
        NotImplementedError: The tape cannot record the encoder.

    Examples:
        >>> import torch, harmony
        >>> params = {"w": torch.randn(3, 2)}
        >>> losses = lambda f: {"left": f[:, 0], "right": f[:, 1]}
        >>> harmony.check(lambda p, x: x @ p["w"], losses, params, torch.ones(4, 3)).reference
        'vmap'
    """
    settings = Options(**options)
    check_options(settings)
    inputs = flatten(encode, params, batch, wrt)
    before = snapshot(inputs.params)
    run = record(inputs)
    trace = trace_of(run, inputs, settings, Storage())
    random = not before.equal(snapshot(inputs.params))
    per_loss = _cotangents(trace, inputs, losses, loss_params)
    recorded = trace.per_sample(per_loss, False)
    gram = recorded.gram(1)
    two = slice(0, min(2, inputs.size))
    weights = torch.zeros_like(gram[:, :, 0])
    weights[two] = torch.linspace(0.5, 1.5, weights[two].numel()).to(weights).view_as(weights[two])
    update = recorded.combine(weights)

    embeddings = 0.0
    if random:
        reference = "backward passes through the same graph"
        expected_gram = _one_by_one(trace, per_loss, two, inputs.label)
        expected_update = pull_mixed(trace.pull, per_loss, weights, inputs.label)
    else:
        reference, alone = _reference(inputs.narrow(two))
        per_sample = alone.per_sample([narrow(c, two) for c in per_loss], False)
        expected_gram, expected_update = per_sample.gram(1), per_sample.combine(weights[two])
        leaves = zip(trace.leaves, alone.leaves, trace.tracked, strict=True)
        embeddings = max(_error(a[two], b) for a, b, tracked in leaves if tracked)

    tolerance = TOLERANCE[_lowest(run)]
    scale = max(float(g.abs().max()) for g in expected_update)
    errors = {
        n: float((a - b).abs().max()) / (scale or 1.0)
        for n, a, b in zip(inputs.names, update, expected_update, strict=True)
    }
    worst = max(errors, key=errors.__getitem__)
    found = Check(_error(gram[two], expected_gram), errors[worst], None if random else embeddings, reference)
    if embeddings > tolerance:
        raise ValueError(
            f"encode mixes the samples of the batch: the embeddings of two samples alone differ from theirs in the "
            f"batch by {embeddings:.1e} (relative). Gradients of single samples are not defined."
        )
    if not max(found.gram, found.update) <= tolerance:
        raise ValueError(
            f"the tape differs from {reference} by {found.gram:.1e} in the Gram blocks and {found.update:.1e} in the "
            f'update (worst: parameter {worst!r}); expected at most {tolerance:.0e}. Use method="vmap", and please '
            "report the encoder."
        )
    return found


def _row(number: int, name: str, inputs: Inputs, piece: Piece | None) -> Row:
    shape = tuple(inputs.params[number].shape)
    uses = [] if piece is None else [u for t in piece.targets if number in t.params for u, _ in t.uses]
    if piece is None or not uses:
        return Row(name, shape, "", "unused" if inputs.selected[number] else "update only", 0.0, 0.0)
    ops = Counter(use.site.node.name().rpartition("::")[2].replace("Backward", " ").split()[0] for use in uses)
    choice: str = piece.choice if piece.counted else "update only"
    choice = "isolated" if any(isinstance(use, Isolated) for use in uses) else choice
    at = piece.params.index(number)
    listed = ", ".join(f"{op} {count}" for op, count in ops.items())
    return Row(name, shape, listed, choice, piece.flops[at], piece.bytes[at])


def _cotangents(trace: Trace | Encoded, inputs: Inputs, losses: Any, loss_params: Any) -> list[Cotangent]:
    """Gradients of the losses at the embeddings."""
    stage = cotangents.evaluate(losses, loss_params, trace, alone(inputs.size))
    choose_params(inputs, trace, stage, "tape")
    return cotangents.activation(stage)


def _reference(inputs: Inputs) -> tuple[str, Trace]:
    try:
        return "vmap", trace_vmap(inputs)
    except RuntimeError:
        return "a loop over samples", trace_loop(inputs)


def _one_by_one(trace: Trace, per_loss: Sequence[Cotangent], samples: slice, label: list[int]) -> Tensor:
    """Gram blocks (2, L, K, K) by one ordinary backward pass for each sample and loss."""
    rows = []
    for cotangent in per_loss:
        of_loss = []
        for b in range(samples.start, samples.stop):
            only = [
                None
                if c is None
                else torch.zeros_like(c).index_copy(0, torch.tensor([b], device=c.device), c[b : b + 1])
                for c in cotangent
            ]
            of_loss.append([g for g, number in zip(trace.pull(only), label, strict=True) if number >= 0])
        rows.append([torch.stack(column) for column in zip(*of_loss, strict=True)])
    selected = [number for number in label if number >= 0]
    return torch.stack([inner_products(k) for k in by_label(rows, selected)], 1)


def _error(got: Tensor, expected: Tensor) -> float:
    scale = float(expected.abs().max())
    return float((got - expected).abs().max()) / (scale or 1.0)


def _lowest(run: Run) -> torch.dtype:
    """The least precise dtype at work."""
    kinds = {kind for node in run.graph.nodes for kind in dtypes(node)} & TOLERANCE.keys()
    return max(kinds, key=TOLERANCE.__getitem__)
