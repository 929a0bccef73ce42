"""Whether a run can start, and where: what its processes have to agree on, and the checkpoint to go on from."""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from recipes import config as configuration
from recipes import keys
from recipes.config import Config, GramConfig, TrainConfig
from recipes.errors import ConfigError, Failure
from recipes.training import checkpoint
from recipes.training.checkpoint import CheckpointError
from recipes.training.processes import Processes, digest

OWN = ("data.workers:", "data.timeout:", "train.device:")  # keys that each process may have of its own
FREE = (  # keys that may change on resume; word vectors are in the checkpoint
    *("data.workers:", "data.timeout:", "data.prefetch_gib:", "data.word_vectors:", "gram.probe"),
    *("train.device:", "train.parallel:", "train.max_bad_steps:", "train.keep:"),
    *("evaluate.every:", "evaluate.untrained:", "evaluate.best:", "evaluate.batch_size:"),
)

log = logging.getLogger(__name__)


class TrainingError(Failure):
    """A run that cannot go on; its last checkpoint is whole."""


def check_processes(train: TrainConfig, gram: GramConfig, group: Processes) -> None:
    """Raise a ConfigError where these processes cannot share such a run."""
    if train.batch_size % group.world:
        raise ConfigError(f"train.batch_size={train.batch_size} must be a multiple of the {group.world} processes")
    if train.compile and group.world > 1:
        raise ConfigError("train.compile is for a single process so far")
    if train.parallel == "fsdp" and group.world > 1 and gram.probe:
        raise ConfigError("gram.probe looks at whole parameters: it needs train.parallel=ddp")


def check_same(config: Config, group: Processes) -> None:
    """Raise a ConfigError in all processes where one of them has another configuration than the first."""
    first = group.decide(lambda: config)
    changed = [line for line in keys.differences(first, config) if not line.startswith(OWN)]
    changed = group.collect([f"process {group.rank}: {line}" for line in changed])
    if changed:
        raise ConfigError("the processes have different configurations:\n  " + "\n  ".join(changed))


def check_agreement(group: Processes, step: int, data: str, modules: nn.ModuleDict) -> None:
    """Raise a TrainingError in all processes unless they are at the same step, with the same weights and data."""
    if group.group is None:
        return
    states = group.collect([{"step": step, "training videos": data, "weights": digest(modules)}])
    wrong = [
        f"process {rank}: {name} {value}, where the first has {states[0][name]}"
        for rank, state in enumerate(states)
        for name, value in state.items()
        if value != states[0][name]
    ]
    if wrong:
        raise TrainingError("the processes do not begin alike:\n  " + "\n  ".join(wrong))


def latest_checkpoint(config: Config) -> Path | None:
    """The checkpoint to resume from; None where the run died before its first one; a ConfigError where none fits."""
    if not (config.folder / checkpoint.CONFIG).is_file():
        raise ConfigError(f"{config.folder}: there is no run to resume; start it without --resume")
    begun = configuration.load(config.folder / checkpoint.CONFIG, to_train=False)
    longer = ("train.steps:",) if config.train.steps > begun.train.steps else ()
    changed = [line for line in keys.differences(begun, config) if not line.startswith(FREE + longer)]
    if changed:
        raise ConfigError(f"{config.folder} was started with another configuration:\n  " + "\n  ".join(changed))
    try:
        return checkpoint.latest(config.folder)
    except FileNotFoundError:
        log.warning("%s has no checkpoint yet: beginning with step 0", config.folder)
        return None


def is_trained(config: Config) -> bool:
    """Whether a run is finished; raises a ConfigError where it is one of another configuration."""
    if not (config.folder / "retrieval.json").exists():
        return False
    begun = configuration.load(config.folder / checkpoint.CONFIG, to_train=False)
    if changed := [line for line in keys.differences(begun, config) if not line.startswith(FREE)]:
        lines = "\n  ".join(changed)
        raise ConfigError(f"{config.folder} is of another configuration; choose another folder:\n  {lines}")
    return True


def facts_of(start: Path, steps: int) -> dict[str, Any]:
    """What a checkpoint says of its run, which is to have so many steps.

    Raises:
        CheckpointError: No run can go on from it.
    """
    facts = checkpoint.load_facts(start, data=str, processes=int, counts=dict, results=dict)
    step, processes, scale = facts["step"], facts["processes"], facts.get("loss_scale")
    tasks = facts["results"].values()
    problems = {
        f"step is {step}, but train.steps={steps}": step > steps,
        f"processes is {processes}; expected 1 or more": processes < 1,
        "counts are not whole numbers": not all(type(value) is int for value in facts["counts"].values()),
        "results are not figures of tasks": not all(
            isinstance(task, dict) and all(isinstance(figures, dict) for figures in task.values()) for task in tasks
        ),
        "loss_scale is not a value and good_steps": scale is not None and not _is_loss_scale(scale),
    }
    if wrong := [problem for problem, holds in problems.items() if holds]:
        raise CheckpointError(f"{start / checkpoint.STATE}: " + "; ".join(wrong))
    return facts


def _is_loss_scale(scale: Any) -> bool:
    return (
        isinstance(scale, dict)
        and scale.keys() == {"value", "good_steps"}
        and all(isinstance(value, int | float) for value in scale.values())
    )
