"""The rule for members of chains and curricula: functions of Gram blocks are used bare, factories are called."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def samplewise(function: Callable[Parameters, Tensor]) -> Callable[Parameters, Tensor]:
    """Mark a function of Gram blocks as one that looks at each sample's block alone.

    Args:
        function: ``function(gram) -> weights`` or values, without a state. Fix further arguments by
            ``functools.partial``.

    Returns:
        The function, marked. The functions of ``harmony.realign`` are marked.

    Examples:
        >>> @harmony.samplewise
        ... def unit(gram):
        ...     return gram.diagonal(dim1=1, dim2=2).rsqrt()
        >>> harmony.chain(unit).samplewise
        True
    """
    marked = block_function(function)
    marked.samplewise = True  # type: ignore[attr-defined]
    return marked


def block_function(function: Callable[Parameters, Tensor]) -> Callable[Parameters, Tensor]:
    """Let a function of Gram blocks that is called without them say how it is used."""
    name = getattr(function, "__name__", type(function).__name__)
    module = str(getattr(function, "__module__", ""))
    path = f"{module.rpartition('.')[0]}.{name}" if module.startswith("harmony.") else name
    first = next(iter(inspect.signature(function).parameters), "")

    @wraps(function)
    def checked(*args: Parameters.args, **options: Parameters.kwargs) -> Tensor:
        if not isinstance(args[0] if args else options.get(first), Tensor):
            fixed = ", ".join(f"{option}={value!r}" for option, value in options.items())
            raise TypeError(
                f"{name} is a function of Gram blocks: use it bare, or fix options by "
                f"functools.partial({path}, {fixed or '...'})."
            )
        return function(*args, **options)

    return checked


def is_samplewise(function: Callable[..., Any]) -> bool:
    """Whether a function, or the function inside a ``partial``, is marked by ``samplewise``."""
    return bool(getattr(_inner(function), "samplewise", False))


def factory(product: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Mark a function that makes a transform, a score or a schedule: it must be called."""

    def mark(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        function.product = product  # type: ignore[attr-defined]
        return function

    return mark


def refuse_factory(member: Any) -> None:
    """Raise a TypeError if a member is a factory that nobody called."""
    function = _inner(member)
    product = getattr(function, "product", None)
    if product is not None:
        needed = [
            f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name
            for p in inspect.signature(member).parameters.values()
            if p.default is p.empty
        ]
        call = f"{function.__name__}({', '.join(needed)})"
        raise TypeError(f"{function.__name__} makes a {product}: call it, {call}.")


def _inner(function: Any) -> Any:
    return function.func if isinstance(function, partial) else function
