"""What a training needs before its first step, from its configuration: the optimizer, the schedule, how to step."""

import torch
from torch import Tensor, nn

import harmony
from recipes.config import Config, TrainConfig
from recipes.model.harmonizer import gram_options
from recipes.training.processes import ALONE, Processes
from recipes.training.step import StepOptions


def make_optimizer(train: TrainConfig, modules: nn.ModuleDict) -> torch.optim.Optimizer:
    """Adam or AdamW over what is trained; weights decay, biases and norms (parameters with one axis) do not."""
    parts = [[p for p in modules[name].parameters() if p.requires_grad] for name in ("model", "objective")]
    if train.optimizer == "adam":
        return torch.optim.Adam([{"params": part} for part in parts], lr=train.lr, betas=train.betas, eps=train.eps)
    groups = [
        {"params": params, "weight_decay": decay}
        for part in parts
        for decay, matrices in ((train.weight_decay, True), (0.0, False))
        if (params := [p for p in part if (p.ndim > 1) == matrices])
    ]
    return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, eps=train.eps)


def learning_rate(train: TrainConfig) -> harmony.schedule.Schedule:
    """Warm-up, then a quarter period of a cosine down to the last rate."""
    decay = harmony.schedule.cosine(train.lr, train.end_lr, max(train.steps - train.warmup_steps, 1), period=0.25)
    return harmony.schedule.warmup(decay, train.warmup_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_options(
    config: Config, step: int, forward: nn.Module | None = None, processes: Processes = ALONE
) -> StepOptions:
    """How a run takes a step: by gradients where it harmonizes, or where `gram.every` asks for a measurement.

    Args:
        config: Of the run.
        step: Number of the step, from 0.
        forward, processes: See `StepOptions`.
    """
    measures = config.gram.every > 0 and step % config.gram.every == 0
    return StepOptions(
        weigh="gradients" if config.harmonize != "none" or measures else "nothing",
        gram=gram_options(config),
        extras=sides if config.has_curriculum and config.curriculum.rule == "cross_check" else None,
        precision=config.train.precision,
        clip_norm=config.train.clip_norm,
        forward=forward,
        processes=processes,
    )


def sides(objective: nn.Module, embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    """Similarities of all three pairs of modalities, which the cross-check looks at."""
    return {"sides": objective.sides(embeddings)}
