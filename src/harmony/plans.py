"""What the engine does with an encoder, and why."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from harmony.distributed.batch_split import alone
from harmony.engines.call import EncoderCall
from harmony.engines.chunked import EncodedBatch
from harmony.engines.errors import MixedSamplesError, UnsupportedError
from harmony.engines.fallback import run_reference
from harmony.engines.options import Engine
from harmony.engines.reference import run_vmap
from harmony.engines.run import Cotangent, Run, narrow_all
from harmony.engines.tape.engine import record
from harmony.engines.tape.explain import Row, explain
from harmony.loss_stage import LossStage
from harmony.modules import suspended_hooks
from harmony.parameters import Wrt, flatten_call, reached_by, resolve_shared
from harmony.proposals import Proposal, proposals
from harmony.step import as_functions

PyTree = Any
Losses = Callable[..., Mapping[str, Tensor]]
Labels = Callable[[str], str | None]


class Plan(NamedTuple):
    """How Gram blocks and update are computed; print it.

    Attributes:
        engine: ``"tape"``, ``"vmap"`` or ``"loop"``.
        reason: Why.
        update: Where the update comes from: ``"kept"``, ``"tape"`` or ``"backward"``.
        rows: One for each parameter; none where the engine is not the tape.
        cheaper: Choices of ``wrt`` that take less than half the work, where the Gram is over all parameters and their
            names have numbered blocks.
    """

    engine: str
    reason: str
    update: str
    rows: list[Row]
    cheaper: Sequence[Proposal] = ()

    def __str__(self) -> str:
        """A table."""
        head = f"engine {self.engine}: {self.reason}\nupdate {self.update}"
        if not self.rows:
            return head
        cells = [("parameter", "shape", "ops", "choice", "MFLOP", "MB")]
        for row in self.rows:
            costs = f"{row.flops / 1e6:.2f}", f"{row.bytes_moved / 1e6:.2f}"
            cells.append((row.name, "x".join(map(str, row.shape)), row.ops, row.choice, *costs))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in cells
        ]
        cheaper = [f"cheaper: {proposal}" for proposal in self.cheaper]
        return "\n".join([head, *(line.rstrip() for line in lines), *cheaper])


def plan(
    *arguments: Any,
    forward: Callable[[nn.Module, Any], PyTree] | None = None,
    loss_params: PyTree | None = None,
    wrt: Wrt | None = None,
    labels: Labels | None = None,
    group_size: int = 1,
    engine: Engine = Engine(),  # noqa: B008
) -> Plan:
    """Show how a harmonized step would be computed, and why; nothing is trained.

    Encodes the batch (its first chunk) and evaluates the losses once.

    Args:
        *arguments: ``encode, losses, params, batch`` as in [gram_vjp][harmony.gram_vjp], or ``module, batch, losses``
            as in [backward][harmony.backward].
        forward: As in [backward][harmony.backward], for a module.
        loss_params: As in [gram_vjp][harmony.gram_vjp], for functions, like all other keywords.

    Returns:
        A [Plan][harmony.Plan].

    Raises:
        ValueError: As [gram_vjp][harmony.gram_vjp].

    Examples:
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
    with as_call(arguments, forward, loss_params, wrt, labels, group_size) as (call, losses, loss_params):
        if engine.method in ("vmap", "loop"):
            return Plan(engine.method, "it was asked for", "backward", [])
        encoded = EncodedBatch(call, engine, per_sample=False)
        first = slice(0, min(engine.chunk_size or call.size, call.size))
        per_loss = narrow_all(activation_cotangents(encoded, call, losses, loss_params), first)
        call = call.select(first)
        try:
            recorded = record(call)
        except (UnsupportedError, MixedSamplesError) as error:
            if engine.method == "tape" or isinstance(error, MixedSamplesError):
                raise
            method = "vmap" if run_reference(call)[1] is run_vmap else "loop"
            return Plan(method, f"the tape cannot record this encoder: {error}", "backward", [])
        update, blocks, _ = recorded.plan(call, engine, per_loss, fused=True)
        cheaper = []
        if wrt is None and labels is None:
            cheaper = proposals(recorded, call, engine, per_loss, reached_by(recorded.encoded, per_loss, call.selected))
    rows = explain(call, blocks)
    opaque = ", ".join(row.name for row in rows if row.choice == "opaque")
    reason = f"no closed form for what uses {opaque}" if opaque else "a closed form for every use of a parameter"
    return Plan("tape", f"the autograd graph has {reason}", update, rows, cheaper)


@contextlib.contextmanager
def as_call(
    arguments: Sequence[Any],
    forward: Any,
    loss_params: PyTree | None,
    wrt: Wrt | None,
    labels: Labels | None,
    group_size: int,
) -> Iterator[tuple[EncoderCall, Losses, PyTree | None]]:
    """The call of the encoder, the losses and their parameters; a lone sample is doubled.

    ``arguments`` are those of functions, ``encode, losses, params, batch``, or of a module, ``module, batch, losses``.
    """
    is_module = isinstance(next(iter(arguments), None), nn.Module)
    if len(arguments) != (3 if is_module else 4):
        kinds = ", ".join(type(argument).__name__ for argument in arguments) or "none"
        raise TypeError(f"expected the arguments encode, losses, params, batch, or module, batch, losses; got {kinds}.")
    if (loss_params if is_module else forward) is not None:
        raise TypeError(
            "forward is for a module and loss_params is for functions: pass losses with parameters as a module, or let "
            "encode do what forward does."
        )
    with contextlib.ExitStack() as stack:
        if is_module:
            module, batch, losses = arguments
            encode, losses, _ = as_functions(module, losses, forward, None)
            params, loss_params = encode.params, losses.params
            stack.enter_context(suspended_hooks(encode, losses))
        else:
            encode, losses, params, batch = arguments
        call = flatten_call(encode, params, batch, wrt=wrt, labels=labels, group_size=group_size)
        yield (call.doubled() if call.size == 1 else call), losses, loss_params


def activation_cotangents(run: Run | EncodedBatch, call: EncoderCall, losses: Any, loss_params: Any) -> list[Cotangent]:
    """Gradients of the losses at the embeddings."""
    stage = LossStage(losses, loss_params, run, alone(call.size))
    per_loss = stage.activation()
    resolve_shared(call, run, list(stage.terms), per_loss, alone(call.size))
    return per_loss
