"""The whole step in one call: gradients realigned and filtered sample by sample, for pure functions or modules."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harmony.checkpoint import loadable
from harmony.cosines import agreement, defined
from harmony.definition import Attribution
from harmony.engines.options import Engine
from harmony.engines.run import Measurement
from harmony.evaluation import Blocks, Evaluation, PyTree
from harmony.keywords import Options, Space
from harmony.modules import ModuleFunction, accumulate, suspended_hooks, unwrap
from harmony.parameters import Wrt
from harmony.transform import Member, State, Transform, apply, chain, whole_gram

Extras = Callable[[PyTree], Mapping[str, Tensor]]
UNSET: Any = object()
"""No process group was named, not even none."""
PRODUCTS = {f"{kind}_{what}" for kind in ("batch", "reference") for what in ("products", "square")}
RESERVED = {"gram", "state", "terms", "ids", "k", "l", "losses", "criterion"} | PRODUCTS


@loadable
class Info(NamedTuple):
    """What a harmonized step saw and did; everything is detached, on the device, and of the whole batch.

    A loss that is not finite makes the gradient not finite, as in ordinary training: look before the optimizer step.

    Attributes:
        values: {name: mean loss}.
        terms: Loss terms (B, K).
        gram: Gram blocks (groups, K, K), before realignment; with ``labels``, summed over them.
        agreement: Agreement (groups,), before realignment; NaN where it is not defined.
        defined: Mask (groups,) of the samples, or groups, that have an agreement.
        weights: Weights (groups, K); with ``labels``, their mean.
        kept: Number of groups with a weight that is not zero. Where it is 0 the gradient is zero: take no optimizer
            step.
        gram_of: {label: Gram blocks (groups, K, K)}; empty without labels.
        weights_of: {label: weights (groups, K)}; empty without labels.
        products: Inner products (groups, K) with the gradient of ``products_with``, with ``labels`` summed over them;
            None without.
    """

    values: dict[str, Tensor]
    terms: Tensor
    gram: Tensor
    agreement: Tensor
    defined: Tensor
    weights: Tensor
    kept: Tensor
    gram_of: dict[str, Tensor]
    weights_of: dict[str, Tensor]
    products: Tensor | None = None


def harmonized_grad(
    encode: Callable[[PyTree, PyTree], PyTree],
    losses: Callable[..., Mapping[str, Tensor]],
    harmonizer: Member,
    *,
    extras: Extras | None = None,
    wrt: Wrt | None = None,
    labels: Callable[[str], str | None] | None = None,
    feature_leaves: Callable[[str], bool] | None = None,
    attribution: Attribution = "activation",
    space: Space = "parameters",
    group_size: int = 1,
    products_with: PyTree | None = None,
    process_group: Any = None,
    loss_scale: Tensor | None = None,
    engine: Engine = Engine(),  # noqa: B008
) -> Callable[..., tuple[PyTree, State, Info]]:
    """Compose Gram blocks, weights and pullback into one gradient function.

    Where the harmonizer is samplewise (most of ``realign``, ``curriculum.threshold`` and chains of them), Gram, weights
    and update are made part by part, which takes less time and memory.

    Args:
        encode: As in [gram_vjp][harmony.gram_vjp], like all keywords that are not named here.
        losses: As in [gram_vjp][harmony.gram_vjp].
        harmonizer: A transform, see [chain][harmony.chain], or a function ``gram -> weights``.
        extras: ``extras(embeddings) -> {name: (B, ...)}``, evaluated without a graph: what the harmonizer may use
            beside the Gram, such as the similarity that [score.similarity][harmony.score.similarity] asks for.

    Returns:
        ``step(params, batch, state, *, ids=None, loss_params=None) -> (grads, state, info)``; with ``loss_params``,
        ``grads`` is ``(grads, loss_grads)``. ``info`` is an [Info][harmony.Info].

    Examples:
        >>> step = harmony.harmonized_grad(
        ...     encode=lambda params, x: x * params["w"],
        ...     losses=lambda f: {"up": f.sum(1), "down": -f[:, 0]},
        ...     harmonizer=harmony.chain(harmony.realign.pcgrad),
        ... )
        >>> grads, state, info = step({"w": torch.ones(2)}, torch.ones(1, 2), ((),))
        >>> grads["w"], info.agreement
        (tensor([-0.5000,  1.5000]), tensor([-0.7071]))
    """
    transform = harmonizer if isinstance(harmonizer, Transform) else chain(harmonizer)
    options = Options(
        wrt, labels, feature_leaves, attribution, space, group_size, products_with, process_group, loss_scale, engine
    )

    def step(
        params: PyTree, batch: PyTree, state: State, *, ids: Tensor | None = None, loss_params: PyTree | None = None
    ) -> tuple[PyTree, State, Info]:
        evaluation = Evaluation(encode, losses, params, batch, loss_params, options)
        return _harmonize(evaluation, transform, state, ids, extras)

    return step


def backward(
    module: nn.Module,
    batch: PyTree,
    losses: Callable[..., Mapping[str, Tensor]],
    harmonizer: Member,
    state: State | None = None,
    *,
    forward: Callable[[nn.Module, Any], PyTree] | None = None,
    ids: Tensor | None = None,
    extras: Extras | None = None,
    wrt: Wrt | None = None,
    labels: Callable[[str], str | None] | None = None,
    feature_leaves: Callable[[str], bool] | None = None,
    attribution: Attribution = "activation",
    space: Space = "parameters",
    group_size: int = 1,
    products_with: PyTree | None = None,
    process_group: Any = UNSET,
    loss_scale: Tensor | None = None,
    engine: Engine = Engine(),  # noqa: B008
) -> tuple[Info, State]:
    """In an ordinary training loop, stand in for the forward pass, the losses and ``loss.backward()``.

    Adds the harmonized gradient to ``.grad`` of the trainable parameters, zeros where no loss reaches; hooks on
    parameters are called once. The other keywords are those of [gram_vjp][harmony.gram_vjp].

    Args:
        module: The encoder; the processes of ``DistributedDataParallel``, or ``fully_shard``, share the batch.
        batch: Tree whose tensors have leading axis B.
        losses: ``losses(embeddings) -> {name: (B,) terms or a scalar}``, a function, or a module with parameters.
        harmonizer: A transform, see [chain][harmony.chain], or a function ``gram -> weights``.
        state: Its state; None for a fresh one.
        forward: ``forward(module, batch) -> embeddings``; default ``module(batch)``, dictionaries and tuples unpacked.
        ids: Ids (B,) of the samples, for rules that remember samples.
        extras: As in [harmonized_grad][harmony.harmonized_grad].
        process_group: Default, the processes that the module is wrapped for; else name them, or None.

    Returns:
        ``info, state``: an [Info][harmony.Info] and the next state. A trainable parameter that is in neither module, or
        several processes and none named, is a ValueError.

    Examples:
        >>> module = torch.nn.Linear(3, 2, bias=False)
        >>> losses = lambda f: {"left": f[:, 0] ** 2, "right": f[:, 1] ** 2}
        >>> info, state = harmony.backward(module, torch.ones(4, 3), losses, harmony.realign.pcgrad)
        >>> module.weight.grad.shape, int(info.kept)
        (torch.Size([2, 3]), 4)
    """
    encoder, objective, process_group = as_functions(module, losses, forward, process_group)
    transform = harmonizer if isinstance(harmonizer, Transform) else chain(harmonizer)
    options = Options(
        wrt, labels, feature_leaves, attribution, space, group_size, products_with, process_group, loss_scale, engine
    )
    state = transform.init() if state is None else state
    with suspended_hooks(encoder, objective):
        evaluation = Evaluation(encoder, objective, encoder.params, batch, objective.params, options)
        (grads, loss_grads), state, info = _harmonize(evaluation, transform, state, ids, extras)
    accumulate(objective.params, loss_grads)
    accumulate(encoder.params, grads)
    return info, state


def measure(
    module: nn.Module,
    batch: PyTree,
    losses: Callable[..., Mapping[str, Tensor]],
    *,
    forward: Callable[[nn.Module, Any], PyTree] | None = None,
    wrt: Wrt | None = None,
    labels: Callable[[str], str | None] | None = None,
    feature_leaves: Callable[[str], bool] | None = None,
    attribution: Attribution = "activation",
    space: Space = "parameters",
    group_size: int = 1,
    products_with: PyTree | None = None,
    process_group: Any = UNSET,
    loss_scale: Tensor | None = None,
    engine: Engine = Engine(),  # noqa: B008
) -> Info:
    """Measure the agreement of the losses on a batch, and train nothing: a [backward][harmony.backward] without update.

    Args:
        module: As in [backward][harmony.backward], like all other arguments. No ``.grad`` changes.
        batch: Tree whose tensors have leading axis B.
        losses: ``losses(embeddings) -> {name: (B,) terms or a scalar}``, a function or a module.
        forward: ``forward(module, batch) -> embeddings``.

    Returns:
        An [Info][harmony.Info]; its weights are ones.

    Examples:
        >>> module = torch.nn.Linear(3, 2, bias=False)
        >>> torch.nn.init.ones_(module.weight)
        Parameter containing:
        tensor([[1., 1., 1.],
                [1., 1., 1.]], requires_grad=True)
        >>> losses = lambda f: {"up": f.sum(1), "down": -f[:, 0]}
        >>> harmony.measure(module, torch.ones(2, 3), losses).agreement
        tensor([-0.7071, -0.7071])
    """
    encoder, objective, process_group = as_functions(module, losses, forward, process_group)
    options = Options(
        wrt, labels, feature_leaves, attribution, space, group_size, products_with, process_group, loss_scale, engine
    )
    with suspended_hooks(encoder, objective):
        evaluation = Evaluation(encoder, objective, encoder.params, batch, objective.params, options)
        measured = evaluation.measure()
    return _info(evaluation, measured, torch.ones_like(measured.gram[..., 0]))


def as_functions(
    module: nn.Module, losses: Any, forward: Callable[[nn.Module, Any], PyTree] | None, process_group: Any = None
) -> tuple[ModuleFunction, ModuleFunction, Any]:
    """A module and its losses as pure functions of their parameters, and the processes that share the batch."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"expected a module, then its batch and losses; got {type(module).__name__}. Functions of parameters go "
            "into gram_vjp or harmonized_grad."
        )
    module, wrapped_for = unwrap(module)
    call = forward or call_module
    encoder = ModuleFunction(
        module, lambda batch: call(module, batch), "forward", "make the module that owns it a submodule of the encoder"
    )
    if not encoder.params:
        raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient.")
    owns = losses if isinstance(losses, nn.Module) else nn.Module()
    objective = ModuleFunction(owns, losses, "losses", "pass the module that owns it as `losses`")
    return encoder, objective, _processes(wrapped_for, process_group)


def _processes(wrapped_for: Any, given: Any) -> Any:
    """The processes that share the batch: those that were named, or those that the module is wrapped for."""
    if given is not UNSET:
        return given
    if wrapped_for is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"{dist.get_world_size()} processes are at work, and neither is the module wrapped for them nor is a "
            "process_group given: their parameters would drift apart. Pass process_group=torch.distributed.group.WORLD "
            "if they share the batch, or process_group=None if each trains a model of its own, or adds gradients up by "
            "itself."
        )
    return wrapped_for


def call_module(module: nn.Module, batch: PyTree) -> PyTree:
    """Call a module on a batch: keywords from a dictionary, positions from a tuple or list, else one argument."""
    if isinstance(batch, Mapping):
        return module(**batch)
    if isinstance(batch, tuple | list):
        return module(*batch)
    return module(batch)


def _harmonize(
    evaluation: Evaluation, transform: Transform, state: State, ids: Tensor | None, extras: Extras | None
) -> tuple[Any, State, Info]:
    """The update by the weights that a transform makes of the Gram blocks; the next state; what was seen."""
    options = evaluation.options
    known = _gather_extras(evaluation, ids, extras)
    if not (options.per_sample and options.attribution == "activation" and transform.samplewise):
        measured = evaluation.measure()
        known |= evaluation.reference_extras(measured.products)
        weights, state = apply(transform, evaluation.named(measured.gram), state, known)
        return evaluation.pullback(weights), state, _info(evaluation, measured, evaluation.stack(weights))
    states = [state]

    def weigh(measured: Measurement, samples: slice) -> Tensor:
        rows = {name: x if x is None else x[samples] for name, x in known.items()}
        rows |= evaluation.reference_extras(measured.products)
        weights, after = apply(transform, evaluation.named(measured.gram), state, rows)
        states[:] = [after]  # the same for every block: a samplewise transform looks at no sample for it
        return evaluation.stack(weights, len(measured.gram))

    measured, weights, grads = evaluation.fused(weigh)
    return grads, states[0], _info(evaluation, measured, weights)


def _gather_extras(evaluation: Evaluation, ids: Tensor | None, extras: Extras | None) -> dict[str, Any]:
    """What the harmonizer may use beside the Gram, of the whole batch."""
    size = len(evaluation.terms)
    if ids is not None:
        ids = evaluation.split.gather(ids)
        if ids.shape != (size,):
            raise ValueError(f"ids must be of shape ({size},), one for each sample; got {tuple(ids.shape)}.")
    known: dict[str, Any] = {"terms": evaluation.terms, "ids": ids}
    if extras is None:
        return known
    with torch.no_grad():
        more = dict(extras(evaluation.embeddings))
    for name, value in more.items():
        if name in RESERVED:
            raise ValueError(f"extras must not be called {name!r}: that name is taken.")
        if not isinstance(value, Tensor) or value.shape[:1] != (size,):
            got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"extra {name!r} must be a tensor with one row for each of {size} samples; got {got}.")
    return known | more


def _info(evaluation: Evaluation, measured: Measurement, weights: Tensor) -> Info:
    """What was seen and done, of Gram blocks (groups, L, K, K), products, and weights (groups, L, K)."""
    blocks: Blocks = evaluation.named(measured.gram)
    total = whole_gram(blocks)
    labelled = isinstance(blocks, Mapping)
    return Info(
        values=evaluation.values,
        terms=evaluation.terms,
        gram=total,
        agreement=agreement(total),
        defined=defined(total),
        weights=weights.mean(1) if labelled else weights[:, 0],
        kept=(weights != 0).flatten(1).any(1).sum(),
        gram_of=dict(blocks) if labelled else {},
        weights_of=evaluation.named(weights) if labelled else {},
        products=None if measured.products is None else measured.products.sum(1),
    )
