"""Why an encoder cannot be recorded: because nobody could, or because this engine cannot."""


class MixedSamplesError(ValueError):
    """An op mixes the samples of the batch: a gradient per sample does not exist, whatever the engine."""

    def __init__(self, op: str, parameter: str, shape: tuple[int, ...], why: str) -> None:
        super().__init__(
            f"encode mixes the samples of the batch: {op}, on the way to parameter {parameter!r}, gives a tensor of "
            f"shape {shape} that {why}. A gradient per sample does not exist there. Move what couples samples (batch "
            "statistics, negatives, pooling over the batch) into the losses stage, and check that the first axis of "
            "every tensor is the sample everywhere."
        )


class UnsupportedError(NotImplementedError):
    """The encoder is fine as far as one can see, but this engine cannot take its per-sample gradients."""
