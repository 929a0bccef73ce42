"""A call of the encoder, flattened: its parameters, its batch, and what a run of it may change."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from harmony.engines.paths import fresh_leaf
from harmony.engines.random import RandomState, replay, snapshot
from harmony.modules import Buffer, ModuleFunction


class State(NamedTuple):
    """What a run of the encoder may change: the random generators, and the buffers of a module.

    A function has no buffers here, since nobody knows of them.
    """

    random: RandomState
    buffers: list[Buffer]


class EncoderCall(NamedTuple):
    """A flattened call ``encode(params, batch)``.

    Attributes:
        encode: The encoder.
        names: Names of the parameters.
        params: The parameters.
        params_spec: Their tree specification.
        label: For each parameter the number of the Gram that it belongs to; -1 for none.
        labels: Names of the Grams; none where there is but one.
        batch: The leaves of the batch.
        batch_spec: Their tree specification.
        group_size: Consecutive samples that are one group.
        together: Whether no sample is taken by itself, so that the encoder may mix them.
        shared_only: Whether the Gram is taken over the parameters that every loss reaches.
    """

    encode: Callable[[Any, Any], Any]
    names: list[str]
    params: list[Tensor]
    params_spec: Any
    label: list[int]
    labels: list[str]
    batch: list[Any]
    batch_spec: Any
    group_size: int = 1
    together: bool = False
    shared_only: bool = False

    @property
    def selected(self) -> list[bool]:
        """For each parameter, whether it belongs to a Gram."""
        return [label >= 0 for label in self.label]

    @property
    def module(self) -> ModuleFunction | None:
        """The module behind the call, if it is one."""
        return self.encode if isinstance(self.encode, ModuleFunction) else None

    @property
    def mapped(self) -> list[bool]:
        """For each leaf of the batch, whether it has a sample axis: tensors with at least one axis do."""
        return [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in self.batch]

    @property
    def size(self) -> int:
        """B, the number of samples."""
        return next(len(leaf) for leaf, mapped in zip(self.batch, self.mapped, strict=True) if mapped)

    def select(self, rows: slice | Tensor) -> "EncoderCall":
        """The same call on some of the samples."""
        batch = [leaf[rows] if mapped else leaf for leaf, mapped in zip(self.batch, self.mapped, strict=True)]
        return self._replace(batch=batch, together=False)

    def doubled(self) -> "EncoderCall":
        """The same call on two copies of the only sample."""
        return self.select(torch.tensor([0, 0], device="cpu"))._replace(together=self.together)

    def tracked_params(self) -> list[Tensor]:
        """Parameters that autograd follows: the module's own, or fresh leaves."""
        owned = self.module is not None and self.module.owns(self.params)
        return list(self.params) if owned else [fresh_leaf(p) for p in self.params]

    def run(self, params: Sequence[Tensor], batch: Sequence[Any]) -> tuple[list[Any], Any]:
        """Encode, and flatten the embeddings."""
        return pytree.tree_flatten(
            self.encode(
                pytree.tree_unflatten(list(params), self.params_spec),
                pytree.tree_unflatten(list(batch), self.batch_spec),
            )
        )

    def state(self, before: State | None = None) -> State:
        """The state of the generators and buffers; buffers that did not change since ``before`` are not copied."""
        buffers = [] if self.module is None else self.module.buffers([] if before is None else before.buffers)
        return State(snapshot(self.params), buffers)

    @contextlib.contextmanager
    def replaying(self, state: State) -> Iterator[None]:
        """Inside, the encoder runs from an earlier state; outside, nothing has happened."""
        with replay(state.random), self.with_buffers(state):
            yield

    def with_buffers(self, state: State) -> contextlib.AbstractContextManager[None]:
        """As ``replaying``, but the random numbers go on."""
        return contextlib.nullcontext() if self.module is None else self.module.replaying(state.buffers)

    def versions(self) -> list[int]:
        """How often each leaf of the batch has been written to."""
        return [leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else 0 for leaf in self.batch]

    def require_versions(self, versions: Sequence[int]) -> None:
        """Raise a ValueError where the encoder wrote into the batch, although it has to run on it again."""
        names = leaf_paths(pytree.tree_unflatten(self.batch, self.batch_spec))
        for name, before, now in zip(names, versions, self.versions(), strict=True):
            if before != now:
                raise ValueError(
                    f"encode writes into batch{name}, and has to be run on it again (in chunks, or by another engine): "
                    "it would see what it wrote. Write into a copy (x = x.clone()) instead."
                )


def leaf_paths(tree: Any) -> list[str]:
    """Paths of the leaves of a tree, as Python writes them: ``['head'][0]``."""
    return [pytree.keystr(path) for path, _ in pytree.tree_leaves_with_path(tree)]


def leaf_names(tree: Any) -> list[str]:
    """Names of the leaves of a tree: keys, indices and fields joined by dots.

    Examples:
        >>> leaf_names({"head": {"weight": 1}, "tokens": [2, 3]})
        ['head.weight', 'tokens.0', 'tokens.1']
    """
    return [".".join(map(_entry_name, path)) for path, _ in pytree.tree_leaves_with_path(tree)]


def _entry_name(entry: Any) -> str:
    names = (str(getattr(entry, kind)) for kind in ("key", "idx", "name") if hasattr(entry, kind))
    return next(names, str(entry))
