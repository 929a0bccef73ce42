"""Which parameters the losses reach: those that a Gram is taken over, and whether a comparison means anything."""

from collections.abc import Sequence

from harmony.distributed.shares import Shares
from harmony.engines.encoded import Cotangent, Encoded, Trace
from harmony.engines.trace import Inputs
from harmony.warn import call_site, warn

_COMPARED: set[int] = set()
"""Calls that were looked at: losses, parameters, and the line of the user."""


def choose_params(
    inputs: Inputs, encoded: Encoded | Trace, losses: Sequence[str], per_loss: Sequence[Cotangent], processes: Shares
) -> None:
    """Take the Gram over the shared parameters, if that is asked for; else warn, once, of losses that share none.

    The graph alone tells which parameters a loss reaches: no values, and no second pass.

    Args:
        inputs: The call; ``inputs.label`` is set where ``wrt="shared"``.
        encoded: Its run.
        losses: Names of the K losses.
        per_loss: Their K cotangents; None for leaves that they do not reach.
        processes: Those that share the batch. Where each runs other experts, shared is what their samples share.

    Raises:
        ValueError: No parameter is reached by every loss that reaches any.
    """
    if inputs.wrt == "shared":
        reached = _reached(inputs, encoded, per_loss)
        flags = iter(processes.any([flag for of_loss in reached for flag in of_loss]))
        reached = [[next(flags) for _ in of_loss] for of_loss in reached]
        counted = [of_loss for of_loss in reached if any(of_loss)]  # a loss without a gradient takes no part
        shared = [all(of_param) for of_param in zip(*counted, strict=True)]
        if counted and not any(shared):
            raise ValueError(
                'wrt="shared" needs a parameter that every loss reaches, and there is none: '
                f"{_listed(inputs, losses, reached)}. "
                'Give wrt a function of names, or compare the losses where they meet (space="features").'
            )
        inputs.label[:] = [int(s) - 1 for s in shared] or inputs.label
        return
    key = hash((call_site(), *inputs.names, *inputs.label, *losses))
    if len(losses) < 2 or key in _COMPARED:
        return
    _COMPARED.add(key)
    reached = _reached(inputs, encoded, per_loss)
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
            f"({_listed(inputs, losses, reached)}). "
            'Let wrt select what the losses share (wrt="shared" finds it), or compare embeddings (space="features").'
        )


def _reached(inputs: Inputs, encoded: Encoded | Trace, per_loss: Sequence[Cotangent]) -> list[list[bool]]:
    """For each loss, which parameters of the Gram it reaches."""
    by_leaf = encoded.reaches()
    result = []
    for cotangent in per_loss:
        leaves = [reach for reach, c in zip(by_leaf, cotangent, strict=True) if c is not None]
        result.append([s and any(leaf[p] for leaf in leaves) for p, s in enumerate(inputs.selected)])
    return result


def _listed(inputs: Inputs, losses: Sequence[str], reached: list[list[bool]]) -> str:
    """What each loss reaches, in words."""
    parts = []
    for name, of_loss in zip(losses, reached, strict=True):
        names = [n for n, r in zip(inputs.names, of_loss, strict=True) if r]
        parts.append(f"{name!r} reaches {', '.join(names[:3]) or 'nothing'}{', ...' if len(names) > 3 else ''}")
    return "; ".join(parts)
