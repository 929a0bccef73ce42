"""Which parameters, or which leaves of features, a Gram is taken over."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor
from torch.utils import _pytree as pytree

from harmony.blocks import LastPart, last_part
from harmony.distributed.batch_split import BatchSplit
from harmony.distributed.sharded import is_sharded, whole
from harmony.engines.call import EncoderCall, leaf_names
from harmony.engines.chunked import EncodedBatch
from harmony.engines.forward import ForwardPass
from harmony.engines.run import Cotangent, Run
from harmony.modules import ModuleFunction
from harmony.warn import call_site, warn

PyTree = Any
Wrt = Callable[[str], bool] | Literal["shared"] | LastPart
"""Which parameters: a predicate on their names, those that every loss reaches, or the last part of the encoder."""

_COMPARED: set[int] = set()
"""Calls that were looked at: losses, parameters, and the line of the caller."""


def flatten_call(
    encode: Any,
    params: PyTree,
    batch: PyTree,
    *,
    wrt: Wrt | None = None,
    labels: Callable[[str], str | None] | None = None,
    group_size: int = 1,
    process_group: Any = None,
) -> EncoderCall:
    """Check and flatten a call of the encoder; parameters that are sharded over processes are put together."""
    names = leaf_names(params)
    require_floating("params", params)
    leaves, params_spec = pytree.tree_flatten(params)
    label, label_names = _label_parameters(names, _choices(names, leaves, wrt), labels)
    batch_leaves, batch_spec = pytree.tree_flatten(batch)
    batch_leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in batch_leaves]
    if not isinstance(encode, ModuleFunction) or any(is_sharded(p) for p in leaves):
        leaves = [whole(p.detach(), process_group) for p in leaves]
    call = EncoderCall(
        encode,
        names,
        leaves,
        params_spec,
        label,
        label_names,
        batch_leaves,
        batch_spec,
        group_size,
        shared_only=wrt == "shared",
    )
    named = zip(leaf_names(batch), batch_leaves, call.mapped, strict=True)
    sizes = {name: leaf.shape[0] for name, leaf, mapped in named if mapped}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            f"every tensor of the batch needs the same leading axis of at least one sample; got {sizes or 'no tensor'}."
        )
    return call


def require_floating(argument: str, params: PyTree) -> None:
    """Raise a TypeError for parameters that are no floating-point tensors."""
    for name, leaf in zip(leaf_names(params), pytree.tree_leaves(params), strict=True):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise TypeError(
                f"{argument}[{name!r}] must be a floating-point tensor; got {got}. Buffers and constants do not belong "
                f"in {argument}: close over them."
            )


def _choices(names: list[str], params: list[Tensor], wrt: Wrt | None) -> list[bool]:
    """For each parameter, whether it belongs to a Gram."""
    if wrt is None or wrt == "shared":  # which ones are shared is known when the losses are
        return [True] * len(names)
    if isinstance(wrt, str):
        if wrt not in get_args(LastPart):
            words = "'shared', 'last_block', 'last_projection'"
            raise ValueError(
                f"wrt must be {words} or a function of parameter names; got {wrt!r}. lambda name: {wrt!r} in name?"
            )
        part = last_part(wrt, dict(zip(names, params, strict=True)))
        return [name in part for name in names]
    choices = [wrt(name) for name in names]
    if any(isinstance(choice, str) for choice in choices):
        raise TypeError("wrt returns yes or no for a parameter's name; got a string. Labels of Grams go into labels=.")
    return list(map(bool, choices))


def _label_parameters(
    names: list[str], choices: list[bool], labels: Callable[[str], str | None] | None
) -> tuple[list[int], list[str]]:
    """The number of each parameter's Gram, -1 for none, and the names of the Grams if there are labels."""
    chosen = [name for name, choice in zip(names, choices, strict=True) if choice]
    if not chosen:
        raise ValueError(f"wrt selects none of the parameters: {', '.join(names) or 'params is empty'}.")
    if labels is None:
        return [int(choice) - 1 for choice in choices], []
    given = {name: labels(name) for name in chosen}
    if not all(label is None or isinstance(label, str) for label in given.values()):
        raise TypeError(f"labels must return a string, or None for no Gram, for every parameter's name; got {given}.")
    unique = list(dict.fromkeys(label for label in given.values() if label is not None))
    if not unique:
        raise ValueError(f"labels gives a label to none of the parameters: {', '.join(chosen)}.")
    numbers = {label: number for number, label in enumerate(unique)}
    return [-1 if (label := given.get(name)) is None else numbers[label] for name in names], unique


def resolve_shared(
    call: EncoderCall, run: EncodedBatch | Run, losses: Sequence[str], per_loss: Sequence[Cotangent], split: BatchSplit
) -> None:
    """Take the Gram over the shared parameters, if that is asked for; else warn, once, of losses that share none.

    The graph alone tells which parameters a loss reaches: no values, and no second pass.

    Args:
        call: The call; its ``label`` and ``labels`` are set where ``wrt="shared"``.
        run: Its run.
        losses: Names of the K losses.
        per_loss: Their K cotangents; None for leaves that they do not reach.
        split: The processes. Where each runs other experts, shared is what their samples share.

    Raises:
        ValueError: No parameter is reached by every loss that reaches any.
    """
    if call.shared_only:
        reached = reached_by(run, per_loss, [True] * len(call.names))  # whatever has a label
        flags = iter(split.any([flag for loss in reached for flag in loss]))
        reached = [[next(flags) for _ in loss] for loss in reached]
        counted = [loss for loss in reached if any(loss)]  # a loss without a gradient takes no part
        shared = [all(losses) for losses in zip(*counted, strict=True)]
        if counted and not any(shared):
            raise ValueError(
                'wrt="shared" needs a parameter that every loss reaches, and there is none: '
                f"{_describe(call, losses, reached)}. "
                'Give wrt a function of names, or compare the losses where they meet (space="features").'
            )
        if counted:
            _keep_labels(call, shared)
        return
    key = hash((call_site(), *call.names, *call.label, *losses))
    if len(losses) < 2 or key in _COMPARED:
        return
    _COMPARED.add(key)
    reached = reached_by(run, per_loss, call.selected)
    apart = [
        f"{losses[k]!r} and {losses[l]!r}"
        for k in range(len(losses))
        for l in range(k + 1, len(losses))
        if any(reached[k]) and any(reached[l]) and not any(map(min, reached[k], reached[l]))
    ]
    if apart:
        warn(
            f"no parameter of the Gram is reached by both losses, {'; '.join(apart[:5])}{'; ...' * (len(apart) > 5)}: "
            "their gradients are orthogonal for every sample, which says nothing of the data "
            f"({_describe(call, losses, reached)}). "
            'Let wrt select what the losses share (wrt="shared" finds it), or compare embeddings (space="features").'
        )


def _keep_labels(call: EncoderCall, selected: Sequence[bool]) -> None:
    """Keep the labels of the selected parameters alone, numbered anew."""
    kept = sorted({number for number, s in zip(call.label, selected, strict=True) if s and number >= 0})
    if not kept:
        shared = ", ".join(name for name, s in zip(call.names, selected, strict=True) if s)
        raise ValueError(f"labels gives a label to none of the parameters that every loss reaches: {shared}.")
    numbers = {number: n for n, number in enumerate(kept)}
    call.label[:] = [numbers.get(number, -1) if s else -1 for number, s in zip(call.label, selected, strict=True)]
    call.labels[:] = [call.labels[number] for number in kept] if call.labels else []


def reached_by(
    run: EncodedBatch | Run | ForwardPass, per_loss: Sequence[Cotangent], selected: Sequence[bool]
) -> list[list[bool]]:
    """For each loss, which of the selected parameters it reaches."""
    by_leaf = run.reaches()
    result = []
    for cotangent in per_loss:
        leaves = [reach for reach, c in zip(by_leaf, cotangent, strict=True) if c is not None]
        result.append([s and any(leaf[p] for leaf in leaves) for p, s in enumerate(selected)])
    return result


def _describe(call: EncoderCall, losses: Sequence[str], reached: list[list[bool]]) -> str:
    """What each loss reaches, in words."""
    parts = []
    for loss, flags in zip(losses, reached, strict=True):
        names = [name for name, flag in zip(call.names, flags, strict=True) if flag]
        parts.append(f"{loss!r} reaches {', '.join(names[:3]) or 'nothing'}{', ...' if len(names) > 3 else ''}")
    return "; ".join(parts)


def select_features(
    encoded: EncodedBatch,
    per_loss: Sequence[Cotangent],
    losses: Sequence[str],
    predicate: Callable[[str], bool] | None,
) -> list[bool]:
    """For each tracked leaf, whether the Gram in feature space is taken over it: default, what every loss reaches."""
    names = leaf_names(pytree.tree_unflatten(encoded.leaves, encoded.spec))
    names = [name for name, tracked in zip(names, encoded.tracked, strict=True) if tracked]
    reached = [[c is not None for c in leaf] for leaf in zip(*per_loss, strict=True)]
    if predicate is not None:
        selected = [bool(predicate(name)) for name in names]
        if not any(selected):
            raise ValueError(f"feature_leaves selects none of the embedding leaves that depend on params: {names}.")
        if not all(any(flags) for flags, s in zip(reached, selected, strict=True) if s):
            raise ValueError(
                "no loss reaches the embedding leaf that feature_leaves selects: there is no gradient to compare."
            )
        return selected
    selected = [all(flags) for flags in reached]
    if not any(selected):
        by_leaf = {
            name: [loss for loss, flag in zip(losses, flags, strict=True) if flag]
            for name, flags in zip(names, reached, strict=True)
        }
        raise ValueError(
            f'space="features" needs an embedding leaf that every loss reaches; the leaves are reached by {by_leaf}. '
            "Return the shared representation from encode and put the heads into losses, or name leaves by "
            "feature_leaves."
        )
    return selected
