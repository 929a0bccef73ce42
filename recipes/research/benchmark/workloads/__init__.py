"""What the step is taken on: models with their losses and random batches, of sizes that can be swept."""

from collections.abc import Callable
from typing import Literal

import torch

from recipes.research.benchmark.workloads import third_party, trimodal
from recipes.research.benchmark.workloads.pictures import cnn
from recipes.research.benchmark.workloads.trimodal import random_clips
from recipes.research.benchmark.workloads.workload import Batch, Spec, Workload, WorkloadError

__all__ = [
    "ANY_LOSSES",
    "BUILDERS",
    "Batch",
    "Name",
    "Spec",
    "Workload",
    "WorkloadError",
    "build",
    "default",
    "random_clips",
]
Name = Literal["reference", "vatt", "lora", "moe", "demo", "cnn", "bert", "vit", "llama", "whisper"]
BUILDERS: dict[str, Callable[[Spec], Workload]] = {
    "reference": trimodal.reference,
    "vatt": trimodal.vatt,
    "lora": trimodal.lora,
    "moe": trimodal.moe,
    "demo": trimodal.demo,
    "cnn": cnn,
    "bert": third_party.bert,
    "vit": third_party.vit,
    "llama": third_party.llama,
    "whisper": third_party.whisper,
}
ANY_LOSSES = ("reference", "vatt", "lora", "moe")  # workloads that take any number of losses


def build(spec: Spec) -> Workload:
    """The workload of a spec, with the same random weights every time."""
    if spec.width % spec.heads:
        raise WorkloadError(f"width {spec.width} is not a multiple of {spec.heads} heads: choose width= or heads=")
    torch.manual_seed(0)
    return BUILDERS[spec.workload](spec)


def default(workload: str) -> Spec:
    """The point at which a workload is measured if nothing else is asked for."""
    if workload == "demo":
        return Spec(workload, **trimodal.demo_sizes())
    sizes = {"vit": {"tokens": 64}, "cnn": {"tokens": 64}, "vatt": trimodal.VATT_SMALL}
    return Spec(workload, **sizes.get(workload, {}))
