"""Why an encoder cannot be recorded: no engine could do it, or this one cannot."""

from typing import Any


class MixedSamplesError(ValueError):
    """An op mixes the samples of the batch: a gradient per sample does not exist, whatever the engine."""

    leaves: list[Any] | None = None  # the flattened embeddings of the run that could not be recorded
    signature: Any = None  # tells its graph from others

    @classmethod
    def at_op(cls, culprit: str, op: str, parameter: str, shape: tuple[int, ...]) -> "MixedSamplesError":
        """The op that reads across samples, the op that gives the tensor, a parameter behind it, its shape."""
        module = parameter.rpartition(".")[0]
        where = f"parameter {parameter!r}" + (f" of module {module!r}" if module else "")
        return cls(
            f"encode mixes the samples of the batch, at the op of {culprit}: it reads the output of {op}, of shape "
            f"{shape}, which depends on {where}, across samples. {_REMEDY}"
        )

    @classmethod
    def by_comparison(cls) -> "MixedSamplesError":
        """Samples that are encoded alone have other embeddings than in the batch."""
        return cls(
            "encode mixes the samples of the batch: the embeddings of samples encoded alone differ from those in the "
            f"batch. {_REMEDY}"
        )


_REMEDY = (
    "A gradient per sample does not exist there. Move what couples samples (batch statistics, negatives, pooling over "
    "the batch) into the losses stage, and check that the first axis of every tensor is the sample everywhere. Over "
    'the batch as one group (group_size=B), and in feature space (space="features"), it is allowed, without chunks.'
)


class UnsupportedError(NotImplementedError):
    """The encoder is fine as far as one can see, but this engine cannot take its per-sample gradients."""

    leaves: list[Any] | None = None
    signature: Any = None


class HookedTensorError(UnsupportedError):
    """A tensor has a hook, which autograd does not call where gradients are read on their way."""

    def __init__(self) -> None:
        super().__init__(
            "encode registers a hook on a tensor (Tensor.register_hook), which may change its gradient. Gradients that "
            "are read on their way through the graph do not pass it: leave it out, or register it on a parameter"
        )


class LeakedGradientError(ValueError):
    """A backward pass did what no op does: it carried gradients between samples, or changed them on the way."""

    @classmethod
    def at_op(cls, op: str, parameter: str) -> "LeakedGradientError":
        """Gradients of some samples came to the places of others."""
        return cls(
            f"the backward pass carries gradients of some samples to the places of others, at the output of {op}, "
            f"which leads to parameter {parameter!r}. Is there a tensor hook that mixes samples? If not, please report "
            'the encoder; engine=harmony.Engine(method="loop") takes each sample alone.'
        )

    @classmethod
    def at_hook(cls, parameter: str) -> "LeakedGradientError":
        """A gradient changed between a view of a parameter and the parameter."""
        return cls(
            f"a hook changes the gradient on the way from a view, transpose or copy of parameter {parameter!r} to it. "
            'Register the hook on the parameter itself, or pass engine=harmony.Engine(method="loop").'
        )
