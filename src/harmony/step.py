"""The whole step in one call: gradients realigned and filtered sample by sample, for pure functions or modules."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harmony import cotangents
from harmony.checkpoint import loadable
from harmony.cosines import agreement, defined
from harmony.distributed.shares import shares
from harmony.engines.chunks import Options, narrow_all
from harmony.gram import (
    Aux,
    Blocks,
    added_up,
    check_options,
    flatten,
    gram_vjp,
    loss_update,
    named,
    observed,
    run,
    stacked,
)
from harmony.modules import OwnParameters, accumulate, hooks_aside, owner
from harmony.reached import choose_params
from harmony.transform import Member, State, Transform, apply, chain, whole_gram

PyTree = Any
Extras = Callable[[PyTree], Mapping[str, Tensor]]
UNSET: Any = object()
"""No process group was named, not even none."""
RESERVED = {"gram", "state", "terms", "ids", "batch_products", "k", "l", "losses"}


@loadable
class Info(NamedTuple):
    """What a harmonized step saw and did; everything is detached, on the device, and of the whole batch.

    Attributes:
        values: {name: mean loss}.
        terms: Loss terms (B, K).
        gram: Gram blocks (groups, K, K), before realignment; over all labels where ``wrt`` gives labels.
        agreement: Agreement (groups,), before realignment; 0 where it is not defined.
        defined: Mask (groups,) of the samples, or groups, that have an agreement.
        weights: Weights (groups, K); their mean over the labels, if there are any.
        kept: Number of groups (samples, where the group size is 1) with a weight that is not zero. Where it is 0 the
            gradient is zero: take no optimizer step.

        gram_of: {label: Gram blocks (groups, K, K)}; empty without labels.
        weights_of: {label: weights (groups, K)}; empty without labels.

    A loss that is not finite makes the gradient not finite, as in ordinary training: look before the optimizer step.
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


def harmonized_grad(
    encode: Callable[[PyTree, PyTree], PyTree],
    losses: Callable[..., Mapping[str, Tensor]],
    harmonizer: Member,
    *,
    extras: Extras | None = None,
    **keywords: Any,
) -> Callable[..., tuple[PyTree, State, Info]]:
    """Compose Gram blocks, weights and pullback into one gradient function.

    Where the harmonizer is samplewise (most of ``realign``, ``curriculum.threshold`` and chains of them), Gram, weights
    and update are made part by part: per-sample gradients serve both and are gone before the next part, and with
    ``chunk_size`` each chunk is encoded twice, not three times.

    Args:
        encode: As in [gram_vjp][harmony.gram_vjp].
        losses: As in [gram_vjp][harmony.gram_vjp].
        harmonizer: A transform, see [chain][harmony.chain], or a function ``gram -> weights``.
        extras: ``extras(embeddings) -> {name: (B, ...)}``, evaluated without a graph: what the harmonizer may use
            beside the Gram, such as the similarity that [score.similarity][harmony.score.similarity] asks for.
        **keywords: Options of [gram_vjp][harmony.gram_vjp] (``wrt``, ``chunk_size``, ``attribution``, ...).

    Returns:
        ``step(params, batch, state, *, ids=None, loss_params=None) -> (grads, state, info)``; with ``loss_params``,
        ``grads`` is ``(grads, loss_grads)``. ``info`` is an [Info][harmony.Info].

    Examples:
        >>> import torch, harmony
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
    for name in keywords.keys() & {"has_aux", "loss_params"}:
        raise TypeError(f"{name} is no option of harmonized_grad: the step returns info, and takes loss_params.")
    for name in keywords.keys() - inspect.signature(gram_vjp).parameters.keys():
        raise TypeError(f"{name} is no option of gram_vjp.")

    exact = {"attribution": "activation", "space": "parameters"}
    fusible = transform.samplewise and all(keywords.get(name, value) == value for name, value in exact.items())
    fusible = fusible and not keywords.get("toward_batch")

    def step(
        params: PyTree, batch: PyTree, state: State, *, ids: Tensor | None = None, loss_params: PyTree | None = None
    ) -> tuple[PyTree, State, Info]:
        arguments = (encode, losses, params, batch)
        if fusible:
            return _fused(arguments, transform, state, ids, loss_params, extras, keywords)
        values, gram, pullback, aux = gram_vjp(*arguments, loss_params=loss_params, has_aux=True, **keywords)
        if ids is not None:
            ids = shares(len(ids), keywords.get("process_group")).gather(ids)
        more = _extras(extras, aux, ids)
        weights, state = apply(transform, gram, state, more)
        return pullback(weights), state, _info(values, aux.terms, gram, weights)

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
    process_group: Any = UNSET,
    **keywords: Any,
) -> tuple[Info, State]:
    """In an ordinary training loop, stand in for the forward pass, the losses and ``loss.backward()``.

    Adds the harmonized gradient to ``.grad`` of the module's trainable parameters, and of the losses' where ``losses``
    is a module with parameters of its own (heads, a learnable temperature). Parameters that no loss reaches get zeros.
    Hooks on parameters are called once, with this gradient.

    Args:
        module: The encoder. Frozen parameters stay frozen; the others are named as in ``named_parameters()``. Inside
            ``DistributedDataParallel``, or sharded by ``fully_shard``, its processes share the batch, see
            ``process_group`` of [gram_vjp][harmony.gram_vjp]: every ``.grad`` is that of the whole batch.
        batch: Tree whose tensors have leading axis B.
        losses: ``losses(embeddings) -> {name: (B,) terms or a scalar}``, a function or a module.
        harmonizer: A transform, see [chain][harmony.chain], or a function ``gram -> weights``.
        state: Its state; None for a fresh one.
        forward: ``forward(module, batch) -> embeddings``. Default: ``module(**batch)`` for a dictionary,
            ``module(*batch)`` for a tuple or list, else ``module(batch)``.
        ids: Ids (B,) of the samples, for rules that remember samples.
        extras: As in [harmonized_grad][harmony.harmonized_grad].
        process_group: As in [gram_vjp][harmony.gram_vjp]; default, the processes that the module is wrapped for. Where
            several processes are at work and it is wrapped for none, say which share the batch, or None.
        **keywords: Options of [gram_vjp][harmony.gram_vjp].

    Returns:
        ``info, state``: an [Info][harmony.Info] and the next state.

    Raises:
        ValueError: See [gram_vjp][harmony.gram_vjp]; a module without trainable parameters; a trainable parameter
            that ``forward`` or ``losses`` uses and that is in neither module; several processes, and none named.

    Examples:
        >>> import torch, harmony
        >>> module = torch.nn.Linear(3, 2, bias=False)
        >>> harmonizer = harmony.chain(harmony.realign.pcgrad)
        >>> losses = lambda f: {"left": f[:, 0] ** 2, "right": f[:, 1] ** 2}
        >>> info, state = harmony.backward(module, torch.ones(4, 3), losses, harmonizer)
        >>> module.weight.grad.shape, int(info.kept)
        (torch.Size([2, 3]), 4)
    """
    module, wrapped_for = owner(module)
    keywords["process_group"] = _processes(wrapped_for, process_group)
    call = forward or call_module
    encode = OwnParameters(
        module, lambda batch: call(module, batch), "forward", "make the module that owns it a submodule of the encoder"
    )
    if not encode.params:
        raise ValueError(f"{type(module).__name__} has no parameter that requires a gradient.")
    own_losses = OwnParameters(losses if isinstance(losses, nn.Module) else nn.Module(), losses, "losses", _AS_LOSSES)
    transform = harmonizer if isinstance(harmonizer, Transform) else chain(harmonizer)
    step = harmonized_grad(encode, own_losses, transform, extras=extras, **keywords)
    state = transform.init() if state is None else state
    with hooks_aside(encode.params), hooks_aside(own_losses.params):
        (grads, loss_grads), state, info = step(encode.params, batch, state, ids=ids, loss_params=own_losses.params)
    accumulate(own_losses.params, loss_grads)
    accumulate(encode.params, grads)
    return info, state


_AS_LOSSES = "pass the module that owns it as `losses`"


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


def _fused(
    arguments: tuple[Any, Any, PyTree, PyTree], transform: Transform, state: State, ids: Tensor | None,
    loss_params: PyTree | None, extras: Extras | None, keywords: dict[str, Any],
) -> tuple[PyTree, State, Info]:  # fmt: skip
    """Gram blocks, weights and update of an exact activation-wise step with a samplewise transform, part by part."""
    encode, losses, params, batch = arguments
    options = Options(**{k: v for k, v in keywords.items() if k in Options._fields})
    check_options(options, **{k: keywords[k] for k in ("attribution", "space") if k in keywords})
    process_group = keywords.get("process_group")
    inputs = flatten(encode, params, batch, keywords.get("wrt"), process_group)
    shared = shares(inputs.size, process_group)
    encoded, stage = run(inputs, losses, loss_params, options, shared, keywords.get("loss_scale"), per_sample=True)
    per_loss = cotangents.activation(stage)
    choose_params(inputs, encoded, list(stage.terms), per_loss, shared)
    values, aux = observed(stage)
    more = _extras(extras, aux, ids if ids is None else shared.gather(ids))
    rows: dict[int, Tensor] = {}
    after = state

    def weigh(gram: Tensor, groups: range) -> Tensor:
        nonlocal after
        gram = stage.unscaled(gram)
        part = slice(groups.start * options.group_size, groups.stop * options.group_size)
        own = {name: x if x is None else x[shared.own][part] for name, x in more.items()}
        weights, after = apply(transform, named(gram, inputs.labels), state, own)
        rows[groups.start] = stacked(weights, inputs.labels, gram)
        return rows[groups.start]

    gram, grads = encoded.fused(narrow_all(per_loss, shared.own), weigh)
    grads = added_up(shared, grads, params)
    groups = shared.groups(options.group_size)
    gram, weights = (
        groups.gather(stage.unscaled(gram)),
        groups.gather(torch.cat([rows[start] for start in sorted(rows)])),
    )
    if loss_params is not None:
        of_samples = weights.mean(1)[shared.members(options.group_size, weights.device)]
        grads = grads, loss_update(shared, stage, of_samples)
    return grads, after, _info(values, aux.terms, named(gram, inputs.labels), named(weights, inputs.labels))


def _extras(extras: Extras | None, aux: Aux, ids: Tensor | None) -> dict[str, Any]:
    """What the harmonizer may use beside the Gram, of the whole batch."""
    size = len(aux.terms)
    if ids is not None and ids.shape != (size,):
        raise ValueError(f"ids must be of shape ({size},), one for each sample; got {tuple(ids.shape)}.")
    found: dict[str, Any] = {"terms": aux.terms, "ids": ids}
    if aux.toward is not None:
        found["batch_products"] = aux.toward
    if extras is not None:
        with torch.no_grad():
            more = dict(extras(aux.embeddings))
        for name, value in more.items():
            if name in RESERVED:
                raise ValueError(f"extras must not be called {name!r}: that name is taken.")
            if not isinstance(value, Tensor) or value.shape[:1] != (size,):
                got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"extra {name!r} must be a tensor with one row for each of {size} samples; got {got}.")
        found |= more
    return found


def _info(values: dict[str, Tensor], terms: Tensor, gram: Blocks, weights: Blocks) -> Info:
    whole = whole_gram(gram)
    gram_of = dict(gram) if isinstance(gram, Mapping) else {}
    if isinstance(weights, Mapping):
        weights_of, mean = dict(weights), torch.stack(list(weights.values())).mean(0)
    else:
        weights_of, mean = dict.fromkeys(gram_of, weights), weights
    kept = torch.stack([(w != 0).any(1) for w in (weights_of.values() if weights_of else [mean])]).any(0).sum()
    return Info(values, terms, whole, agreement(whole), defined(whole), mean, kept, gram_of, weights_of)
