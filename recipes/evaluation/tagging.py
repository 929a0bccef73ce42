"""Train the model to tag sound, as VATT is on AudioSet: mean average precision, area under the ROC curve, d-prime."""

import argparse

from torch import Tensor

from recipes.data.labels import Labelled
from recipes.errors import ConfigError
from recipes.evaluation import multilabel, supervised
from recipes.evaluation.classifier import multi_hot, multi_label_loss
from recipes.evaluation.results import Result
from recipes.evaluation.supervised import Figures, Task, add_options, percent
from recipes.evaluation.tuning import Loss
from recipes.evaluation.tuning_config import TuneConfig

__all__ = ["HELP", "NAME", "add_options", "run"]

NAME = "tagging"
HELP = "train on sound with several labels, test on several windows of each clip"
DEFAULTS = TuneConfig(steps=50_000, label_smoothing=0.0, mixup=5.0, head_dropout=0.0, crops=1)
COLUMNS = (
    ("mAP", percent, "map"), ("AUC", percent, "auc"), ("d′", "{:.3f}".format, "d_prime"),
    ("d′ of the mean AUC", "{:.3f}".format, "d_prime_of_auc"), ("chance mAP", percent, "map_chance"),
    ("classes", str, "classes"), ("clips", str, "clips"),
)  # fmt: skip


def run(options: argparse.Namespace) -> Result:
    """Train a checkpoint on what `options.data` names."""
    return supervised.run(options, Task(NAME, "audio", DEFAULTS, check, loss, score, COLUMNS, left_out))


def check(data: Labelled, config: TuneConfig) -> None:
    """Nothing is asked for that sound with several labels does not have."""
    if config.crops != 1 or config.label_smoothing:
        raise ConfigError(f"crops={config.crops} and label_smoothing={config.label_smoothing}: tagging has neither")


def loss(config: TuneConfig) -> Loss:
    """Sigmoid cross-entropy."""
    return multi_label_loss


def score(logits: Tensor, labels: list[list[int]]) -> Figures:
    """The figures of `multilabel.tagging`."""
    truth = multi_hot(labels, logits.shape[1]).bool()
    return multilabel.tagging(logits.numpy(), truth.numpy())._asdict()


def left_out(data: Labelled, figures: dict[str, Figures]) -> str:
    """Which classes are not judged in a split."""
    lines = []
    for split, of in figures.items():
        if numbers := of.get("left_out"):
            shown = ", ".join(data.names[number] for number in numbers[:5])
            more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
            lines.append(
                f"Split {split}, not judged, as the test clips have none of them or nothing else: {shown}{more}."
            )
    return "\n".join(lines)
