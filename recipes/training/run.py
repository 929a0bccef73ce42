"""A run: its data, its learner, and what came of it so far; saved as a checkpoint and loaded from one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from torch import nn

from recipes import keys
from recipes.config import Config
from recipes.data import identity, vocabulary
from recipes.data.clips import NarratedClips
from recipes.data.sampler import Source
from recipes.errors import DataError
from recipes.model.build import build
from recipes.training import checkpoint, dynamics
from recipes.training.dynamics import Dynamics
from recipes.training.ema import Ema
from recipes.training.precision import loss_scale
from recipes.training.processes import Processes, seed_of, whole
from recipes.training.start import facts_of
from recipes.training.step import Learner

COUNTS = ("skipped_clips", "skipped_steps", "failed_checkpoints", "failed_writes")

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RunData:
    """What a run reads."""

    train: Dataset
    sources: list[Source]  # that `train` is put together of, one after the other
    held_out: NarratedClips
    tokenizer: Tokenizer
    digest: str  # of the ids in `train`, on whose order the order of training rests
    seen: identity.Seen | None  # identifies the training videos; None in processes that write no checkpoint


@dataclass
class Run:
    """A run at some step."""

    config: Config
    group: Processes
    device: torch.device
    data: RunData
    learner: Learner
    forward: nn.Module  # called in place of the model in a plain pass, see `processes.spread`
    ema: Ema | None
    step: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    results: dict[str, Figures] = field(default_factory=dict)  # of "untrained", "step N", "trained"
    dynamics: Dynamics = field(default_factory=Dynamics)

    @property
    def modules(self) -> nn.ModuleDict:
        """{"model", "objective"}."""
        return self.learner.modules

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.config.folder / "checkpoints"

    def save(self) -> None:
        """Write a checkpoint of this step; every process has to call this.

        Raises:
            OSError: It could not be written; those before are as they were.
        """
        learner, scale = self.learner, self.learner.loss_scale
        tensors = checkpoint.optimizer_tensors(self.modules, learner.optimizer)
        tensors |= checkpoint.random_tensors(self.group.rank) | ({} if self.ema is None else self.ema.tensors())
        tensors |= checkpoint.tree_tensors("harmonizer", learner.state)
        facts = {"counts": self.counts, "results": self.results, "data": self.data.digest}
        facts |= {"processes": self.group.world, "loss_scale": None if scale is None else asdict(scale)}
        where = {"keep": self.config.train.keep, "processes": self.group}
        checkpoint.save(self.checkpoints, self.step, self.modules, tensors, facts, self._write_files, **where)

    def _write_files(self, folder: Path) -> None:
        """What a checkpoint holds besides tensors and facts."""
        keys.save(self.config, folder / checkpoint.CONFIG)
        vocabulary.save(self.data.tokenizer, folder / checkpoint.VOCABULARY)
        identity.save(self.data.seen, folder / identity.FILE)
        dynamics.save(self.dynamics, folder / dynamics.FILE)

    def load(self, start: Path) -> None:
        """Go on from a checkpoint, as if training had never stopped; with other processes, with other dropped tokens.

        Raises:
            CheckpointError: It is damaged, or of another model.
            DataError: Its run trained on other videos.
        """
        config, learner, facts = self.config, self.learner, facts_of(start, self.config.train.steps)
        if facts["data"] != self.data.digest:
            raise DataError(
                f"the training videos are not those that {start} was trained on: a run cannot go on with others"
            )
        checkpoint.load_weights(start, self.modules)
        checkpoint.load_optimizer(start, self.modules, learner.optimizer)
        learner.state = checkpoint.load_tree("harmonizer", learner.state, checkpoint.read_tensors(start, "harmonizer."))
        learner.loss_scale = loss_scale(config.train, facts.get("loss_scale"))
        if self.ema is not None:
            checkpoint.load_tensors(start, self.ema.tensors())
        self.dynamics = dynamics.load(start / dynamics.FILE)
        self.step, self.counts, self.results = facts["step"], self.counts | facts["counts"], facts["results"]
        if facts["processes"] == self.group.world:
            checkpoint.load_random(checkpoint.read_tensors(start, "random."), self.group.rank)
        else:
            torch.manual_seed(seed_of(config.train.seed, self.group.rank, self.step))

    @contextmanager
    def evaluated(self) -> Iterator[nn.ModuleDict]:
        """The modules to evaluate: whole, with the averaged weights where there are such; every process takes part."""
        sharded = self.config.train.parallel == "fsdp" and self.group.world > 1
        with nullcontext() if self.ema is None else self.ema.swapped():
            yield self._put_together() if sharded else self.modules

    def _put_together(self) -> nn.ModuleDict:
        """A copy of the modules without shards."""
        state = {name: whole(tensor) for name, tensor in self.modules.state_dict().items()}
        with torch.random.fork_rng(devices=[]):  # training goes on with the numbers that it would have drawn
            plain = build(self.config, self.data.tokenizer, {name: tensor.shape for name, tensor in state.items()})
        plain.load_state_dict(state)
        return plain.to(self.device)
