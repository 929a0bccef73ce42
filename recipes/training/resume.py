"""Whether and from where a run can go on: with the configuration that it was begun with, from its newest checkpoint."""

import logging
from pathlib import Path
from typing import Any

from recipes import config as configuration
from recipes import keys
from recipes.config import Config
from recipes.errors import ConfigError
from recipes.training import checkpoint
from recipes.training.checkpoint import CheckpointError

FREE = (  # keys that may change on resume
    "data.workers:",
    "data.timeout:",
    "data.prefetch_gib:",
    "data.word_vectors:",  # the checkpoint has them
    "train.device:",
    "train.parallel:",
    "train.max_bad_steps:",
    "train.keep:",
    "gram.probe",
    "evaluate.every:",
    "evaluate.untrained:",
    "evaluate.best:",
    "evaluate.batch_size:",
)

log = logging.getLogger(__name__)


def latest_checkpoint(config: Config) -> Path | None:
    """The checkpoint to resume from; None where the run died before its first one.

    Raises:
        ConfigError: There is no such run, it has another configuration, or none of its checkpoints is whole.
    """
    if not (config.folder / "config.yaml").is_file():
        raise ConfigError(f"{config.folder}: there is no run to resume; start it without --resume")
    begun = configuration.load(config.folder / "config.yaml", to_train=False)
    longer = ("train.steps:",) if config.train.steps > begun.train.steps else ()
    changed = [line for line in keys.differences(begun, config) if not line.startswith(FREE + longer)]
    if changed:
        raise ConfigError(f"{config.folder} was started with another configuration:\n  " + "\n  ".join(changed))
    try:
        return checkpoint.latest(config.folder)
    except FileNotFoundError:
        log.warning("%s has no checkpoint yet: beginning with step 0", config.folder)
        return None


def facts_of(start: Path, config: Config) -> dict[str, Any]:
    """What a checkpoint says of its run.

    Raises:
        CheckpointError: It is nothing to go on from.
    """
    facts = checkpoint.load_facts(start, data=str, processes=int, counts=dict, results=dict)
    step, steps, processes, scale = facts["step"], config.train.steps, facts["processes"], facts.get("loss_scale")
    problems = []
    if step > steps:
        problems.append(f"step is {step}, but train.steps={steps}")
    if processes < 1:
        problems.append(f"processes is {processes}; expected 1 or more")
    if not all(type(value) is int for value in facts["counts"].values()):
        problems.append("counts are not whole numbers")
    if not all(isinstance(t, dict) and all(isinstance(f, dict) for f in t.values()) for t in facts["results"].values()):
        problems.append("results are not figures of tasks")
    if scale is not None and not _is_loss_scale(scale):
        problems.append("loss_scale is not a value and good_steps")
    if problems:
        raise CheckpointError(f"{start / checkpoint.STATE}: " + "; ".join(problems))
    return facts


def _is_loss_scale(scale: Any) -> bool:
    return (
        isinstance(scale, dict)
        and scale.keys() == {"value", "good_steps"}
        and all(isinstance(value, int | float) for value in scale.values())
    )
