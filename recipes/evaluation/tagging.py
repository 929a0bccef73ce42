"""Train the model to tag sound, as VATT is on AudioSet: mean average precision, area under the ROC curve, d-prime.

python -m recipes.evaluate tagging checkpoint=runs/demo data=audioset steps=1000 lr=0.01
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from recipes.config import BILLION
from recipes.data.labels import Labelled
from recipes.evaluation import supervised
from recipes.evaluation.classifier import multi_hot, multi_label_loss
from recipes.evaluation.results import Figures, percent
from recipes.evaluation.supervised import Task, TuningKeys
from recipes.keys import key

COLUMNS = (
    ("mAP", percent, "map"),
    ("AUC", percent, "auc"),
    ("d′", "{:.3f}".format, "d_prime"),
    ("d′ of the mean AUC", "{:.3f}".format, "d_prime_of_auc"),
    ("chance mAP", percent, "map_chance"),
    ("classes", str, "classes"),
    ("clips", str, "clips"),
)


@dataclass
class Keys(TuningKeys):
    """`TuningKeys` with the defaults of VATT's code for AudioSet."""

    steps: int = key(50_000, "steps of the optimizer", least=1, most=BILLION)
    label_smoothing: float = key(0.0, "tagging has none", least=0, most=0)
    mixup: float = key(5.0, "clips are mixed in shares from Beta(mixup, mixup); 0: not at all", least=0)
    head_dropout: float = key(0.0, "dropout before the head", least=0, less_than=1)
    crops: int = key(1, "sound has no crops", least=1, most=1)


def score(logits: Tensor, labels: list[list[int]]) -> Figures:
    """See `figures_of`."""
    return figures_of(logits.numpy(), multi_hot(labels, logits.shape[1]).bool().numpy())


def figures_of(scores: np.ndarray, truth: np.ndarray) -> Figures:
    """Judge scores (N, C), higher for a label that is more likely, by the labels (N, C) that the clips have.

    Returns:
        Plain values, means over the classes that can be judged: average precision `map`, and what scores that know
        nothing have of it, `map_chance`; area under the ROC curve `auc`; `d_prime`, as VATT's code has it, and
        `d_prime_of_auc` of the mean area, as most of the literature on AudioSet has it. Further the number of these
        `classes`, and the numbers of the classes `left_out`: all clips have the label, or none has it.

    Raises:
        ValueError: No class has both a clip with it and a clip without it.
    """
    positives = truth.sum(0)
    judged = np.flatnonzero((positives > 0) & (positives < len(truth)))
    if not len(judged):
        raise ValueError(
            f"none of the {truth.shape[1]} classes has both a clip with it and a clip without it among the "
            f"{len(truth)} test clips, so that nothing can be judged"
        )
    precision = [average_precision_score(truth[:, c], scores[:, c]) for c in judged]
    area = [roc_auc_score(truth[:, c], scores[:, c]) for c in judged]
    pairs = [positives[c] * (len(truth) - positives[c]) for c in judged]
    return {
        "map": float(np.mean(precision)),
        "auc": float(np.mean(area)),
        "d_prime": float(np.mean([d_prime(a, p) for a, p in zip(area, pairs, strict=True)])),
        "d_prime_of_auc": d_prime(float(np.mean(area)), sum(pairs)),
        "map_chance": float(positives[judged].mean() / len(truth)),
        "classes": len(judged),
        "left_out": np.setdiff1d(np.arange(truth.shape[1]), judged).tolist(),
    }


def d_prime(area: float, pairs: int) -> float:
    """Distance, in deviations, of two normal distributions whose ROC curve has an area between 0 and 1 below it.

    A perfect order would be infinitely far: it counts as if half a pair, a clip with the label and one without, were
    wrong.
    """
    return float(np.sqrt(2) * norm.ppf(np.clip(area, 0.5 / pairs, 1 - 0.5 / pairs)))


def left_out(data: Labelled, figures: dict[str, Figures]) -> str:
    """The classes that are not judged in each split."""
    lines = []
    for split, figures_of_split in figures.items():
        if numbers := figures_of_split.get("left_out"):
            shown = ", ".join(data.names[number] for number in numbers[:5])
            more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
            reason = "the test clips have none of them or nothing else"
            lines.append(f"Split {split}, not judged, as {reason}: {shown}{more}.")
    return "\n".join(lines)


TASK = Task("tagging", "audio", False, lambda keys: multi_label_loss, score, COLUMNS, left_out)
run, plan, complete = partial(supervised.run, TASK), partial(supervised.plan, TASK), supervised.complete
