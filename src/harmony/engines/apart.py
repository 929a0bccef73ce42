"""Ordinary runs of a part of the batch, of encoders that keep samples apart: in chunks, an encoder that mixes them is
another model.
"""

from harmony.engines.encoded import Trace
from harmony.engines.fallback import compare, run_reference
from harmony.engines.random import snapshot
from harmony.engines.tape.errors import MixedSamplesError, UnsupportedError
from harmony.engines.tape.graph import walk
from harmony.engines.tape.sample_axis import sample_axis
from harmony.engines.tape.verify import Verify
from harmony.engines.trace import Inputs, Pass, State, detached, trace_batch


def trace_apart(inputs: Inputs, verify: Verify) -> Trace:
    """Run the encoder once on a chunk with ordinary autograd, and see that it keeps the samples apart.

    Args:
        inputs: The call on a chunk.
        verify: As for ``fall_back``; ``"never"`` looks at nothing.

    Returns:
        The run; it has no gradients of single samples.

    Raises:
        MixedSamplesError: The encoder mixes the samples of the chunk.
        UnsupportedError: The graph does not tell, and embeddings cannot be compared.
    """
    if verify == "never" or inputs.size == 1:  # a lone sample has nobody to be mixed with
        return trace_batch(inputs)
    state = inputs.state()
    return trace_batch(inputs, lambda run: _require_apart(run, inputs, state, verify))


def require_pair_apart(inputs: Inputs, verify: Verify) -> None:
    """As ``trace_apart``, where all chunks are of one sample: look at the first two samples together."""
    with inputs.replaying(inputs.state()):
        trace_apart(inputs.narrow(slice(0, 2)), verify)


def _require_apart(run: Pass, inputs: Inputs, state: State, verify: Verify) -> None:
    """Raise unless the graph keeps samples apart, or their embeddings are the same when each is encoded alone."""
    graph = None
    try:
        graph = walk(run.outputs)
        sample_axis(graph, run.outputs, inputs.batch, inputs.size, dict(zip(run.params, inputs.names, strict=True)))
    except (MixedSamplesError, UnsupportedError) as error:
        error.signature = inputs.size, None if graph is None else graph.signature()
        with inputs.replaying(state):
            before = snapshot(inputs.params)
            trace, _, _ = run_reference(inputs, error)
            compare(inputs, trace, before, error, detached(run.leaves), verify)
