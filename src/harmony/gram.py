"""Gram blocks of per-sample gradients, and the pullback of per-sample weights: the heart of the library."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from harmony.definition import Attribution
from harmony.engines.options import Engine
from harmony.evaluation import Blocks, Evaluation, PyTree
from harmony.keywords import Options, Space
from harmony.parameters import Wrt


@dataclass(frozen=True, eq=False)
class GramVJP:
    """What [gram_vjp][harmony.gram_vjp] returns; all but ``pullback`` is detached. With ``labels``, {label: blocks}.

    Attributes:
        values: {name: mean loss}.
        terms: Loss terms (B, K), K in the order of ``values``.
        gram: Gram blocks (groups, K, K), in at least float32.
        embeddings: The tree of embeddings.
        pullback: Weights (groups, K) -> gradients in the tree of ``params``: ``sum_bk W_bk g_b^k`` for activation, the
            gradient of ``sum_bk W_bk l_bk / B`` for loss and anchor. Labels may have weights of their own, {label:
            weights}; parameters without a label, and those of the losses, get their mean. With ``loss_params`` it
            returns ``(grads, loss_grads)``, the second for ``sum_bk W_bk l_bk / B``.
        products: With ``products_with``, inner products (groups, K) of the samples' gradients with one; else None.
    """

    values: dict[str, Tensor]
    terms: Tensor
    gram: Any
    embeddings: PyTree
    pullback: Callable[[Blocks], Any]
    products: Any = None


def gram_vjp(
    encode: Callable[[PyTree, PyTree], PyTree],
    losses: Callable[..., Mapping[str, Tensor]],
    params: PyTree,
    batch: PyTree,
    *,
    wrt: Wrt | None = None,
    labels: Callable[[str], str | None] | None = None,
    feature_leaves: Callable[[str], bool] | None = None,
    attribution: Attribution = "activation",
    space: Space = "parameters",
    group_size: int = 1,
    loss_params: PyTree | None = None,
    products_with: PyTree | None = None,
    process_group: Any = None,
    loss_scale: Tensor | None = None,
    engine: Engine = Engine(),  # noqa: B008
) -> GramVJP:
    """Losses, Gram blocks of their per-sample gradients, and a pullback of per-sample weights.

    ``harmony.definition`` says what the numbers mean, after Wu et al., 2022 (arXiv:2211.02077); the page on concepts
    explains each keyword.

    Args:
        encode: ``encode(params, batch)`` -> tree of tensors (B, ...), one sample at a time: no op may mix samples.
        losses: ``losses([loss_params,] embeddings)`` -> {name: (B,) terms or a scalar}; may couple samples.
        params: Tree of floating-point tensors.
        batch: Tree of tensors (B, ...); leaves without axes are shared by all samples.
        wrt: Parameters of the Gram, all by default: a predicate on names, "shared", "last_block", "last_projection".
        labels: Name of a parameter -> label or None: one Gram for each label, layer-wise say.
        feature_leaves: Predicate on names of embedding leaves, for features; default those that every loss reaches.
        attribution: How "the gradient of a sample" is read: ``"activation"``, ``"loss"`` or ``"anchor"``.
        space: ``"parameters"``, or ``"features"``: gradients at the embeddings, nearly free.
        group_size: Consecutive samples whose gradients are summed before the Gram.
        loss_params: Tree of parameters of the losses (heads, temperature), if they have any.
        products_with: Also give inner products with a gradient: "batch", or a given one, {name of a parameter: tensor}.
        process_group: Processes that share the batch: everything is of the whole batch, on each of them.
        loss_scale: Tensor that multiplies what is differentiated, and so what ``pullback`` returns; nothing else.
        engine: Options of the machine.

    Returns:
        A [GramVJP][harmony.GramVJP].

    Raises:
        ValueError: Shapes that do not fit, a choice of no parameter, an encoder that mixes samples.

    Examples:
        >>> encode = lambda params, x: x @ params["w"]
        >>> losses = lambda f: {"first": f[:, 0], "second": f[:, 0] - f[:, 1]}
        >>> result = harmony.gram_vjp(encode, losses, {"w": torch.eye(2)}, torch.ones(1, 2))
        >>> result.gram.tolist(), result.pullback(torch.tensor([[1.0, 0.0]]))["w"].tolist()
        ([[[2.0, 2.0], [2.0, 4.0]]], [[1.0, 0.0], [1.0, 0.0]])
    """
    options = Options(
        wrt, labels, feature_leaves, attribution, space, group_size, products_with, process_group, loss_scale, engine
    )
    evaluation = Evaluation(encode, losses, params, batch, loss_params, options)
    gram, products = map(evaluation.named, evaluation.measure())
    return GramVJP(evaluation.values, evaluation.terms, gram, evaluation.embeddings, evaluation.pullback, products)
