"""A rule: how the clips of a run are weighed."""

from collections.abc import Callable
from dataclasses import dataclass, field

import harmony
from recipes.config import Config, TrainConfig
from recipes.model.objective import Objective
from recipes.research.study.clips import World
from recipes.research.study.noise import Noisy
from recipes.research.study.world import WorldConfig
from recipes.training.step import Extras, Weigh

WARMUP = 0.1  # share of the steps in which rules of the literature keep everything

Make = Callable[[TrainConfig, Noisy], harmony.Transform]  # the oracle alone reads the truth
Prepare = Callable[[WorldConfig, World, Noisy, int], Noisy]  # the int is the seed


@dataclass(frozen=True)
class Rule:
    """How clips are weighed."""

    weigh: Weigh  # by what, see `recipes.training.step.StepOptions`
    recipe: Config = field(default_factory=lambda: Config(harmonize="none"))  # its harmonizer's keys
    transform: Make | None = None  # in place of the recipe's harmonizer
    extras: Extras | None = None  # what the harmonizer sees of the embeddings, beside what the recipe gives
    prepare: Prepare | None = None  # what is done to the clips first
    networks: int = 1  # 2 for co-teaching: each network is weighed by the other
    objective: type[Objective] = Objective  # the losses


def warmup_steps(train: TrainConfig) -> int:
    """Steps in which rules of the literature keep everything."""
    return round(WARMUP * train.steps)
