"""Batches of the workloads that can be learnt: each sample has eight attributes, which both of its sides show in noise.

A side is a modality, or the label. In a fifth of the samples the side of the second loss, a text or a label, shows the
attributes of another sample: gradients have a reason to conflict, as in data from the web.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.research.benchmark.workloads import Batch, Workload

ATTRIBUTES, VALUES = 8, 4
WRONG = 0.2  # share of the samples with a side of another one
STRENGTH = 0.5  # of the signal, where the noise has a standard deviation of one


def learnable(workload: Workload) -> Callable[[int], Batch]:
    """As the workload's ``draw``: number of samples -> a fresh batch, its noise with a signal in it."""
    show = SIGNALS[workload.spec.workload]

    def draw(size: int) -> Batch:
        shown = torch.randint(0, VALUES, (size, ATTRIBUTES))
        wrong = torch.rand(size, 1) < WRONG
        return show(workload.draw(size), shown, torch.where(wrong, shown.roll(1, 0), shown))

    return draw


def signal(attributes: Tensor, like: Tensor, seed: int) -> Tensor:
    """A sum of fixed random patterns (b, ...), one for each attribute's value, with variance one."""
    patterns = torch.randn(ATTRIBUTES * VALUES, like[0].numel(), generator=torch.Generator().manual_seed(seed))
    values = F.one_hot(attributes, VALUES).flatten(1).float()  # (b, ATTRIBUTES * VALUES)
    return (values @ patterns / ATTRIBUTES**0.5).view_as(like)


def words(attributes: Tensor) -> Tensor:
    """A word (b, ATTRIBUTES) for each attribute's value, from 1 on."""
    return 1 + torch.arange(ATTRIBUTES) * VALUES + attributes


def label(attributes: Tensor) -> Tensor:
    """One of eight classes, by two of the attributes."""
    return 2 * attributes[:, 0] + attributes[:, 1] // 2


def _reference(batch: Batch, shown: Tensor, other: Tensor) -> Batch:
    sides = {"video": shown, "audio": shown, "text": other}
    return {name: x + STRENGTH * signal(sides[name], x, seed) for seed, (name, x) in enumerate(batch.items())}


def _demo(batch: Batch, shown: Tensor, other: Tensor) -> Batch:
    noise = batch["video"].float()
    video = 127 + 0.5 * (noise - 127) + 74 * STRENGTH * signal(shown, noise, 0)  # 74: deviation of a uniform byte
    audio = batch["audio"] + STRENGTH * signal(shown, batch["audio"], 1)
    text = batch["text"].clone()
    text[..., :ATTRIBUTES] = words(other)[:, None]
    return batch | {"video": video.clamp(0, 255).byte(), "audio": audio.clamp(-1, 1), "text": text}


def _bert(batch: Batch, shown: Tensor, other: Tensor) -> Batch:
    noise = batch["input_ids"]
    said = words(shown).gather(1, torch.randint(0, ATTRIBUTES, noise.shape))
    spoken = torch.where(torch.rand(noise.shape) < STRENGTH, said, noise)
    return {"input_ids": spoken, "label": label(other)}


def _vit(batch: Batch, shown: Tensor, other: Tensor) -> Batch:
    noise = batch["pixel_values"]
    return {"pixel_values": noise + STRENGTH * signal(shown, noise, 0), "label": label(other)}


SIGNALS = {"reference": _reference, "demo": _demo, "bert": _bert, "vit": _vit}
