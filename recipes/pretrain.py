"""Pre-train the tri-modal model with harmonized gradients, evaluate it and report.

python -m recipes.pretrain --config recipes/configs/demo.yaml [key=value ...] [--resume]

Everything of a run is under runs/NAME: config.yaml, metrics.jsonl, tensorboard/, checkpoints/, retrieval.json,
skipped.jsonl, report.html.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer

import harmony
from recipes import config as configuration
from recipes import report
from recipes.config import Config, ConfigError
from recipes.data import vocabulary
from recipes.data.clips import train_loader
from recipes.data.kinds import eval_clips, train_clips
from recipes.data.splits import DataError, train_and_test
from recipes.evaluate import embed, retrieve, table
from recipes.progress import progress_bar
from recipes.training import checkpoint, dynamics
from recipes.training.interruption import Interruption
from recipes.training.metrics import Metrics
from recipes.training.skipped import SkippedClips
from recipes.training.step import train_step
from recipes.trimodal.build import build, check_wrt, device_of, use_cores
from recipes.trimodal.harmonizer import gamma_schedule, harmonizer

log = logging.getLogger(__name__)


# Keys that may change on resume.
FREE = ("data.workers:", "train.device:", "train.max_bad_steps:", "train.keep:", "gram.probe")


class TrainingError(RuntimeError):
    """A run that cannot go on; its last checkpoint is whole."""


def pretrain(config: Config, resume: bool = False) -> dict[str, Any]:
    """Train, evaluate and report one run.

    Args:
        config: A checked configuration.
        resume: Continue from the run's latest checkpoint, as if it had never stopped.

    Returns:
        What is written to retrieval.json: {"untrained" | "trained": {task: figures}}; {} if the run was interrupted.

    Raises:
        ConfigError: Nothing to resume, or the configuration is not that of the run to resume.
        DataError: The data cannot be used.
        TrainingError: `train.max_bad_steps` steps in a row could not be taken.
    """
    folder = config.folder
    start = latest_checkpoint(config) if resume else None
    device = device_of(config)
    use_cores(config)
    try:
        train, test = train_and_test(config)
        tokenizer = vocabulary_of(train, config) if start is None else vocabulary.load(start / "vocabulary.json")
        clips = eval_clips(test, tokenizer, config.clip)
        torch.manual_seed(config.train.seed)
        modules = build(config, tokenizer).to(device)
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
    check_wrt(config.gram.wrt, modules["model"], "gram.wrt")
    if not resume:
        begin(folder, config)
    log.info("%d training videos, %d test clips, %d words", len(train), len(clips), tokenizer.get_vocab_size())
    optimizer = torch.optim.Adam([p for p in modules.parameters() if p.requires_grad], betas=(0.9, 0.999))
    transform = harmonizer(config)
    state, step, counts = transform.init(), 0, {"skipped_clips": 0, "skipped_steps": 0}
    recorded = dynamics.Dynamics()

    data = fingerprint(train)
    if start is None:
        results = {"untrained": retrieve(embed(modules, clips, config, config.data.workers))}
        torch.manual_seed(config.train.seed)
    else:
        tensors, facts = checkpoint.load_state(start)
        if facts["data"] != data:
            raise DataError(
                f"the training videos are not those that {start} was trained on: a run cannot go on with others"
            )
        checkpoint.load_weights(start, modules)
        checkpoint.load_optimizer(optimizer, tensors)
        state = checkpoint.load_tree("harmonizer", state, tensors)
        checkpoint.load_random(tensors)
        recorded = dynamics.load(start / dynamics.FILE)
        step, counts, results = facts["step"], facts["counts"], facts["results"]
        log.info("resuming at step %d", step)

    def save(step: int) -> None:
        tensors = checkpoint.optimizer_tensors(optimizer) | checkpoint.random_tensors()
        checkpoint.save(
            folder / "checkpoints", step, modules, tensors | checkpoint.tree_tensors("harmonizer", state),
            {"counts": counts, "results": results, "data": data},
            lambda place: configuration.save(config, place / "config.yaml"),
            lambda place: vocabulary.save(tokenizer, place / "vocabulary.json"),
            lambda place: dynamics.save(recorded, place / dynamics.FILE),
            keep=config.train.keep,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------- the loop
    dataset = train_clips(train, tokenizer, config.clip, config.train.seed, config.augment)
    loader = train_loader(dataset, config.train.batch_size, config.train.seed, config.data.workers, start_step=step)
    rate, gamma = learning_rate(config), gamma_schedule(config.gamma, config.train.steps)
    metrics, skipped = Metrics(folder, step), SkippedClips(folder)
    bar = progress_bar(total=config.train.steps, initial=step, desc=config.run.name, unit="step", smoothing=0.05)
    bad_in_a_row, began, seen = 0, time.monotonic(), 0

    with Interruption() as interruption:
        for batch in loader:
            if step >= config.train.steps or interruption.asked:
                break
            counts["skipped_clips"] += skipped.record(batch["skipped"])
            for group in optimizer.param_groups:
                group["lr"] = float(rate(torch.tensor(step)))
            found, state = train_step(config, modules, optimizer, transform, state, batch, step, device)
            step += 1
            seen += len(batch.get("id", []))

            bad_in_a_row = 0 if found.taken else bad_in_a_row + 1
            counts["skipped_steps"] += not found.taken
            metrics.add(found.values, found.cosines, found.defined)
            recorded = recorded.add(step, found.measured)
            bar.update()
            bar.set_postfix(found.shown(seen / (time.monotonic() - began)), refresh=False)
            last = step == config.train.steps
            at_checkpoint = step % config.train.checkpoint_every == 0 or last
            if step % config.train.log_every == 0 or at_checkpoint:
                metrics.write(
                    step, lr=optimizer.param_groups[0]["lr"], gamma=float(gamma(torch.tensor(step - 1))),
                    samples_per_second=seen / (time.monotonic() - began), **counts,
                )  # fmt: skip
            if at_checkpoint:
                metrics.draw_histogram(step)
                save(step)
            if bad_in_a_row >= config.train.max_bad_steps:
                raise TrainingError(
                    f"{bad_in_a_row} steps in a row could not be taken, the last one because {found.reason}; "
                    f"stopped at step {step}. Clips that could not be read are listed in {skipped.file}."
                )
        bar.close()
        if step < config.train.steps:
            metrics.write(step, **counts)
            metrics.draw_histogram(step)
            save(step)
            log.info("interrupted at step %d; continue with --resume", step)
            return {}
    metrics.close()

    # --------------------------------------------------------------------------------------- evaluation and report
    embedded = embed(modules, clips, config, config.data.workers)
    skipped.record(embedded.skipped)
    results["trained"] = retrieve(embedded)
    checkpoint.write_atomically(folder / "retrieval.json", json.dumps(results, indent=1))
    counts["unreadable"] = len(skipped.known)
    page = report.write(folder, config, results, embedded, clips, counts, recorded)
    print(table(results))
    log.info("%d clip(s) not readable, %d step(s) not taken", counts["unreadable"], counts["skipped_steps"])
    log.info("report: %s", page)
    return results


def fingerprint(train: Dataset) -> str:
    """Hash of the ids in their order, on which the order of training rests."""
    return hashlib.sha256("\n".join(train["id"]).encode()).hexdigest()


def vocabulary_of(train: Dataset, config: Config) -> Tokenizer:
    """The words of the training captions."""
    captions = (narration["text"] for row in train["narrations"] for narration in row)
    return vocabulary.build(captions, config.data.vocabulary)


def learning_rate(config: Config) -> harmony.schedule.Schedule:
    """Warm-up, then a quarter period of a cosine down to the last rate."""
    train = config.train
    decay = harmony.schedule.quarter_cosine(train.lr, train.end_lr, max(train.steps - train.warmup, 1))
    return harmony.schedule.warmup(decay, train.warmup)


def begin(folder: Path, config: Config) -> None:
    """Make the run's folder; one that is there already is moved aside, nothing is overwritten."""
    if folder.exists():
        aside = next(p for i in range(1, 10_000) if not (p := folder.with_name(f"{folder.name}.{i}")).exists())
        folder.rename(aside)
        log.info("%s exists: moved to %s", folder, aside)
    folder.mkdir(parents=True)
    configuration.save(config, folder / "config.yaml")


def latest_checkpoint(config: Config) -> Path | None:
    """The checkpoint to resume from; None where the run died before its first one."""
    if not (config.folder / "config.yaml").is_file():
        raise ConfigError(f"{config.folder}: there is no run to resume; start it without --resume")
    changed = configuration.differences(configuration.load(config.folder / "config.yaml"), config)
    changed = [line for line in changed if not line.startswith(FREE)]
    if changed:
        raise ConfigError(f"{config.folder} was started with another configuration:\n  " + "\n  ".join(changed))
    try:
        return checkpoint.latest(config.folder)
    except FileNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see recipes/config.py for the keys")
    parser.add_argument("--resume", action="store_true", help="continue the run from its latest checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override keys: train.steps=100")
    options = parser.parse_args(arguments)
    try:
        pretrain(configuration.load(options.config, options.overrides), options.resume)
    except (ConfigError, DataError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
