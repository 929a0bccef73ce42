"""Fine-tune the model on labelled video, as VATT is on Kinetics: top-1 and top-5 accuracy."""

import argparse

import torch
from torch import Tensor

from recipes.data.labels import Labelled
from recipes.errors import ConfigError
from recipes.evaluation import supervised
from recipes.evaluation.classifier import single_label_loss
from recipes.evaluation.results import Result
from recipes.evaluation.supervised import Figures, Task, add_options, percent
from recipes.evaluation.tuning import Loss
from recipes.evaluation.tuning_config import TuneConfig

__all__ = ["HELP", "NAME", "add_options", "run"]

NAME = "finetune"
HELP = "fine-tune on labelled video, test on several windows and crops of each clip"
COLUMNS = (
    ("top-1", percent, "top1"), ("top-5", percent, "top5"), ("chance top-1", percent, "top1_chance"),
    ("chance top-5", percent, "top5_chance"), ("clips", str, "clips"),
)  # fmt: skip


def run(options: argparse.Namespace) -> Result:
    """Fine-tune a checkpoint on what `options.data` names."""
    return supervised.run(options, Task(NAME, "video", TuneConfig(), check, loss, accuracy, COLUMNS))


def check(data: Labelled, config: TuneConfig) -> None:
    """Every clip has one label."""
    row = next((row for row, labels in enumerate(data.labels) if len(labels) != 1), None)
    if row is not None:
        raise ConfigError(
            f"the clip {data.index[row]['id']} has {len(data.labels[row])} labels: finetune needs exactly one for each "
            "clip; tagging takes several"
        )


def loss(config: TuneConfig) -> Loss:
    """Cross-entropy, smoothed."""
    return lambda logits, targets: single_label_loss(logits, targets, config.label_smoothing)


def accuracy(logits: Tensor, labels: list[list[int]]) -> Figures:
    """Shares of the clips whose class is the first, or among the first five; ties count against us."""
    own = logits.gather(1, torch.tensor(labels))
    rank = (~(logits < own)).sum(1)  # 1: no other is as high
    classes = logits.shape[1]
    return {
        "top1": float((rank <= 1).double().mean()), "top5": float((rank <= 5).double().mean()),
        "top1_chance": 1 / classes, "top5_chance": min(5 / classes, 1.0),
    }  # fmt: skip
