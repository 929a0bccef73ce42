"""What the engine does with an encoder, and whether it does it right: ``plan`` and ``check``."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmony import cotangents
from harmony.deviation import deviations
from harmony.distributed.shares import alone
from harmony.engines.chunks import Options, encode_batch, narrow
from harmony.engines.encoded import Cotangent, Encoded, Trace
from harmony.engines.fallback import together_and_alone
from harmony.engines.precision import inner_products
from harmony.engines.random import replay, snapshot
from harmony.engines.tape.autograd_fields import dtypes
from harmony.engines.tape.engine import Run, reached_by, record, trace_of
from harmony.engines.tape.engine import plan as plan_pieces
from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.materialize import ScratchBuffer
from harmony.engines.tape.param_use import OpaqueUse
from harmony.engines.tape.plan import ParamBlock
from harmony.engines.trace import Inputs, trace_loop, trace_vmap
from harmony.gram import PyTree, Wrt, check_options, flatten
from harmony.reached import choose_params

SAMPLES = 4
"""Samples of which ``check`` compares the gradients: the first, the last, and some between."""
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
    """Largest deviations of the tape from the reference, each relative to its own scale.

    Attributes:
        gram: Of the Gram blocks, those of each parameter alone and those over all of them: relative to the largest
            entry of the block.
        update: Of the update: relative to the largest entry of the parameter.
        embeddings: Of the embeddings of every sample alone from its own in the batch, with dropout switched off; None
            where the encoder draws other random numbers.
        reference: What Gram and update were compared with.
        parameter: Where Gram or update deviate most.
    """

    gram: float
    update: float
    embeddings: float | None
    reference: str
    parameter: str


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
    inputs = inputs.doubled() if inputs.size == 1 else inputs
    if settings.method in ("vmap", "loop"):
        return Plan(settings.method, "it was asked for", "backward", [])
    encoded = encode_batch(inputs, settings, per_sample=False)
    first = slice(0, min(settings.chunk_size or inputs.size, inputs.size))
    per_loss = [narrow(c, first) for c in _cotangents(encoded, inputs, losses, loss_params)]
    inputs = inputs.narrow(first)
    try:
        run = record(inputs)
    except (UnsupportedError, MixedSamplesError) as error:
        if settings.method == "tape" or isinstance(error, MixedSamplesError):
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
    """Compare the tape with the reference engine on four samples of a batch, and raise where they differ.

    Run it once on a new encoder. It also finds what no gradient shows: samples whose embeddings depend on their
    neighbours, or on their place in the batch; every sample is encoded alone. Gradients of an encoder that draws random
    numbers, and sums over groups, are compared with ordinary backward passes through the same graph, one for each
    sample, or group, and loss.

    Each number is measured by its own scale: blocks and gradients that are zero but for rounding (that of a bias
    before a normalisation, say) by the largest.

    Args:
        encode: As in [gram_vjp][harmony.gram_vjp].
        losses: As in [gram_vjp][harmony.gram_vjp].
        params: As in [gram_vjp][harmony.gram_vjp].
        batch: As in [gram_vjp][harmony.gram_vjp]; all of it is encoded at once, and sample by sample.
        wrt: As in [gram_vjp][harmony.gram_vjp].
        loss_params: As in [gram_vjp][harmony.gram_vjp].
        **options: ``update``, ``memory``, ``group_size``.

    Returns:
        A [Check][harmony.Check].

    Raises:
        ValueError: The two differ by more than rounding; names what differs most. Or the encoder mixes samples, or
            gives what is no number.
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
    inputs = inputs.doubled() if inputs.size == 1 else inputs
    before = snapshot(inputs.params)
    run = record(inputs)
    trace = trace_of(run, inputs, settings, ScratchBuffer())
    tolerance = TOLERANCE[_lowest(run)]
    random = not before.equal(snapshot(inputs.params))
    embeddings = _mixing(inputs, trace.tracked, tolerance)
    per_loss = _cotangents(trace, inputs, losses, loss_params)
    chosen = _spread(inputs.size)
    if random:
        reference, grads = "backward passes through the same graph", _pulled(trace, per_loss, chosen[:, None])
    else:
        # The whole of the gradients, of a few samples encoded alone.
        few = inputs._replace(label=[0] * len(inputs.names)).picked(chosen)
        reference, alone = _reference(few)
        picked = [[None if c is None else c[chosen] for c in of_loss] for of_loss in per_loss]
        [sums] = alone.per_sample(picked, False).sums(1)
        grads = [[g.reshape(len(chosen), *p.shape) for g, p in zip(k, inputs.params, strict=True)] for k in sums]
    result = _compare(run, inputs, settings._replace(group_size=1), per_loss, chosen, grads, tolerance)
    if settings.group_size > 1:
        groups = torch.split(torch.arange(inputs.size, device="cpu"), settings.group_size)
        some = _spread(len(groups))
        grads = _pulled(trace, per_loss, [groups[g] for g in some.tolist()])
        in_groups = _compare(run, inputs, settings, per_loss, some, grads, tolerance)
        result = max(result, in_groups, key=lambda r: max(r.gram, r.update))
    result = result._replace(embeddings=embeddings, reference=reference)
    if not max(result.gram, result.update) <= tolerance:
        raise ValueError(
            f"the tape differs from {reference} by {result.gram:.1e} in the Gram blocks and {result.update:.1e} in the "
            f'update (worst: parameter {result.parameter!r}); expected at most {tolerance:.0e}. Use method="vmap", and '
            "please report the encoder."
        )
    return result


def _mixing(inputs: Inputs, tracked: Sequence[bool], tolerance: float) -> float | None:
    """How far embeddings of samples alone are from those in the batch; a ValueError where it is more than rounding."""
    with replay(snapshot(inputs.params)):
        pair = together_and_alone(inputs)
    if pair is None:
        return None
    together, alone = ([leaf for leaf, t in zip(leaves, tracked, strict=True) if t] for leaves in pair)
    if not all(bool(leaf.isfinite().all()) for leaf in together):
        raise ValueError("the embeddings are not finite: check compares numbers. Is there NaN in parameters or batch?")
    tolerance = min(tolerance, TOLERANCE[torch.float32])  # these embeddings were computed in full precision
    result = max(deviations(together, alone, tolerance / 100))
    if result > tolerance:
        raise ValueError(
            "encode mixes the samples of the batch: the embeddings of samples alone differ from theirs in the batch by "
            f"{result:.1e} (relative). Gradients of single samples are not defined."
        )
    return result


def _compare(
    run: Run,
    inputs: Inputs,
    settings: Options,
    per_loss: Sequence[Cotangent],
    chosen: Tensor,
    grads: Sequence[Sequence[Tensor]],
    tolerance: float,
) -> Check:
    """Compare Gram blocks and a weighted update with gradients (n, *shape), K lists of them, of some groups."""
    recorded = trace_of(run, inputs, settings, ScratchBuffer()).per_sample(per_loss, False)
    gram = recorded.gram(settings.group_size)
    weights = torch.zeros_like(gram[:, :, 0])
    weights[chosen] = torch.linspace(0.5, 1.5, weights.shape[2]).to(weights) + chosen.to(weights)[:, None, None] / 9
    of_samples = weights.repeat_interleave(settings.group_size, 0)[: inputs.size]
    update = recorded.combine(of_samples)
    each = inputs._replace(label=list(range(len(inputs.names))), labels=inputs.names)
    of_params = trace_of(run, each, settings, ScratchBuffer()).per_sample(per_loss, False).gram(settings.group_size)

    by_param = [list(of_param) for of_param in zip(*grads, strict=True)]
    expected_grams = [inner_products([[g] for g in of_param]) for of_param in by_param]
    own = [weights[chosen, label] if label >= 0 else weights[chosen].mean(1) for label in inputs.label]
    expected = [
        torch.einsum("bk,kb...->...", w.to(g[0].dtype), torch.stack(g)) for w, g in zip(own, by_param, strict=True)
    ]
    for name, g in zip(inputs.names, expected, strict=True):
        if not bool(g.isfinite().all()):
            raise ValueError(f"the gradient of parameter {name!r} is not finite: check compares numbers.")

    floor = tolerance / 100  # below it a gradient is zero but for rounding
    of_update = deviations([g[None] for g in update], [g[None] for g in expected], floor)
    of_gram = deviations(list(of_params[chosen].unbind(1)), expected_grams, floor**2)
    labels = torch.tensor(inputs.label, device=gram.device)
    whole = [torch.stack(expected_grams)[labels == n].sum(0) for n in range(gram.shape[1])]
    of_whole = deviations(list(gram[chosen].unbind(1)), whole, floor**2)
    worst = max(range(len(inputs.names)), key=lambda p: max(of_update[p], of_gram[p]))
    return Check(max(of_gram + of_whole), max(of_update), None, "", inputs.names[worst])


def _spread(size: int) -> Tensor:
    """The first, the last, and some between."""
    return torch.linspace(0, size - 1, min(SAMPLES, size), device="cpu").round().long()


def _row(number: int, name: str, inputs: Inputs, piece: ParamBlock | None) -> Row:
    shape = tuple(inputs.params[number].shape)
    uses = [] if piece is None else [u for t in piece.tensors if number in t.params for u, _ in t.uses]
    if piece is None or not uses:
        return Row(name, shape, "", "unused" if inputs.selected[number] else "update only", 0.0, 0.0)
    ops = Counter(use.site.node.name().rpartition("::")[2].replace("Backward", " ").split()[0] for use in uses)
    choice: str = piece.choice if piece.counted else "update only"
    choice = "isolated" if any(isinstance(use, OpaqueUse) for use in uses) else choice
    at = piece.params.index(number)
    listed = ", ".join(f"{op} {count}" for op, count in ops.items())
    return Row(name, shape, listed, choice, piece.flops[at], piece.bytes[at])


def _cotangents(trace: Trace | Encoded, inputs: Inputs, losses: Any, loss_params: Any) -> list[Cotangent]:
    """Gradients of the losses at the embeddings."""
    stage = cotangents.evaluate(losses, loss_params, trace, alone(inputs.size))
    per_loss = cotangents.activation(stage)
    choose_params(inputs, trace, list(stage.terms), per_loss, alone(inputs.size))
    return per_loss


def _reference(inputs: Inputs) -> tuple[str, Trace]:
    try:
        return "vmap", trace_vmap(inputs)
    except RuntimeError:
        return "a loop over samples", trace_loop(inputs)


def _pulled(trace: Trace, per_loss: Sequence[Cotangent], groups: Iterable[Tensor]) -> list[list[Tensor]]:
    """Gradients of some groups of samples, K lists of leaves (n, *shape), by a backward pass for each and each loss."""
    grads: list[list[list[Tensor]]] = [[] for _ in per_loss]
    for samples in groups:
        for rows, cotangent in zip(grads, per_loss, strict=True):
            only = [None if c is None else torch.zeros_like(c) for c in cotangent]
            for o, c in zip(only, cotangent, strict=True):
                if o is not None and c is not None:
                    o[samples] = c[samples]
            rows.append(trace.pull(only))
    return [[torch.stack(column) for column in zip(*rows, strict=True)] for rows in grads]


def _lowest(run: Run) -> torch.dtype:
    """The least precise dtype at work."""
    kinds = {kind for node in run.graph.nodes for kind in dtypes(node)} & TOLERANCE.keys()
    return max(kinds, key=TOLERANCE.__getitem__)
