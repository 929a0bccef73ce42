"""Pre-train the tri-modal model with harmonized gradients, evaluate it and report.

python -m recipes.pretrain --config recipes/configs/demo.yaml [key=value ...] [--resume]
torchrun --nproc-per-node 8 --max-restarts 3 -m recipes.pretrain --config ...    several processes; resumes by itself

Everything of a run is under runs/NAME: config.yaml, metrics.jsonl, tensorboard/, checkpoints/, retrieval.json,
skipped.jsonl, report.html.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer

from recipes import cli, keys
from recipes import config as configuration
from recipes.cli import Command
from recipes.config import Config
from recipes.data import identity, storage, vocabulary
from recipes.data.clips import EvalClips, TrainClips
from recipes.data.held_out import limited
from recipes.data.index import captions, ids_digest
from recipes.data.loader import train_loader
from recipes.data.skipped import SKIPPED
from recipes.data.workers import Loader
from recipes.errors import ConfigError, DataError
from recipes.evaluation import leakage
from recipes.evaluation.during_training import evaluate, keep_best
from recipes.evaluation.plan import plan
from recipes.evaluation.retrieval import table
from recipes.figures import report
from recipes.files import folders, locks, write_atomically
from recipes.model.build import build, check_patterns, device_of, model_inputs, use_cores
from recipes.model.harmonizer import gamma_schedule, harmonizer
from recipes.splits import Splits, files_to_read, load_splits, save_splits, train_and_test
from recipes.training import checkpoint, launch
from recipes.training.bad_steps import BAD_STEPS, dump
from recipes.training.dynamics import Cosines
from recipes.training.ema import Ema
from recipes.training.endings import Patience, attempt
from recipes.training.interruption import Interruption
from recipes.training.journal import Journal
from recipes.training.precision import loss_scale, use_tf32
from recipes.training.probes import probe
from recipes.training.processes import ALONE, Processes, joined, seed_of, spread
from recipes.training.run import Figures, Run, RunData
from recipes.training.setup import learning_rate, make_optimizer, set_learning_rate, step_options
from recipes.training.start import TrainingError, check_agreement, check_processes, check_same, latest_checkpoint
from recipes.training.step import Learner, StepResult, idle_step, too_few, train_step

log = logging.getLogger(__name__)

NOTHING_BEGUN = ": nothing was begun; the same command starts the run"
GOES_ON = ": the same command with --resume goes on from the latest checkpoint"


def pretrain(config: Config, resume: bool = False, group: Processes = ALONE) -> dict[str, Any]:
    """Train, evaluate and report one run.

    Args:
        config: A checked configuration.
        resume: Continue from the run's latest checkpoint, as if it had never stopped; a run that torchrun has started
            again does so by itself.
        group: The processes that take part. The first of them decides where to begin and writes.

    Returns:
        What is written to retrieval.json: {"untrained" | "step N" | "trained": {task: figures}}; {} in processes other
        than the first.

    Raises:
        ConfigError: Nothing to resume, not the configuration of the run to resume, or not one for these processes;
            the folder is in use, or holds something else.
        DataError: The data cannot be used.
        Interrupted: By SIGINT or SIGTERM; what was done is saved, and the message says how to go on.
        TrainingError: `train.max_bad_steps` steps in a row could not be taken, or the last checkpoint not written.
        WorkerError: The processes that read clips die, whatever they read.
    """
    check_processes(config.train, config.gram, group)
    check_same(config, group)
    with Interruption(NOTHING_BEGUN) as interruption, ExitStack() as held:
        # The first process decides: others may not see what it sees, or see it later.
        again, name = group.decide(lambda: choose_start(config, resume, group, held))
        start = None if name is None else config.folder / name
        if again:
            interruption.advice = GOES_ON
        run = assemble(config, again, start, group)
        interruption.advice = GOES_ON
        begin(run, start)
        journal = train(run, interruption)
        return finish(run, journal)


def choose_start(config: Config, resume: bool, group: Processes, held: ExitStack) -> tuple[bool, str | None]:
    """Whether to go on with a run, and with which checkpoint; ``held`` gets the lock on the run's folder."""
    try:
        held.enter_context(locks.hold(config.folder))
        again = resume or launch.signed(config.folder, list(group.launch))
        start = latest_checkpoint(config) if again else None
        if not again:
            folders.check(config.folder, reads=files_to_read(config))
    except OSError as error:
        raise ConfigError(f"run.name={config.run.name}: {error}") from error
    return again, None if start is None else str(start.relative_to(config.folder))


def assemble(config: Config, again: bool, start: Path | None, group: Processes) -> Run:
    """Read the data, make model, optimizer and harmonizer; the first process makes the run's folder, unless ``again``.

    The run is at step 0; `begin` brings it to the checkpoint ``start``.
    """
    device = device_of(config.train)
    use_cores(config.train, config.data)
    use_tf32(config.train)
    for line in configuration.unfinished_schedules(config):
        log.warning(line)
    with group.first_ahead():
        if not group.first and not launch.shared(config.folder, list(group.launch)):
            raise ConfigError(f"process {group.rank} does not see {config.folder}: all nodes have to share run.dir")
        try:
            splits = train_and_test(config) if group.first else load_splits(config.folder)
            init_from = None if start or not config.train.init_from else checkpoint.latest(Path(config.train.init_from))
            source = start or init_from
            tokenizer = vocabulary_of(splits.train, config, source, group)
            if group.first:
                test = limited(splits.test, tokenizer, config.clip.words, config.evaluate.limit)
                splits = splits._replace(test=test)
            torch.manual_seed(config.train.seed)
            modules = build(config, tokenizer, None if source is None else checkpoint.saved_shapes(source)).to(device)
            if init_from is not None:
                checkpoint.load_weights(init_from, modules)
                log.info("beginning with the weights of %s", init_from)
            clips = EvalClips(splits.test, tokenizer, config.clip)
        except ConfigError:
            raise
        except (ValueError, OSError) as error:
            raise DataError(str(error)) from error
        check_patterns(config, modules["model"])
        if group.first:
            write_folder(config, again, splits, tokenizer, group)
            words = tokenizer.get_vocab_size()
            log.info("%d training videos, %d test clips, %d words", len(splits.train), len(clips), words)
        seen = identity_of(splits, start) if group.first else None
    data = RunData(splits.train, splits.sources, clips, tokenizer, ids_digest(splits.train), seen)
    forward = spread(modules["model"], config.train.parallel, group, device, plain=config.harmonize == "none")
    forward = torch.compile(forward) if config.train.compile else forward
    optimizer = make_optimizer(config.train, modules)
    learner = Learner(modules, optimizer, harmonizer(config), loss_scale=loss_scale(config.train))
    ema = None if config.train.ema is None else Ema(modules, config.train.ema)
    return Run(config, group, device, data, learner, forward, ema)


def begin(run: Run, start: Path | None) -> None:
    """Bring a run to its checkpoint, or else evaluate the untrained model."""
    config, group = run.config, run.group
    if start is not None:
        run.load(start)
        if figures := run.results.get(f"step {run.step}"):
            keep_if_best(run, figures)
        log.info("resuming at step %d", run.step)
    else:
        if config.evaluate.untrained:
            run.results["untrained"], _ = evaluate(run)
        torch.manual_seed(seed_of(config.train.seed, group.rank))
    check_agreement(group, run.step, run.data.digest, run.modules)


def train(run: Run, interruption: Interruption) -> Journal:
    """Take the steps of a run, with its evaluations and checkpoints in between; returns its closed journal."""
    config, group, counts = run.config, run.group, run.counts
    rate, gamma = learning_rate(config.train), gamma_schedule(config.gamma, config.train.steps)
    try:
        journal = Journal(config.folder, config.train.steps, run.step, group.first, run.device)
    except OSError as error:
        raise TrainingError(f"{error}: free space, then --resume") from error
    advice = (
        f"{config.folder / SKIPPED} lists clips that could not be read, "
        f"{config.folder / BAD_STEPS} losses and gradients that were not finite."
    )
    patience, failures = Patience(config.train.max_bad_steps, advice), 0
    stops: Sequence[int] = (0,)
    with interruption.deferred():
        for batch in journal.clock.waiting(interruption.awaited(loader_of(run), {"skipped": []})):
            shares, skips, stops = zip(
                *group.exchange(len(batch.get("id", [])), len(batch["skipped"]), interruption.asked), strict=True
            )
            if run.step >= config.train.steps or any(stops):
                break
            if any(skips):
                counts["skipped_clips"] += sum(skips)
                journal.skip(group.collect(batch["skipped"]))
            lr = float(rate(torch.tensor(run.step)))
            result, probes = take_step(run, batch, shares, lr)
            undumped = result.broken and dump(config.folder, run.step, result, run.modules, batch, group)
            run.step += 1
            counts["skipped_steps"] += not result.taken
            counts["failed_writes"] += undumped + journal.failures - failures
            failures = journal.failures
            run.dynamics = run.dynamics.add(run.step, result.measured | probes)
            journal.add(result, sum(shares))

            last = run.step == config.train.steps
            every = config.evaluate.every
            evaluating = every > 0 and run.step % every == 0 and not last
            saving = run.step % config.train.checkpoint_every == 0 or evaluating or last
            if saving or run.step % config.train.log_every == 0:
                journal.write(run.step, lr=lr, gamma=float(gamma(torch.tensor(run.step - 1))), **counts)
            if saving:
                journal.draw(run.step)
                save(run, evaluating, required=last or bool(interruption.asked))
            patience.count(result, run.step)
        journal.bar.close()
        if run.step < config.train.steps:
            journal.write(run.step, **counts)
            journal.draw(run.step)
            save(run, evaluating=False, required=True)
    journal.close()
    interruption.advice = f" at step {run.step}: the same command with --resume goes on"
    interruption.stop(max(stops))
    return journal


def take_step(run: Run, batch: dict[str, Any], shares: Sequence[int], lr: float) -> tuple[StepResult, Cosines]:
    """Take one step at a learning rate; returns what it saw, and what the probes that are due measured before it."""
    if few := too_few(shares):
        return idle_step(run.learner, few), {}
    config, group = run.config, run.group
    inputs, probes = model_inputs(batch, run.device), {}
    if run.step % config.gram.probe_every == 0:
        probes = probe(config.gram, run.modules, inputs, group.group)
    set_learning_rate(run.learner.optimizer, lr)
    options = step_options(config, run.step, forward=run.forward, processes=group)
    result = train_step(run.learner, inputs, options)
    if run.ema is not None and result.taken:
        run.ema.update()
    return result, probes


def save(run: Run, evaluating: bool, required: bool) -> None:
    """Evaluate where that is due, and write a checkpoint; a TrainingError where one that is required is not written."""
    if evaluating:
        run.results[f"step {run.step}"], _ = evaluate(run)
    run.counts["failed_checkpoints"] += not attempt(run.save, required)
    if evaluating:
        keep_if_best(run, run.results[f"step {run.step}"])


def finish(run: Run, journal: Journal) -> dict[str, Any]:
    """Evaluate the trained model, and report the run."""
    config, results = run.config, run.results
    if run.ema is not None:
        log.info("evaluating the moving average of the weights")
    results["trained"], embedded = evaluate(run)
    if not run.group.first:
        return {}
    keep_if_best(run, results["trained"])
    counts = run.counts | {"unreadable": journal.skip(embedded.skipped)}
    try:
        write_atomically(config.folder / "retrieval.json", json.dumps(results, indent=1))
        page = report.write(config.folder, config, results, embedded, run.data.held_out, counts, run.dynamics)
    except OSError as error:
        raise TrainingError(f"{error}: training is done and saved; free space, then --resume evaluates") from error
    log.info("%d clip(s) not readable, %d step(s) not taken", counts["unreadable"], counts["skipped_steps"])
    log.info("report: %s", page)
    return results


def keep_if_best(run: Run, figures: Figures) -> None:
    """Keep the checkpoint of this step if no earlier one has done as well; the first process does so."""
    if run.group.first:
        keep_best(run.checkpoints, run.step, figures, run.config.evaluate.best)


def loader_of(run: Run) -> Loader[dict[str, Any]]:
    """Batches of this process, from the run's step on."""
    config, data, group = run.config, run.config.data, run.group
    seed = config.train.seed
    clips = TrainClips(run.data.train, run.data.tokenizer, config.clip, seed, config.augment)
    limits = {"timeout": data.timeout, "prefetch": data.prefetch_gib}
    order = {"start_step": run.step, "sources": run.data.sources, "rank": group.rank, "world": group.world}
    return train_loader(clips, config.train.batch_size, seed, data.workers, **order, **limits)


def vocabulary_of(train: Dataset, config: Config, start: Path | None = None, group: Processes = ALONE) -> Tokenizer:
    """The words of the training captions: the first process counts them; a run that goes on, and others, read them."""
    if start is not None or not group.first:
        return vocabulary.load((start or config.folder) / checkpoint.VOCABULARY)
    if config.data.vocabulary_file is not None:
        return vocabulary.load(config.data.vocabulary_file)
    return vocabulary.build(captions(train), config.data.vocabulary)


def identity_of(splits: Splits, start: Path | None) -> identity.Seen:
    """What identifies the training videos, so that no evaluation takes them; warns of held-out videos among them."""
    if start is not None and (start / identity.FILE).is_file():
        seen = identity.load(start / identity.FILE)
    else:
        seen = identity.seen(splits.train)
    if leaks := leakage.recognised(splits.test, seen, index=lambda: splits.train):
        warning = "%d of %d held-out videos are trained on under another name, for example %s: the figures flatter"
        log.warning(warning, len(leaks), len(splits.test), next(iter(leaks)))
    return seen


def write_folder(config: Config, again: bool, splits: Splits, tokenizer: Tokenizer, group: Processes) -> None:
    """Make the run's folder, or raise a ConfigError; an earlier run of the name is moved aside."""
    folder = config.folder
    try:
        if not again:
            videos = (video for part in (splits.train, splits.test) for video in part["video"])
            if folder.exists():
                folders.check(folder, reads=sorted({str(Path(v).parent) for v in videos if not storage.is_url(v)}))
            folders.make(folder)
        write_atomically(folder / checkpoint.CONFIG, keys.as_yaml(config))  # on resume, train.steps may have grown
    except OSError as error:
        raise ConfigError(f"run.name={config.run.name}: {error}") from error
    launch.sign(folder, list(group.launch))
    vocabulary.save(tokenizer, folder / checkpoint.VOCABULARY)
    if group.world > 1:
        save_splits(splits, folder)


def run(config: Config, resume: bool = False) -> None:
    """Pre-train, alone or as one of the processes that torchrun started."""
    with Interruption(NOTHING_BEGUN), joined() as group:
        if not group.first:
            log.setLevel(logging.WARNING)  # once is enough
        results = pretrain(config, resume, group)
        if group.first:
            print(table(results))


COMMAND = Command(
    "recipes.pretrain",
    __doc__,
    Config,
    run,
    plan=plan,
    flags={"resume": "continue the run from its latest checkpoint"},
    needs_config=True,
)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
