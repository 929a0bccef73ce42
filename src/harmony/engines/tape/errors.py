"""Why an encoder cannot be recorded: because nobody could, or because this engine cannot."""


class MixedSamplesError(ValueError):
    """An op mixes the samples of the batch: a gradient per sample does not exist, whatever the engine."""

    def __init__(self, culprit: str, op: str, parameter: str, shape: tuple[int, ...], why: str) -> None:
        module = parameter.rpartition(".")[0]
        where = f"parameter {parameter!r}" + (f" of module {module!r}" if module else "")
        super().__init__(
            f"encode mixes the samples of the batch, at the op of {culprit}: behind it, {op}, which leads to {where}, "
            f"gives a tensor of shape {shape} that {why}. A gradient per sample does not exist there. Move what "
            "couples samples (batch statistics, negatives, pooling over the batch) into the losses stage, and check "
            "that the first axis of every tensor is the sample everywhere."
        )


class UnsupportedError(NotImplementedError):
    """The encoder is fine as far as one can see, but this engine cannot take its per-sample gradients."""
