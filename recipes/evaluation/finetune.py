"""Fine-tune the model on labelled video, as VATT is on Kinetics, and test it on windows and crops of each clip.

python -m recipes.evaluate finetune checkpoint=runs/demo data=kinetics steps=1000 lr=0.01
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.evaluation import supervised
from recipes.evaluation.classifier import Loss
from recipes.evaluation.results import Figures, percent
from recipes.evaluation.supervised import Task, TuningKeys

COLUMNS = (
    ("top-1", percent, "top1"),
    ("top-5", percent, "top5"),
    ("chance top-1", percent, "top1_chance"),
    ("chance top-5", percent, "top5_chance"),
    ("clips", str, "clips"),
)


def loss(keys: TuningKeys) -> Loss:
    """Cross-entropy (b,) with label smoothing; targets (b, c) are probabilities."""
    return partial(F.cross_entropy, label_smoothing=keys.label_smoothing, reduction="none")


def accuracy(logits: Tensor, labels: list[list[int]]) -> Figures:
    """Shares of the clips whose class is the first, or among the first five; ties count against us."""
    own = logits.gather(1, torch.tensor(labels))
    rank = (~(logits < own)).sum(1)  # 1: no other is as high
    classes = logits.shape[1]
    return {
        "top1": float((rank <= 1).double().mean()),
        "top5": float((rank <= 5).double().mean()),
        "top1_chance": 1 / classes,
        "top5_chance": min(5 / classes, 1.0),
    }


TASK = Task("finetune", "video", True, loss, accuracy, COLUMNS)
Keys = TuningKeys
run, plan, complete = partial(supervised.run, TASK), partial(supervised.plan, TASK), supervised.complete
