"""The keywords that gram_vjp and the steps have in common, checked before there is a batch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor
from torch.utils import _pytree as pytree

from harmony.definition import Attribution
from harmony.engines.options import Engine, require_choice, require_positive
from harmony.parameters import Wrt

Space = Literal["parameters", "features"]


@dataclass(frozen=True)
class Options:
    """The keywords; what they mean is on the page on concepts."""

    wrt: Wrt | None = None
    labels: Callable[[str], str | None] | None = None
    feature_leaves: Callable[[str], bool] | None = None
    attribution: Attribution = "activation"
    space: Space = "parameters"
    group_size: int = 1
    products_with: Any = None
    process_group: Any = None
    loss_scale: Tensor | None = None
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        """Check what can be checked without a batch."""
        require_choice("attribution", self.attribution, get_args(Attribution))
        require_choice("space", self.space, get_args(Space))
        require_positive("group_size", self.group_size)
        if not isinstance(self.engine, Engine):
            raise TypeError(f'engine must be a harmony.Engine, such as harmony.Engine("vmap"); got {self.engine!r}.')
        if self.products_with is not None:
            self._check_products()
        if self.space == "features" and (self.wrt is not None or self.labels is not None):
            raise ValueError(
                'wrt and labels choose parameters, and space="features" has none: it takes the leaves that every loss '
                "reaches by itself, or those that feature_leaves selects."
            )
        if self.space == "parameters" and self.feature_leaves is not None:
            raise ValueError('feature_leaves needs space="features"; parameters are chosen by wrt.')

    def _check_products(self) -> None:
        given = self.products_with
        of_batch = isinstance(given, str) and given == "batch"
        if not of_batch and not any(isinstance(x, Tensor) for x in pytree.tree_leaves(given)):
            raise ValueError(
                f'products_with must be "batch", or a gradient, {{name of a parameter: tensor}}; got {given!r:.200}.'
            )
        if of_batch and self.attribution == "anchor":
            raise ValueError(
                'products_with="batch" compares a sample with the sum of all, and "anchor" gradients do not add up to '
                'the gradient of the batch: use attribution="activation" or "loss".'
            )
        if self.space == "features" and not (of_batch and self.attribution == "activation"):
            raise ValueError(
                'space="features" has gradients at the embeddings of each sample, which a gradient of parameters does '
                'not fit: it takes products_with="batch" with attribution="activation" alone.'
            )

    @property
    def per_sample(self) -> bool:
        """Whether gradients of single samples by the parameters are needed."""
        return self.space == "parameters" and self.attribution != "loss"
