"""Train the model to tag sound, as VATT is on AudioSet: mean average precision, area under the ROC curve, d-prime.

python -m recipes.evaluate tagging checkpoint=runs/demo data=audioset steps=1000 lr=0.01
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from recipes.config import BILLION
from recipes.data.labels import Labelled
from recipes.evaluation import multilabel, supervised
from recipes.evaluation.classifier import Loss, multi_hot, multi_label_loss
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


def loss(keys: TuningKeys) -> Loss:
    """Sigmoid cross-entropy."""
    return multi_label_loss


def score(logits: Tensor, labels: list[list[int]]) -> Figures:
    """The figures of `multilabel.tagging`."""
    truth = multi_hot(labels, logits.shape[1]).bool()
    return multilabel.tagging(logits.numpy(), truth.numpy())


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


TASK = Task("tagging", "audio", False, loss, score, COLUMNS, left_out)
run, plan, complete = partial(supervised.run, TASK), partial(supervised.plan, TASK), supervised.complete
