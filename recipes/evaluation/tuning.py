"""Training of a classifier on labelled clips, which can be interrupted and resumed, and its logits on test clips."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import harmony
from recipes.config import BILLION, AugmentConfig, ClipFormat, DataConfig
from recipes.data.sampler import BatchSampler, Source
from recipes.data.windows import RandomWindows, WindowedClips, collate
from recipes.data.workers import Loader
from recipes.errors import ConfigError, DataError
from recipes.evaluation.classifier import Classifier, mixup, multi_hot
from recipes.evaluation.frozen import Outputs, outputs
from recipes.keys import key, section
from recipes.progress import progress_bar
from recipes.training import checkpoint, jsonl
from recipes.training.interruption import Interruption
from recipes.training.skipped import SkippedClips

log = logging.getLogger(__name__)

FREE = ("timeout", "log_every", "checkpoint_every", "windows", "crops")  # may change on resume
PATIENCE = 20  # batches in a row without a clip that can be read, before it stops
Loss = Callable[[Tensor, Tensor], Tensor]


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
    precision: Literal["fp32", "bf16"] = key("fp32", "precision of the model")
    windows: int = key(4, "windows of each test clip, whose logits are averaged", least=1, most=1000)
    crops: int = key(3, "squares of each window, from one end of its longer side to the other", least=1, most=1000)
    timeout: float = key(60.0, "seconds that a worker may read one clip", more_than=0, most=7 * 86_400)
    log_every: int = key(50, "steps between lines of metrics.jsonl", least=1, most=BILLION)
    checkpoint_every: int = key(1000, "steps between checkpoints", least=1, most=BILLION)
    clip: ClipFormat = section(ClipFormat, "the shape of a clip; default: as in training")
    augment: AugmentConfig = section(AugmentConfig, "how much to vary a clip; default: as in training")

    def protocol(self) -> dict[str, Any]:
        """These keys as plain values, without those that a subclass adds."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(Tuning)}


def tune(
    classifier: Classifier,
    clips: RandomWindows,
    labels: Sequence[Sequence[int]],
    loss: Loss,
    how: Tuning,
    data: DataConfig,
    folder: Path,
    resume: bool,
) -> None:
    """Train a classifier by SGD with momentum.

    Args:
        classifier: To train, on its device; with ``resume`` its weights are those of the last checkpoint.
        clips: To train on.
        labels: Class numbers of each of them.
        loss: Of logits and targets (b, c).
        how: Keys of the training.
        data: How to read: workers, timeout.
        folder: For checkpoints, metrics.jsonl and skipped.jsonl.
        resume: Continue from the newest checkpoint in ``folder``, if there is one, as if training had never stopped.

    Raises:
        ConfigError: Another configuration, or other data, than those of the training to resume.
        DataError: `PATIENCE` batches in a row had no clip that can be read, or a loss is not finite.
        Interrupted: By a signal; what was done is saved.
    """
    torch.manual_seed(how.seed)
    optimizer = torch.optim.SGD(trained(classifier), lr=how.lr, momentum=how.momentum)
    facts = {"config": fixed(how), "data": fingerprint(clips, labels)}
    step = restore(classifier, optimizer, facts, folder) if resume else 0
    rate = harmony.schedule.warmup(harmony.schedule.cosine(how.lr, 0.0, max(how.steps - how.warmup, 1)), how.warmup)
    skipped = SkippedClips(folder)
    rows = [row for row in jsonl.read(folder / "metrics.jsonl") if row["step"] <= step]
    checkpoint.write_atomically(folder / "metrics.jsonl", jsonl.dump(rows))
    losses: list[float] = []
    unread = 0
    order = BatchSampler([Source(len(clips))], how.batch_size, how.seed, step)
    loader = Loader(clips, order, collate, data.workers, data.timeout, data.prefetch_gib)
    classifier.train()
    bar = progress_bar(total=how.steps, initial=step, unit="step")
    with Interruption() as interruption, bar:
        with interruption.deferred():
            for batch in interruption.awaited(loader, {"skipped": []}):
                if step >= how.steps or interruption.asked:
                    break
                skipped.record(batch["skipped"])
                optimizer.param_groups[0]["lr"] = float(rate(torch.tensor(step)))
                if "raw" in batch:
                    losses.append(take_step(classifier, optimizer, batch, labels, loss, how, step))
                    unread = 0
                else:
                    unread += 1
                if unread == PATIENCE:
                    raise DataError(f"{PATIENCE} batches in a row without a clip that can be read, see {skipped.file}")
                step += 1
                bar.update()
                at_end = step == how.steps
                if (step % how.log_every == 0 or at_end) and losses:
                    jsonl.append(folder / "metrics.jsonl", {"step": step, "loss": float(np.mean(losses))})
                    bar.set_postfix(loss=f"{np.mean(losses):.3f}")
                    losses = []
                if step % how.checkpoint_every == 0 or at_end:
                    save(classifier, optimizer, facts, folder, step)
            if step < how.steps:
                save(classifier, optimizer, facts, folder, step)
        interruption.advice = f" at step {step}: the same command with --resume goes on"
        interruption.stop()


def take_step(
    classifier: Classifier, optimizer: torch.optim.Optimizer, batch: dict[str, Any],
    labels: Sequence[Sequence[int]], loss: Loss, how: Tuning, step: int,
) -> float:  # fmt: skip
    """Take one step on a batch of `collate`; returns the loss before it."""
    device = next(classifier.parameters()).device
    raw = batch["raw"][:, 0].to(device)
    targets = multi_hot([labels[row] for row in batch["row"].tolist()], classifier.head.out_features).to(device)
    raw, targets = mixup(raw, targets, how.mixup, np.random.default_rng([how.seed, step]))
    value = loss(logits_of(classifier, raw, how), targets)
    if not value.isfinite():
        raise DataError(f"the loss of step {step} is {value.item()}: try a smaller lr, it was {how.lr:g}")
    optimizer.zero_grad()
    value.backward()
    if how.clip_norm is not None and not how.frozen:
        clip_grad_norm_(classifier.encoder.parameters(), how.clip_norm)
    optimizer.step()
    return float(value.detach())


def predict(classifier: Classifier, clips: WindowedClips, how: Tuning, data: DataConfig) -> Outputs:
    """Logits (N, C) of every clip, averaged over its windows and crops; see `outputs`."""

    def encode(raw: Tensor) -> Tensor:
        return logits_of(classifier, raw.flatten(0, 1), how).unflatten(0, raw.shape[:2]).mean(1)

    return outputs(classifier, encode, clips, how.batch_size, data)


def logits_of(classifier: Classifier, raw: Tensor, how: Tuning) -> Tensor:
    """Logits in the precision of the configuration."""
    with torch.autocast(raw.device.type, dtype=torch.bfloat16, enabled=how.precision == "bf16"):
        return classifier(raw)


def trained(classifier: Classifier) -> list[Tensor]:
    """Parameters that are trained."""
    return [p for p in classifier.parameters() if p.requires_grad]


def fixed(how: Tuning) -> dict[str, Any]:
    """The keys that must not change on resume, as JSON gives them back."""
    return json.loads(json.dumps({name: value for name, value in how.protocol().items() if name not in FREE}))


def fingerprint(clips: RandomWindows, labels: Sequence[Sequence[int]]) -> str:
    """Hash of the clips in their order and of their labels."""
    lines = (f"{name} {list(numbers)}" for name, numbers in zip(clips.index["id"], labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def save(
    classifier: Classifier, optimizer: torch.optim.Optimizer, facts: dict[str, Any], folder: Path, step: int
) -> None:
    """Write a checkpoint; the one before is removed."""
    tensors = checkpoint.optimizer_tensors(classifier, optimizer) | checkpoint.random_tensors()
    checkpoint.save(folder / "checkpoints", step, classifier, tensors, facts, keep=1)


def restore(classifier: Classifier, optimizer: torch.optim.Optimizer, facts: dict[str, Any], folder: Path) -> int:
    """Load the newest checkpoint; returns its step, 0 where there is none."""
    try:
        newest = checkpoint.latest(folder)
    except FileNotFoundError:
        return 0
    found = checkpoint.load_facts(newest)
    if found["data"] != facts["data"]:
        raise ConfigError(f"{folder} was begun on other clips or labels: choose another dir=, or leave out --resume")
    wanted = facts["config"]
    changed = [f"{key}: {old} -> {wanted[key]}" for key, old in found["config"].items() if wanted[key] != old]
    if changed:
        raise ConfigError(f"{folder} was begun with another configuration:\n  " + "\n  ".join(changed))
    checkpoint.load_weights(newest, classifier)
    checkpoint.load_optimizer(newest, classifier, optimizer)
    checkpoint.load_random(checkpoint.read(newest, "random."))
    return int(found["step"])
