"""The typed configuration of fine-tuning and tagging: defaults of a task, `key=value` overrides, checks before work."""

import operator
from dataclasses import dataclass, field, replace
from typing import Literal

from recipes import config as configuration
from recipes import keys
from recipes.config import Config
from recipes.data.augment import AugmentConfig
from recipes.data.clips import ClipFormat
from recipes.errors import ConfigError

AT_LEAST = {
    "steps": 1, "batch_size": 1, "lr": 0, "warmup": 0, "momentum": 0, "label_smoothing": 0, "mixup": 0,
    "head_dropout": 0, "drop_token": 0, "windows": 1, "crops": 1, "workers": 0, "log_every": 1, "checkpoint_every": 1,
}  # fmt: skip
MORE_THAN = {"clip_norm": 0, "timeout": 0}
LESS_THAN = {"momentum": 1, "label_smoothing": 1, "head_dropout": 1, "drop_token": 1}


@dataclass
class TuneConfig:
    """Training of a linear head, and of the encoder with it; the defaults are VATT's for Kinetics, but for mixup.

    `clip` and `augment` are those of the checkpoint, until they are overridden.
    """

    steps: int = 100_000
    batch_size: int = 64
    lr: float = 0.005  # half a cosine down to 0, after the warm-up
    warmup: int = 2500
    momentum: float = 0.9
    clip_norm: float | None = 0.75  # of the encoder's gradient; the head's is not clipped
    label_smoothing: float = 0.1
    mixup: float = 0.2  # shares from Beta(mixup, mixup); 0: none, as VATT's code has it for video
    head_dropout: float = 0.5
    drop_token: float = 0.5
    frozen: bool = False  # train the head alone
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    windows: int = 4  # of each test clip, from its beginning to its end, whose logits are averaged
    crops: int = 3  # of each window, from left to right or from top to bottom
    workers: int = 1
    timeout: float = 60.0  # seconds that a worker may read one clip
    log_every: int = 50
    checkpoint_every: int = 1000
    clip: ClipFormat = field(default_factory=ClipFormat)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def load(defaults: TuneConfig, trained: Config, overrides: list[str]) -> TuneConfig:
    """Apply overrides to the defaults of a task.

    Args:
        defaults: Of the task; their `clip` and `augment` do not count.
        trained: The configuration of the checkpoint, which gives those two.
        overrides: ``key=value`` pairs: ``steps=100``, ``clip.size=320``.

    Raises:
        ConfigError: Unknown key, wrong type, or values that cannot work; the message names all of them.
    """
    start = replace(defaults, clip=trained.clip, augment=trained.augment)
    config = keys.fill(TuneConfig, None, overrides, start)
    check(config, trained)
    return config


def check(config: TuneConfig, trained: Config) -> None:
    """Raise a ConfigError that lists every value that cannot work."""
    bounds = (("at least", operator.ge, AT_LEAST), ("more than", operator.gt, MORE_THAN))
    problems = [
        f"{key}={value} must be {kind} {bound}"
        for kind, compare, limits in (*bounds, ("less than", operator.lt, LESS_THAN))
        for key, bound in limits.items()
        if (value := getattr(config, key)) is not None and not compare(value, bound)
    ]
    problems += keys.problems(config)
    if config.clip.inputs != "raw" or trained.clip.inputs != "raw":
        problems.append("clip.inputs must be raw: a model of features has seen neither pictures nor sound")
    if problems:
        raise ConfigError("this cannot be run:\n" + "\n".join(f"  - {problem}" for problem in problems))
    configuration.check(replace(trained, clip=config.clip, augment=config.augment))  # patches fit, and the rest
