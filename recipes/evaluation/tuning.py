"""Training of a classifier on labelled clips, which can be interrupted and resumed, and its logits on test clips."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import harmony
from recipes.data.clips import Skipped
from recipes.data.sampler import BatchSampler, Source
from recipes.data.skipped import SkippedClips
from recipes.data.windows import RandomWindows, WindowedClips, collate
from recipes.data.workers import Loader
from recipes.errors import ConfigError, DataError
from recipes.evaluation.classifier import Classifier, mixup, multi_hot
from recipes.evaluation.tuning_config import TuneConfig
from recipes.files import jsonl, write_atomically
from recipes.progress import progress_bar
from recipes.training import checkpoint
from recipes.training.interruption import Interruption

log = logging.getLogger(__name__)

FREE = ("workers", "timeout", "log_every", "checkpoint_every", "windows", "crops")  # may change on resume
PATIENCE = 20  # batches in a row without a clip that can be read, before it stops
Loss = Callable[[Tensor, Tensor], Tensor]


class Predictions(NamedTuple):
    """What a classifier says of test clips.

    Attributes:
        logits: (N, C), means over the windows and crops of each clip.
        rows: Of the index, the N that could be read.
        skipped: Those that could not.
    """

    logits: Tensor
    rows: list[int]
    skipped: list[Skipped]


def tune(
    classifier: Classifier, clips: RandomWindows, labels: Sequence[Sequence[int]], loss: Loss, config: TuneConfig,
    folder: Path, resume: bool,
) -> bool:  # fmt: skip
    """Train a classifier by SGD with momentum.

    Args:
        classifier: To train, on its device; with ``resume`` its weights are those of the last checkpoint.
        clips: To train on.
        labels: Class numbers of each of them.
        loss: Of logits and targets (b, c).
        config: How.
        folder: For checkpoints, metrics.jsonl and skipped.jsonl.
        resume: Continue from the newest checkpoint in ``folder``, if there is one, as if training had never stopped.

    Returns:
        Whether it is done; False: it was interrupted, and can be resumed.

    Raises:
        ConfigError: Another configuration, or other data, than those of the training to resume.
        DataError: `PATIENCE` batches in a row had no clip that can be read, or a loss is not finite.
    """
    torch.manual_seed(config.seed)
    optimizer = torch.optim.SGD(trained(classifier), lr=config.lr, momentum=config.momentum)
    facts = {"config": fixed(config), "data": fingerprint(clips, labels)}
    step = restore(classifier, optimizer, facts, folder) if resume else 0
    rate = harmony.schedule.warmup(
        harmony.schedule.cosine(config.lr, 0.0, max(config.steps - config.warmup, 1)), config.warmup
    )
    skipped = SkippedClips(folder)
    rows = [row for row in jsonl.read_rows(folder / "metrics.jsonl") if row["step"] <= step]
    write_atomically(folder / "metrics.jsonl", jsonl.as_text(rows))
    losses: list[float] = []
    unread = 0
    order = BatchSampler([Source(len(clips))], config.batch_size, config.seed, step)
    loader = Loader(clips, order, collate, config.workers, config.timeout)
    classifier.train()
    bar = progress_bar(total=config.steps, initial=step, unit="step")
    with Interruption() as interruption, interruption.deferred(), bar:
        for batch in interruption.awaited(loader, {"skipped": []}):
            if step >= config.steps or interruption.asked:
                break
            skipped.record(batch["skipped"])
            optimizer.param_groups[0]["lr"] = float(rate(torch.tensor(step)))
            if "raw" in batch:
                losses.append(take_step(classifier, optimizer, batch, labels, loss, config, step))
                unread = 0
            else:
                unread += 1
            if unread == PATIENCE:
                raise DataError(f"{PATIENCE} batches in a row without a clip that can be read, see {skipped.file}")
            step += 1
            bar.update()
            at_end = step == config.steps
            if (step % config.log_every == 0 or at_end) and losses:
                jsonl.append_rows(folder / "metrics.jsonl", {"step": step, "loss": float(np.mean(losses))})
                bar.set_postfix(loss=f"{np.mean(losses):.3f}")
                losses = []
            if step % config.checkpoint_every == 0 or at_end:
                save(classifier, optimizer, facts, folder, step)
        if step < config.steps:
            save(classifier, optimizer, facts, folder, step)
            log.info("interrupted at step %d; continue with --resume", step)
    return step == config.steps


def take_step(
    classifier: Classifier, optimizer: torch.optim.Optimizer, batch: dict[str, Any],
    labels: Sequence[Sequence[int]], loss: Loss, config: TuneConfig, step: int,
) -> float:  # fmt: skip
    """Take one step on a batch of `collate`; returns the loss before it."""
    device = next(classifier.parameters()).device
    raw = batch["raw"][:, 0].to(device)
    targets = multi_hot([labels[row] for row in batch["row"].tolist()], classifier.head.out_features).to(device)
    raw, targets = mixup(raw, targets, config.mixup, np.random.default_rng([config.seed, step]))
    value = loss(logits_of(classifier, raw, config), targets)
    if not value.isfinite():
        raise DataError(f"the loss of step {step} is {value.item()}: try a smaller lr, it was {config.lr:g}")
    optimizer.zero_grad()
    value.backward()
    if config.clip_norm is not None and not config.frozen:
        clip_grad_norm_(classifier.encoder.parameters(), config.clip_norm)
    optimizer.step()
    return float(value.detach())


@torch.inference_mode()
def predict(classifier: Classifier, clips: WindowedClips, config: TuneConfig) -> Predictions:
    """The logits of every clip, averaged over its windows and crops.

    Raises:
        DataError: Not one clip could be read.
    """
    classifier.eval()
    device = next(classifier.parameters()).device
    logits: list[Tensor] = []
    rows: list[int] = []
    skipped: list[Skipped] = []
    size = max(config.batch_size // (config.windows * config.crops), 1)
    batches = [range(first, min(first + size, len(clips))) for first in range(0, len(clips), size)]
    with progress_bar(total=len(clips), desc="testing", unit="clip", leave=False) as bar:
        for batch in Loader(clips, batches, collate, config.workers, config.timeout):
            skipped += batch["skipped"]
            if "raw" in batch:
                raw = batch["raw"]
                of_views = logits_of(classifier, raw.flatten(0, 1).to(device), config)
                logits.append(of_views.unflatten(0, raw.shape[:2]).mean(1).cpu())
                rows += batch["row"].tolist()
            bar.update(len(batch["skipped"]) + len(batch.get("row", [])))
    if not rows:
        raise DataError(f"none of the {len(clips)} test clips could be read; the first: {skipped[0]}")
    return Predictions(torch.cat(logits), rows, skipped)


def logits_of(classifier: Classifier, raw: Tensor, config: TuneConfig) -> Tensor:
    """Logits in the precision of the configuration."""
    with torch.autocast(raw.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        return classifier(raw)


def trained(classifier: Classifier) -> list[Tensor]:
    """Parameters that are trained."""
    return [p for p in classifier.parameters() if p.requires_grad]


def fixed(config: TuneConfig) -> dict[str, Any]:
    """What must not change on resume, as JSON gives it back."""
    return json.loads(json.dumps({key: value for key, value in asdict(config).items() if key not in FREE}))


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
        raise ConfigError(f"{folder} was begun on other clips or labels: choose another --dir, or leave out --resume")
    wanted = facts["config"]
    changed = [f"{key}: {old} -> {wanted[key]}" for key, old in found["config"].items() if wanted[key] != old]
    if changed:
        raise ConfigError(f"{folder} was begun with another configuration:\n  " + "\n  ".join(changed))
    checkpoint.load_weights(newest, classifier)
    checkpoint.load_optimizer(newest, classifier, optimizer)
    checkpoint.load_random(checkpoint.read(newest, "random."))
    return int(found["step"])
