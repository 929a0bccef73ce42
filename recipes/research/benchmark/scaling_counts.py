"""What the model of a configuration asks for: operations, bytes held for the backward pass, bytes sent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from recipes.config import Config
from recipes.evaluation.plan import activation_bytes
from recipes.model.objective import Objective
from recipes.model.vatt import SIZES, VATT
from recipes.research.benchmark.workloads import random_clips
from recipes.training.precision import forward_in

FLOAT = 4  # bytes of what is sent and of all state: float32


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(g: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(g, q, k, v)


ON_CPU = {  # attention, which torch's counter knows on other devices alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass(frozen=True)
class Counts:
    """What the model of a configuration asks for."""

    parameters: int  # of the encoder
    heads: int  # parameters of the heads
    forward: float  # operations of the encoder's forward pass, a clip
    held: float  # bytes that its backward pass needs, a clip, in the run's precision
    losses: float  # operations of the losses stage, there and back, of the whole batch


def count(config: Config) -> Counts:
    """Count on tensors that have shapes and no values: nothing is computed and no memory is taken."""
    clip, words, batch = config.clip, config.data.vocabulary, config.train.batch_size
    width, precision = SIZES[config.model.size].output, config.train.precision
    with FakeTensorMode():
        model, objective = VATT(config.model, clip, words), Objective(config.objective, width)
        # What is held once, such as weights in another precision, drops out of the difference.
        few, more = (activation_bytes(model, random_clips(clip, words, number), precision) for number in (2, 4))
        encode = forward_in(precision, torch.device("cpu"))
        forward = operations(lambda: encode(model, random_clips(clip, words, 2)))
        embeddings = {"video": (batch, width), "audio": (batch, width), "text": (batch, clip.narrations, width)}
        leaves = {name: torch.zeros(shape, requires_grad=True) for name, shape in embeddings.items()}
        inputs = random_clips(clip, words, batch) | leaves
        losses = operations(
            lambda: torch.stack([terms.mean() for terms in objective(inputs).values()]).sum().backward()
        )
    numbers = (sum(p.numel() for p in module.parameters()) for module in (model, objective))
    return Counts(*numbers, forward=forward / 2, held=(more - few) / 2, losses=losses)


def operations(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention of a call."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        call()
    return counter.get_total_flops()


def traffic(counts: Counts, config: Config, processes: int) -> dict[str, float]:
    """Bytes that a process sends in a step, by what they are; it receives as many.

    Sums go round a ring twice; what is gathered goes round once, and so, on average, does what one sends to all.
    """
    once = (processes - 1) / processes
    batch, narrations = config.train.batch_size, config.clip.narrations
    embedding = (2 + narrations) * SIZES[config.model.size].output * FLOAT
    masks = 1 + narrations + 8 * narrations + 8
    harmonized = config.harmonize != "none"
    return {
        "gradients": 2 * once * counts.parameters * FLOAT,
        "gradients of the heads": once * counts.heads * FLOAT,
        "embeddings": once * batch * (embedding + masks),
        "Gram blocks and weights": once * batch / config.gram.group_size * 6 * FLOAT * harmonized,
    }
