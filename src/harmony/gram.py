"""Gram blocks of per-sample gradients, and the pullback of per-sample weights: the heart of the library."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from harmony import cotangents
from harmony.distributed.sharded import is_sharded, whole
from harmony.distributed.shares import Shares, shares
from harmony.engines.chunks import MEMORY, Options, encode_batch, narrow, narrow_all
from harmony.engines.encoded import Cotangent, Encoded, mix, pull_labelled
from harmony.engines.materialised import sum_groups
from harmony.engines.precision import entries, inner_products
from harmony.engines.tape.verify import Verify
from harmony.engines.trace import Inputs
from harmony.modules import OwnParameters
from harmony.reached import choose_params

PyTree = Any
Attribution = Literal["activation", "loss", "anchor"]
Space = Literal["parameters", "features"]
Method = Literal["auto", "tape", "vmap", "loop"]
Update = Literal["auto", "kept", "tape", "backward"]
Wrt = Callable[[str], bool | str | None] | Literal["shared"]
"""Which parameters a Gram is taken over: ``"shared"``, those that every loss reaches, or a function of their names, to
yes or no, or to the label of the Gram that a parameter belongs to."""
Blocks = Tensor | Mapping[str, Tensor]
"""One tensor, or one for each label of parameters."""


class Aux(NamedTuple):
    """What ``gram_vjp(..., has_aux=True)`` adds, all of it detached.

    Attributes:
        terms: Loss terms (B, K).
        embeddings: The tree of embeddings.
        toward: With ``toward_batch``, inner products (groups, K) with the batch's gradient, {label: (groups, K)} where
            ``wrt`` gives labels; else None.
    """

    terms: Tensor
    embeddings: PyTree
    toward: Blocks | None = None


def gram_vjp(
    encode: Callable[[PyTree, PyTree], PyTree],
    losses: Callable[..., Mapping[str, Tensor]],
    params: PyTree,
    batch: PyTree,
    *,
    method: Method = "auto",
    update: Update = "auto",
    memory: int = MEMORY,
    group_size: int = 1,
    wrt: Wrt | None = None,
    chunk_size: int | None = None,
    attribution: Attribution = "activation",
    space: Space = "parameters",
    loss_params: PyTree | None = None,
    toward_batch: bool = False,
    process_group: Any = None,
    loss_scale: Tensor | None = None,
    verify: Verify = "auto",
    has_aux: bool = False,
) -> tuple[Any, ...]:
    """Losses, Gram blocks of their per-sample gradients, and a pullback of per-sample weights.

    Like ``torch.func.vjp``: what the function gives, and a function that pulls back. Indices: ``b`` sample,
    ``k, l`` loss. ``G[b, k, l] = <g_b^k, g_b^l>``, where the gradient ``g_b^k`` of sample b under loss k is read in
    one of three ways:

    - ``"activation"``: ``J_b^T dL_k/df_b``, the whole loss through b's own encoder. Sums over b to the batch gradient.
    - ``"loss"``: ``grad l_bk / B``, b's own term through everybody's encoder. Sums over b to the batch gradient as
      well; costs a backward pass for every sample and loss.
    - ``"anchor"``: ``J_b^T (d l_bk/df_b) / B``, own term, own encoder. A score, not a decomposition.

    Args:
        encode: ``encode(params, batch)`` -> tree of tensors with leading axis B, one sample at a time: no operation
            may mix samples. Leaves that do not depend on ``params`` (masks, targets) pass through to ``losses``.
        losses: ``losses(embeddings)``, or ``losses(loss_params, embeddings)``, -> {name: (B,) terms or a scalar}. May
            couple samples (in-batch negatives, batch normalisation); runs once. The loss is the mean of the terms.
        params: Tree of floating-point tensors.
        batch: Tree whose tensors have leading axis B; leaves without axes are shared by all samples.
        method: ``"tape"``, the fast engine: it reads the autograd graph of one ordinary forward pass; ``"vmap"``, the
            reference, by ``torch.func``; ``"loop"``, a Python loop over samples; ``"auto"``, the first of them that
            can, with a warning if it is not the first. All are exact. [plan][harmony.plan] shows what is done.
        update: Where the tape's weighted gradient comes from: ``"kept"``, the per-sample gradients that gave the Gram;
            ``"tape"``, the recorded ops; ``"backward"``, one ordinary backward pass; ``"auto"``, the cheapest.
        memory: Bytes that ``"auto"`` may spend on keeping per-sample gradients.
        group_size: Consecutive samples whose gradients are summed before the Gram; the last group may be smaller. In
            feature space a gradient has one part per sample, so that the blocks of a group add up.
        wrt: Predicate on the names of the parameters (paths joined by dots) that the Gram is taken over; default all.
            ``"shared"``: those that every loss reaches; one without a gradient does not count. A function that returns
            labels (strings, None for no Gram) asks for one Gram for each label: layer-wise, say. In feature space: on
            the names of the embedding leaves; default those that every loss reaches.
        chunk_size: Samples encoded at a time. Bounds memory: embeddings first, then chunk by chunk, each encoded
            again with the same random numbers.
        attribution: Which reading of "the gradient of a sample under a loss".
        space: ``"parameters"``, or ``"features"``: gradients at the embeddings, nearly free.
        loss_params: Tree of parameters of the losses stage (heads, temperature), if it has any.
        toward_batch: Also give ``<g_b^k, g>``, g being the gradient of the summed losses of the whole batch. Costs a
            backward pass and the per-sample gradients once more. For activation, where g is the sum of the samples'
            gradients; goes with ``has_aux``.
        process_group: Processes that share the batch (``torch.distributed.group.WORLD``, say); None for this one alone.
            Each gives its own samples and encodes them; the batch is those of all, in order of rank, and everything
            that is returned is of the whole batch, on every process: what one process would return for it. ``losses``
            runs on the embeddings of the whole batch on every process. A group of samples does not reach over two
            processes. Parameters sharded over the group (``DTensor``) are put together, and their gradients scattered.
        loss_scale: Tensor without axes by which the losses are multiplied before they are differentiated, so that
            gradients in float16 do not vanish (see ``torch.amp.GradScaler``). What ``pullback`` returns is multiplied
            by it as well; values, terms, the Gram and what ``toward_batch`` asks for are not.
        verify: How often one more backward pass verifies that no gradient leaks from sample to sample: ``"auto"``, at
            the calls 1, 2, 4, 8, ... with each graph; ``"always"``; ``"never"``. See the page on engines.
        has_aux: Also return the loss terms, the embeddings and what ``toward_batch`` asks for.

    Returns:
        ``values, gram, pullback`` and, with ``has_aux``, an [Aux][harmony.gram.Aux]. ``values`` is {name: scalar};
        ``gram`` (groups, K, K) in at least float32, with K in the order of ``values``. ``pullback(weights)`` takes
        (groups, K) and returns gradients in the tree of ``params``: ``sum_bk W_bk g_b^k`` for activation,
        the gradient of ``sum_bk W_bk l_bk / B`` for loss and anchor. Where ``wrt`` gives labels, ``gram`` is {label:
        (groups, K, K)}, and ``pullback`` takes {label: (groups, K)} or one tensor for all; parameters without a label,
        and those of the losses, get the mean of the labels' weights. With ``loss_params`` it returns ``(grads,
        loss_grads)``, the second being the gradient of ``sum_bk W_bk l_bk / B`` by the losses' parameters.

    Raises:
        ValueError: Shapes that do not fit, a ``wrt`` that selects nothing, no leaf that every loss reaches,
            batch normalisation in training mode inside ``encode``.
        TypeError: Parameters that are not floating-point tensors, losses that are not a dictionary.

    Examples:
        >>> import torch, harmony
        >>> params = {"w": torch.eye(2)}
        >>> encode = lambda params, x: x @ params["w"]
        >>> losses = lambda f: {"first": f[:, 0], "second": f[:, 0] - f[:, 1]}
        >>> values, gram, pullback = harmony.gram_vjp(encode, losses, params, torch.ones(1, 2))
        >>> gram
        tensor([[[2., 2.],
                 [2., 4.]]])
        >>> pullback(torch.tensor([[1.0, 0.0]]))["w"]
        tensor([[1., 0.],
                [1., 0.]])

    References:
        Wu et al., Scaling Multimodal Pre-Training via Cross-Modality Gradient Harmonization, 2022 (arXiv:2211.02077).
    """
    options = Options(method, update, memory, group_size, chunk_size, verify)
    check_options(options, attribution, space)
    per_sample = space == "parameters" and attribution != "loss"
    if attribution != "activation":  # the update is no combination of the gradients that the Gram is made of
        options = options._replace(update="backward")
    inputs = flatten(encode, params, batch, wrt if space == "parameters" else None, process_group)
    if toward_batch and (attribution != "activation" or not has_aux):
        raise ValueError('toward_batch needs attribution="activation", and has_aux=True to be seen.')
    shared = shares(inputs.size, process_group)
    encoded, stage = run(inputs, losses, loss_params, options, shared, loss_scale, per_sample=per_sample)
    groups = shared.groups(group_size)
    members = shared.members(group_size, stage.device)

    def rows(wanted: range) -> list[Cotangent]:
        return cotangents.rows(stage, members, wanted)

    # Of the whole batch on every process, and of the samples that this one encoded.
    per_loss = cotangents.activation(stage)
    if space == "parameters":
        choose_params(inputs, encoded, list(stage.terms), per_loss, shared)
    mine = narrow_all(per_loss, shared.own)
    own = cotangents.anchor(stage, shared.own, chunk_size) if attribution == "anchor" else mine
    gram: Tensor

    def by_cotangents(weights: Tensor) -> Any:
        """The update by weights (b, L, K): backward passes."""
        pull = lambda w: pytree.tree_leaves(encoded.pull(mix(mine, w)))  # noqa: E731
        return pytree.tree_unflatten(pull_labelled(pull, weights, inputs.label), inputs.params_spec)

    combine: Callable[[Tensor], Any] = by_cotangents
    toward: Tensor | None = None
    if per_sample:
        gram, from_own = encoded.gram(own)
        gram = groups.gather(gram)
        combine = from_own if attribution == "activation" else by_cotangents
        if toward_batch:
            batch_gradient = encoded.pull(mix(mine, torch.ones_like(gram[:1, 0, 0]).expand(inputs.size, -1)))
            toward = groups.gather(encoded.toward(own, shared.sum(pytree.tree_leaves(batch_gradient))))
    elif space == "parameters":
        here = lambda wanted: [[None if c is None else c[:, shared.own] for c in k] for k in rows(wanted)]  # noqa: E731
        gram = encoded.gram_of_rows(here, groups.size, shared.sum)
    else:
        chosen = _feature_leaves(encoded, per_loss, list(stage.terms), wrt)
        if attribution == "loss":
            step = chunk_size or cotangents.ROWS_AT_ONCE
            blocks = range(groups.own.start, groups.own.stop, step)
            wanted = [rows(range(start, min(start + step, groups.own.stop))) for start in blocks]
            gram = torch.cat([_feature_gram(block, chosen) for block in wanted])
        else:
            gram = sum_groups(_feature_gram(own, chosen), group_size)
        gram = groups.gather(gram[:, None])
        if toward_batch:
            toward = sum_groups(_feature_toward(per_loss, chosen)[shared.own], group_size)
            toward = groups.gather(toward[:, None])
    gram = stage.unscaled(gram.detach())

    def by_terms(weights: Tensor) -> Any:
        """The update by weights (B, L, K) of the loss terms."""
        pull = lambda w: pytree.tree_leaves(encoded.pull(narrow(cotangents.weighted(stage, w), shared.own)))  # noqa: E731
        return pytree.tree_unflatten(pull_labelled(pull, weights, inputs.label), inputs.params_spec)

    def pullback(weights: Blocks) -> Any:
        of_samples = stacked(weights, inputs.labels, gram)[members]
        grads = combine(of_samples[shared.own]) if attribution == "activation" else by_terms(of_samples)
        grads = added_up(shared, grads, params)
        return grads if loss_params is None else (grads, loss_update(shared, stage, of_samples.mean(1)))

    values, aux = observed(stage)
    aux = aux if toward is None else aux._replace(toward=named(stage.unscaled(toward.detach()), inputs.labels))
    found = named(gram, inputs.labels)
    return (values, found, pullback, aux) if has_aux else (values, found, pullback)


def named(blocks: Tensor, labels: list[str]) -> Any:
    """Blocks (groups, L, ...) by the name of their label; without labels, the only one."""
    return dict(zip(labels, blocks.unbind(1), strict=True)) if labels else blocks[:, 0]


def stacked(weights: Blocks, labels: list[str], gram: Tensor) -> Tensor:
    """Weights of every label (groups, L, K), for Gram blocks (groups, L, K, K); one tensor serves all labels."""
    if isinstance(weights, Mapping) and weights.keys() != set(labels):
        raise ValueError(f"weights are of the labels {sorted(weights)}, the Gram blocks of {sorted(labels)}.")
    rows = [weights[label] for label in labels] if isinstance(weights, Mapping) else [weights] * gram.shape[1]
    for row in rows:
        if row.shape != gram.shape[::2]:
            raise ValueError(
                f"pullback expects weights of shape {tuple(gram.shape[::2])}, one per group of samples and loss; "
                f"got {tuple(row.shape)}."
            )
    return torch.stack([row.detach() for row in rows], 1)


def run(
    inputs: Inputs, losses: Callable[..., Mapping[str, Tensor]], loss_params: PyTree | None, options: Options,
    shared: Shares, loss_scale: Tensor | None, *, per_sample: bool,
) -> tuple[Encoded, cotangents.LossStage]:  # fmt: skip
    """Encode this process's samples and evaluate the losses of the whole batch."""
    if loss_params is not None:
        _check_floating("loss_params", loss_params)
    encoded = encode_batch(inputs, options, per_sample=per_sample)
    return encoded, cotangents.evaluate(losses, loss_params, encoded, shared, loss_scale)


def added_up(shared: Shares, grads: PyTree, params: PyTree) -> PyTree:
    """The gradient of the whole batch, of what each process contributes, sharded where the parameters are."""
    leaves, spec = pytree.tree_flatten(grads)
    return pytree.tree_unflatten(shared.sum_like(leaves, pytree.tree_leaves(params)), spec)


def loss_update(shared: Shares, stage: cotangents.LossStage, weights: Tensor) -> PyTree:
    """The gradient by the losses' parameters, the same on every process to the last bit; weights (B, K)."""
    leaves, spec = pytree.tree_flatten(cotangents.loss_gradient(stage, weights))
    return pytree.tree_unflatten(shared.agree(leaves), spec)


def observed(stage: cotangents.LossStage) -> tuple[dict[str, Tensor], Aux]:
    """Mean losses, loss terms and embeddings, detached."""
    values = {name: term.detach().mean() for name, term in stage.terms.items()}
    terms = torch.stack([term.detach() for term in stage.terms.values()], dim=1)
    return values, Aux(terms, pytree.tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, stage.embeddings))


def leaf_names(tree: PyTree) -> list[str]:
    """Names of the leaves of a tree: keys, indices and fields joined by dots.

    Examples:
        >>> leaf_names({"head": {"weight": 1}, "tokens": [2, 3]})
        ['head.weight', 'tokens.0', 'tokens.1']
    """
    return [".".join(map(_key, path)) for path, _ in pytree.tree_leaves_with_path(tree)]


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def check_options(options: Options, attribution: str = "activation", space: str = "parameters") -> None:
    """Raise a ValueError for an option that is not one."""
    choices = {
        "method": (options.method, get_args(Method)),
        "update": (options.update, get_args(Update)),
        "verify": (options.verify, get_args(Verify)),
        "attribution": (attribution, get_args(Attribution)),
        "space": (space, get_args(Space)),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")
    for name in ("group_size", "chunk_size", "memory"):
        size = getattr(options, name)
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1; got {size}.")


def _check_floating(argument: str, params: PyTree) -> None:
    for name, leaf in zip(leaf_names(params), pytree.tree_leaves(params), strict=True):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise TypeError(
                f"{argument}[{name!r}] must be a floating-point tensor; got {got}. Buffers and constants do not belong "
                f"in {argument}: close over them."
            )


def flatten(encode: Any, params: PyTree, batch: PyTree, wrt: Wrt | None, process_group: Any = None) -> Inputs:
    """Check and flatten a call of the encoder; ``wrt`` selects or labels parameters by name."""
    names = leaf_names(params)
    leaves, params_spec = pytree.tree_flatten(params)
    _check_floating("params", params)
    label, labels = _labels(names, wrt)

    batch_leaves, batch_spec = pytree.tree_flatten(batch)
    batch_leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in batch_leaves]
    if not (isinstance(encode, OwnParameters) and not any(is_sharded(p) for p in leaves)):
        leaves = [whole(p.detach(), process_group) for p in leaves]
    inputs = Inputs(encode, names, leaves, params_spec, label, labels, batch_leaves, batch_spec, wrt=wrt)
    sizes = {
        name: leaf.shape[0]
        for name, leaf, mapped in zip(leaf_names(batch), batch_leaves, inputs.mapped, strict=True)
        if mapped
    }
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            f"every tensor of the batch needs the same leading axis of at least one sample; got {sizes or 'no tensor'}."
        )
    return inputs


def _labels(names: list[str], wrt: Wrt | None) -> tuple[list[int], list[str]]:
    """The number of each parameter's Gram, -1 for none, and the names of the Grams if ``wrt`` gives any."""
    if isinstance(wrt, str) and wrt != "shared":
        raise ValueError(
            f"wrt must be 'shared' or a function of parameter names; got {wrt!r}. lambda name: {wrt!r} in name?"
        )
    # Which parameters are shared is known when the losses are.
    given = [True if wrt is None or isinstance(wrt, str) else wrt(name) for name in names]
    labels = list(dict.fromkeys(g for g in given if isinstance(g, str)))
    if labels and not all(g is None or isinstance(g, str) for g in given):
        raise TypeError(f"wrt must return a label or None for every parameter, or a bool for every one; got {given}.")
    label = [labels.index(g) if isinstance(g, str) else int(bool(g)) - 1 for g in given]
    if not names or max(label) < 0:
        raise ValueError(f"wrt selects none of the parameters: {', '.join(names) or 'params is empty'}.")
    return label, labels


def _feature_leaves(encoded: Encoded, per_loss: list[Cotangent], losses: list[str], wrt: Wrt | None) -> list[bool]:
    """Which of the tracked leaves the Gram in feature space is taken over."""
    names = leaf_names(pytree.tree_unflatten(encoded.leaves, encoded.spec))
    names = [name for name, tracked in zip(names, encoded.tracked, strict=True) if tracked]
    if wrt == "shared":
        raise ValueError(
            'wrt="shared" is of parameters; space="features" takes the leaves that every loss reaches by itself.'
        )
    if wrt is not None:
        given = [wrt(name) for name in names]
        if any(isinstance(g, str) for g in given):
            raise ValueError('wrt gives labels, which are of parameters: they need space="parameters".')
        chosen = [bool(g) for g in given]
        if not any(chosen):
            raise ValueError(f"wrt selects none of the embedding leaves that depend on params: {names}.")
        return chosen
    reached = [[c is not None for c in leaf] for leaf in zip(*per_loss, strict=True)]
    chosen = [all(by) for by in reached]
    if not any(chosen):
        by_leaf = {
            name: [loss for loss, r in zip(losses, by, strict=True) if r]
            for name, by in zip(names, reached, strict=True)
        }
        raise ValueError(
            f'space="features" needs an embedding leaf that every loss reaches; the leaves are reached by {by_leaf}. '
            "Return the shared representation from encode and put the heads into losses, or name leaves by wrt."
        )
    return chosen


def _feature_gram(cotangent: list[Cotangent], chosen: list[bool]) -> Tensor:
    """Gram blocks (n, K, K) of K cotangents with leaves (n, ...)."""
    return inner_products(_filled(cotangent, chosen))


def _feature_toward(per_loss: list[Cotangent], chosen: list[bool]) -> Tensor:
    """Inner products (B, K) of each sample's cotangents with the sum over all samples and losses."""
    filled = _filled(per_loss, chosen)
    whole = [entries(torch.stack(leaf).sum((0, 1))[None])[0] for leaf in zip(*filled, strict=True)]
    columns = [
        torch.stack([entries(leaf).mul(w).sum(1) for leaf, w in zip(leaves, whole, strict=True)]).sum(0)
        for leaves in filled
    ]
    return torch.stack(columns, 1)


def _filled(cotangent: list[Cotangent], chosen: list[bool]) -> list[tuple[Tensor, ...]]:
    """K lists of the chosen leaves; a leaf that a loss does not reach counts as zero."""
    columns = [leaf for leaf, c in zip(zip(*cotangent, strict=True), chosen, strict=True) if c]
    filled = []
    for leaf in columns:
        template = next((c for c in leaf if c is not None), None)
        if template is None:
            raise ValueError("no loss reaches the embedding leaf that wrt selects: there is no gradient to compare.")
        filled.append([torch.zeros_like(template) if c is None else c for c in leaf])
    return list(zip(*filled, strict=True))
