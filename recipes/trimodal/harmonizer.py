"""The harmonizer a configuration asks for: the paper's curriculum, its realignment, both or none."""

import harmony
from recipes.config import Config, GammaConfig


def harmonizer(config: Config) -> harmony.Transform:
    """Drop samples below gamma, then project what conflicts; see `harmonize` and `gamma` in the configuration."""
    curriculum = harmony.curriculum.threshold(gamma_schedule(config.gamma, config.train.steps))
    return {
        "none": harmony.chain(),
        "realign": harmony.chain(harmony.realign.pcgrad),
        "curriculum": harmony.chain(curriculum),
        "both": harmony.chain(curriculum, harmony.realign.pcgrad),
    }[config.harmonize]


def gamma_schedule(gamma: GammaConfig, steps: int) -> harmony.schedule.Schedule:
    """The threshold as a function of the step."""
    steps = gamma.steps or steps
    return {
        "linear": lambda: harmony.schedule.linear(gamma.start, gamma.end, steps),
        "cosine": lambda: harmony.schedule.cosine(gamma.start, gamma.end, steps),
        "constant": lambda: harmony.schedule.constant(gamma.start),
    }[gamma.schedule]()
