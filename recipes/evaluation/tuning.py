"""Training of a classifier on labelled clips, which can be interrupted and resumed, and its logits on test clips."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import harmony
from recipes.config import BILLION, AugmentConfig, ClipFormat, DataConfig
from recipes.data.sampler import BatchSampler, Source
from recipes.data.skipped import SKIPPED
from recipes.data.windows import RandomWindows, WindowedClips, collate
from recipes.data.workers import Loader
from recipes.errors import ConfigError
from recipes.evaluation.classifier import mixup, multi_hot
from recipes.evaluation.embedding import Outputs, outputs
from recipes.files import digest
from recipes.keys import as_dict, flat, key, section
from recipes.training import checkpoint
from recipes.training.endings import Patience, attempt
from recipes.training.interruption import Interruption
from recipes.training.journal import Journal
from recipes.training.precision import forward_in
from recipes.training.setup import set_learning_rate
from recipes.training.step import Learner, StepOptions, StepResult, idle_step, train_step

FREE = ("timeout", "log_every", "checkpoint_every", "windows", "crops")  # may change on resume
PATIENCE = 20  # steps in a row that cannot be taken, before training stops


@dataclass
class Tuning:
    """Training of a linear head, and of the encoder with it; the defaults are VATT's for Kinetics, but for mixup."""

    steps: int = key(100_000, "steps of the optimizer", least=1, most=BILLION)
    batch_size: int = key(64, "clips of a step", least=1, most=2**20)
    lr: float = key(0.005, "learning rate after the warm-up; half a cosine takes it down to 0", least=0)
    warmup: int = key(2500, "steps of the warm-up", least=0, most=BILLION)
    momentum: float = key(0.9, "momentum of SGD", least=0, less_than=1)
    clip_norm: float | None = key(0.75, "longest gradient of the encoder; the head's is not clipped", more_than=0)
    label_smoothing: float = key(0.1, "label smoothing", least=0, less_than=1)
    mixup: float = key(0.2, "clips are mixed in shares from Beta(mixup, mixup); 0: not at all, as VATT's code", least=0)
    head_dropout: float = key(0.5, "dropout before the head", least=0, less_than=1)
    drop_token: float = key(0.5, "share of the tokens that training drops", least=0, less_than=1)
    frozen: bool = key(False, "train the head alone")
    seed: int = key(0, "seed of everything random", least=0, most=2**32 - 1)
    precision: Literal["fp32", "bf16"] = key("fp32", "precision of the encoder")
    windows: int = key(4, "windows of each test clip, whose logits are averaged", least=1, most=1000)
    crops: int = key(3, "squares of each window, from one end of its longer side to the other", least=1, most=1000)
    timeout: float = key(60.0, "seconds that a worker may read one clip", more_than=0, most=7 * 86_400)
    log_every: int = key(50, "steps between lines of metrics.jsonl", least=1, most=BILLION)
    checkpoint_every: int = key(1000, "steps between checkpoints", least=1, most=BILLION)
    clip: ClipFormat = section(ClipFormat, "the shape of a clip; default: as in training")
    augment: AugmentConfig = section(AugmentConfig, "how much to vary a clip; default: as in training")

    def protocol(self) -> dict[str, Any]:
        """These keys as plain values, without those that a subclass adds."""
        values = as_dict(self)
        return {f.name: values[f.name] for f in fields(Tuning)}

    def fixed(self) -> dict[str, Any]:
        """The keys that must not change on resume, by dotted names, as JSON gives them back."""
        values = {name: value for name, value in self.protocol().items() if name not in FREE}
        return json.loads(json.dumps(flat(values)))


@dataclass
class Training:
    """A training of a classifier at some step, by SGD with momentum."""

    modules: nn.ModuleDict  # the classifier {"model", "objective"}
    clips: RandomWindows  # to train on
    labels: Sequence[Sequence[int]]  # class numbers of each clip
    how: Tuning
    folder: Path  # of checkpoints, metrics.jsonl, tensorboard/ and skipped.jsonl
    step: int = 0
    skipped_steps: int = 0
    learner: Learner = field(init=False)

    def __post_init__(self) -> None:
        """Make the optimizer, and what tells this training from others in its folder."""
        torch.manual_seed(self.how.seed)
        trained = [p for p in self.modules.parameters() if p.requires_grad]
        self.learner = Learner(self.modules, torch.optim.SGD(trained, lr=self.how.lr, momentum=self.how.momentum))
        lines = (f"{name} {list(own)}\n" for name, own in zip(self.clips.index["id"], self.labels, strict=True))
        self.facts = {"config": self.how.fixed(), "data": digest(line.encode() for line in lines)}

    def save(self) -> None:
        """Write a checkpoint in place of the one before."""
        tensors = checkpoint.optimizer_tensors(self.modules, self.learner.optimizer) | checkpoint.random_tensors()
        facts = self.facts | {"skipped_steps": self.skipped_steps}
        checkpoint.save(self.folder / "checkpoints", self.step, self.modules, tensors, facts, keep=1)

    def load(self) -> None:
        """Go on from the newest checkpoint, if there is one, as if training had never stopped.

        Raises:
            ConfigError: It has other keys or data.
        """
        try:
            newest = checkpoint.latest(self.folder)
        except FileNotFoundError:
            return
        facts, wanted = checkpoint.load_facts(newest, config=dict, data=str), self.facts["config"]
        if facts["data"] != self.facts["data"]:
            raise ConfigError(
                f"{self.folder} was begun on other clips or labels: choose another dir=, or leave out --resume"
            )
        pairs = [(name, old, wanted.get(name)) for name, old in facts["config"].items()]
        if changed := [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]:
            raise ConfigError(f"{self.folder} was begun with another configuration:\n  " + "\n  ".join(changed))
        checkpoint.load_weights(newest, self.modules)
        checkpoint.load_optimizer(newest, self.modules, self.learner.optimizer)
        checkpoint.load_random(checkpoint.read_tensors(newest, "random."))
        self.step, self.skipped_steps = facts["step"], facts.get("skipped_steps", 0)


def tune(training: Training, data: DataConfig) -> None:
    """Take the steps of a training that are left; `data` says how to read.

    Raises:
        TrainingError: `PATIENCE` steps in a row could not be taken, or the last checkpoint could not be written.
        Interrupted: By a signal; what was done is saved.
    """
    learner, how, clips = training.learner, training.how, training.clips
    rate = harmony.schedule.warmup(harmony.schedule.cosine(how.lr, 0.0, max(how.steps - how.warmup, 1)), how.warmup)
    order = BatchSampler([Source(len(clips))], how.batch_size, how.seed, training.step)
    loader = Loader(clips, order, collate, data.workers, data.timeout, data.prefetch_gib)
    device = next(learner.modules.parameters()).device
    journal = Journal(training.folder, how.steps, training.step, True, device)
    unread = f"{training.folder / SKIPPED} lists clips that could not be read"
    patience = Patience(PATIENCE, f"{unread}; where the loss is not finite, try a smaller lr than {how.lr:g}.")
    learner.modules.train()
    with Interruption() as interruption:
        with interruption.deferred():
            for batch in journal.clock.waiting(interruption.awaited(loader, {"skipped": []})):
                if training.step >= how.steps or interruption.asked:
                    break
                journal.skip(batch["skipped"])
                lr = float(rate(torch.tensor(training.step)))
                set_learning_rate(learner.optimizer, lr)
                result = take_step(training, batch)
                training.step += 1
                training.skipped_steps += not result.taken
                journal.add(result, len(batch.get("row", [])))
                last = training.step == how.steps
                if training.step % how.log_every == 0 or last:
                    journal.write(training.step, lr=lr, skipped_steps=training.skipped_steps)
                if training.step % how.checkpoint_every == 0 or last:
                    attempt(training.save, required=last)
                patience.count(result, training.step)
            journal.bar.close()
            if training.step < how.steps:
                attempt(training.save, required=True)
        journal.close()
        interruption.advice = f" at step {training.step}: the same command with --resume goes on"
        interruption.stop()


def take_step(training: Training, batch: dict[str, Any]) -> StepResult:
    """Take one step on a batch of `collate`, mixed."""
    learner, how = training.learner, training.how
    if "raw" not in batch:
        return idle_step(learner, "no clip of the batch could be read")
    weight = learner.modules["objective"].linear.weight  # (classes, width)
    targets = multi_hot([training.labels[row] for row in batch["row"].tolist()], len(weight)).to(weight.device)
    raw = batch["raw"][:, 0].to(weight.device)
    raw, targets = mixup(raw, targets, how.mixup, np.random.default_rng([how.seed, training.step]))
    clip_norm = None if how.frozen else how.clip_norm
    options = StepOptions(weigh="nothing", precision=how.precision, clip_norm=clip_norm, clip_only="model")
    return train_step(learner, {"raw": raw, "targets": targets}, options)


def predict(modules: nn.ModuleDict, clips: WindowedClips, how: Tuning, data: DataConfig) -> Outputs:
    """Logits (N, C) of every clip, averaged over its windows and crops; see `outputs`."""
    encoder, head = modules["model"], modules["objective"]

    def encode(raw: Tensor) -> Tensor:
        embeddings = forward_in(how.precision, raw.device)(encoder, {"raw": raw.flatten(0, 1)})
        return head.logits(embeddings["representation"]).unflatten(0, raw.shape[:2]).mean(1)

    return outputs(modules, encode, clips, how.batch_size, data)
