"""Pre-train the tri-modal model with harmonized gradients, evaluate it and report.

python -m recipes.pretrain --config recipes/configs/demo.yaml [key=value ...] [--resume]
torchrun --nproc-per-node 8 --max-restarts 3 -m recipes.pretrain --config ...    several processes; resumes by itself

Everything of a run is under runs/NAME: config.yaml, metrics.jsonl, tensorboard/, checkpoints/, retrieval.json,
skipped.jsonl, report.html.
"""

import hashlib
import json
import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from torch import nn

from recipes import cli, keys
from recipes import config as configuration
from recipes.cli import Command
from recipes.config import Config
from recipes.data import identity, storage, vocabulary
from recipes.data.clips import EvalClips, TrainClips
from recipes.data.held_out import limited
from recipes.data.index import ROWS_AT_ONCE, captions
from recipes.data.loader import train_loader
from recipes.data.skipped import SKIPPED
from recipes.errors import ConfigError, DataError, Failure
from recipes.evaluation import dry_run, leakage
from recipes.evaluation.during_training import Figures, evaluate, keep_best
from recipes.evaluation.embedding import Embedded
from recipes.evaluation.retrieval import table
from recipes.figures import report
from recipes.files import folders, locks, write_atomically
from recipes.model.build import build, check_wrt, device_of, model_inputs, use_cores
from recipes.model.harmonizer import gamma_schedule, harmonizer
from recipes.splits import Splits, corpus_folder, load_splits, save_splits, train_and_test
from recipes.training import checkpoint, dynamics, launch
from recipes.training.bad_steps import BAD_STEPS, dump
from recipes.training.checkpoint import CheckpointError
from recipes.training.ema import Ema
from recipes.training.interruption import Interruption
from recipes.training.journal import Journal
from recipes.training.precision import loss_scale, use_tf32
from recipes.training.probes import probe
from recipes.training.processes import ALONE, Processes, check_processes, digest, joined, seed_of, spread, whole_state
from recipes.training.setup import learning_rate, make_optimizer, set_learning_rate, step_options
from recipes.training.step import Learner, idle_step, too_few, train_step

log = logging.getLogger(__name__)

# Keys that may change on resume.
FREE = (
    "data.workers:", "data.timeout:", "data.prefetch_gib:", "train.device:", "train.parallel:", "train.max_bad_steps:",
    "train.keep:", "gram.probe", "evaluate.every:", "evaluate.untrained:", "evaluate.best:", "evaluate.batch_size:",
    "data.word_vectors:",  # which are in the checkpoint
)  # fmt: skip
OWN = ("data.workers:", "data.timeout:", "train.device:")  # that each process may have of its own
VOCABULARY = "vocabulary.json"  # of the run, and of each checkpoint
GOES_ON = ": the same command with --resume goes on from the latest checkpoint"


class TrainingError(Failure):
    """A run that cannot go on; its last checkpoint is whole."""


def pretrain(config: Config, resume: bool = False, group: Processes = ALONE) -> dict[str, Any]:
    """Train, evaluate and report one run.

    A run that torchrun has started again goes on from its latest checkpoint by itself.

    Args:
        config: A checked configuration.
        resume: Continue from the run's latest checkpoint, as if it had never stopped.
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
    check_processes(config, group)
    check_same(config, group)
    with Interruption(": nothing was begun; the same command starts the run") as interruption, ExitStack() as held:

        def beginning() -> tuple[bool, str | None]:
            """Whether to go on with a run, and the name of its checkpoint; the folder is this process's from now on."""
            try:
                held.enter_context(locks.hold(config.folder))
                again = resume or launch.signed(config.folder, list(group.launch))
                start = latest_checkpoint(config) if again else None
                if not again:
                    folders.check(config.folder, reads=read_by(config))
            except OSError as error:
                raise ConfigError(f"run.name={config.run.name}: {error}") from error
            return again, None if start is None else str(start.relative_to(config.folder))

        again, name = group.decide(beginning)  # by the first: others may not see what it sees, or see it later
        if again:
            interruption.advice = GOES_ON
        return train(config, again, None if name is None else config.folder / name, group, interruption)


def train(
    config: Config, resume: bool, start: Path | None, group: Processes, interruption: Interruption
) -> dict[str, Any]:
    """`pretrain`, once it is decided where to begin: at a checkpoint, or at step 0; of a new run or of an old one."""
    folder = config.folder
    device = device_of(config)
    use_cores(config)
    use_tf32(config.train)
    for line in configuration.unfinished_schedules(config):
        log.warning(line)
    with group.first_ahead():  # which builds the corpus, the vocabulary and the folder
        if not group.first and not launch.shared(folder, list(group.launch)):
            raise ConfigError(f"process {group.rank} does not see {folder}: run.dir has to be shared by all nodes")
        try:
            splits = train_and_test(config) if group.first else load_splits(folder)
            train, sources = splits.train, splits.sources
            initial = None if start or not config.train.init_from else checkpoint.latest(Path(config.train.init_from))
            tokenizer = vocabulary_of(train, config, start or initial, group)
            if group.first:
                test = limited(splits.test, tokenizer, config.clip.words, config.evaluate.limit)
                splits = splits._replace(test=test)
            clips = EvalClips(splits.test, tokenizer, config.clip)
            torch.manual_seed(config.train.seed)
            source = start or initial
            modules = build(config, tokenizer, None if source is None else checkpoint.saved(source)).to(device)
            if initial is not None:
                checkpoint.load_weights(initial, modules)
                log.info("beginning with the weights of %s", initial)
        except ConfigError:
            raise
        except (ValueError, OSError) as error:
            raise DataError(str(error)) from error
        check_wrt(config.gram.wrt, modules["model"], "gram.wrt")
        if group.first:
            if resume:
                save_config(config, folder / "config.yaml")  # train.steps may have grown
            else:
                try:
                    begin(folder, config, splits)
                except OSError as error:
                    raise ConfigError(f"run.name={config.run.name}: {error}") from error
            launch.sign(folder, list(group.launch))
            vocabulary.save(tokenizer, folder / VOCABULARY)
            if group.world > 1:
                save_splits(splits, folder)
            seen = seen_by(train, start)
            if leaks := leakage.recognised(splits.test, seen, index=lambda: train):
                log.warning(
                    "%d of %d held-out videos are trained on under another name, for example %s: the figures flatter",
                    len(leaks), len(splits.test), next(iter(leaks)),
                )  # fmt: skip
            log.info("%d training videos, %d test clips, %d words", len(train), len(clips), tokenizer.get_vocab_size())

    interruption.advice = GOES_ON
    results: dict[str, Any] = {}
    if start is None and config.evaluate.untrained:
        results["untrained"], _ = evaluate(modules, clips, config, group)
    torch.manual_seed(seed_of(config.train.seed, group.rank))
    forward = spread(modules["model"], config.train.parallel, group, device, plain=config.harmonize == "none")
    forward = torch.compile(forward) if config.train.compile else forward
    learner = Learner(
        modules, make_optimizer(config.train, modules), harmonizer(config), loss_scale=loss_scale(config.train)
    )
    step = 0
    counts = {"skipped_clips": 0, "skipped_steps": 0, "failed_checkpoints": 0, "failed_writes": 0}
    recorded = dynamics.Dynamics()
    ema = None if config.train.ema is None else Ema(modules, config.train.ema)
    data = fingerprint(train)
    if start is not None:
        facts = facts_of(start, config)
        if facts["data"] != data:
            raise DataError(
                f"the training videos are not those that {start} was trained on: a run cannot go on with others"
            )
        checkpoint.load_weights(start, modules)
        checkpoint.load_optimizer(start, modules, learner.optimizer)
        learner.state = checkpoint.load_tree("harmonizer", learner.state, checkpoint.read(start, "harmonizer."))
        learner.loss_scale = loss_scale(config.train, facts.get("loss_scale"))
        if ema is not None:
            checkpoint.load(start, ema.tensors())
        recorded = dynamics.load(start / dynamics.FILE)
        step, counts, results = facts["step"], counts | facts["counts"], facts["results"]
        if facts["processes"] == group.world:
            checkpoint.load_random(checkpoint.read(start, "random."), group.rank)
        else:  # the same clips, but not the same dropped tokens
            torch.manual_seed(seed_of(config.train.seed, group.rank, step))
        if group.first and (last := results.get(f"step {step}")):
            keep_best(folder / "checkpoints", step, last, config.evaluate.best)
        log.info("resuming at step %d", step)

    def evaluation() -> tuple[Figures, Embedded]:
        """Evaluate the averaged weights where there are such; every process has to take part."""
        if ema is not None:
            ema.swap()
        sharded = config.train.parallel == "fsdp" and group.world > 1
        outcome = evaluate(whole(modules, config, tokenizer, device) if sharded else modules, clips, config, group)
        if ema is not None:
            ema.swap()
        return outcome

    def save(step: int) -> None:
        """Write a checkpoint; one that cannot be written is tried again at the next interval, unless it is the last."""
        tensors = checkpoint.optimizer_tensors(modules, learner.optimizer) | checkpoint.random_tensors(group.rank)
        tensors |= {} if ema is None else ema.tensors()
        try:
            checkpoint.save(
                folder / "checkpoints", step, modules, tensors | checkpoint.tree_tensors("harmonizer", learner.state),
                {"counts": counts, "results": results, "data": data, "processes": group.world,
                 "loss_scale": None if learner.loss_scale is None else learner.loss_scale.state()},
                lambda place: keys.save(config, place / "config.yaml"),
                lambda place: vocabulary.save(tokenizer, place / VOCABULARY),
                lambda place: identity.save(seen, place / identity.FILE),
                lambda place: dynamics.save(recorded, place / dynamics.FILE),
                keep=config.train.keep, processes=group,
            )  # fmt: skip
        except OSError as error:
            counts["failed_checkpoints"] += 1
            if interruption.asked or step == config.train.steps:
                raise TrainingError(f"{error}. The checkpoint before is whole: free space, then --resume") from error
            log.error("%s; training goes on, and the next one is tried", error)

    # ------------------------------------------------------------------------------------------------- the loop
    dataset = TrainClips(train, tokenizer, config.clip, config.train.seed, config.augment)
    loader = train_loader(
        dataset, config.train.batch_size, config.train.seed, config.data.workers, step, sources, group.rank,
        group.world, config.data.timeout, config.data.prefetch_gib,
    )  # fmt: skip
    rate, gamma = learning_rate(config.train), gamma_schedule(config.gamma, config.train.steps)
    try:
        journal = Journal(config, step, group.first, device)
    except OSError as error:
        raise TrainingError(f"{error}: free space, then --resume") from error
    bad_in_a_row = failures = 0

    check_agreement(group, step, data, modules)
    with interruption.deferred():
        for batch in journal.clock.waiting(interruption.awaited(loader, {"skipped": []})):
            shares, skips, stops = zip(
                *group.exchange(len(batch.get("id", [])), len(batch["skipped"]), interruption.asked), strict=True
            )
            if step >= config.train.steps or any(stops):
                break
            if any(skips):
                counts["skipped_clips"] += sum(skips)
                journal.skip(group.collect(batch["skipped"]))
            set_learning_rate(learner.optimizer, float(rate(torch.tensor(step))))
            inputs, few, probes = model_inputs(batch, device), too_few(shares), {}
            if few:
                result = idle_step(learner, few)
            else:
                if step % config.gram.probe_every == 0:
                    probes = probe(config.gram, modules, inputs, group.group)
                result = train_step(learner, inputs, step_options(config, step, forward=forward, processes=group))
            undumped = result.broken and dump(folder, step, result, modules, batch, group)
            if ema is not None and result.taken:
                ema.update()
            step += 1

            bad_in_a_row = 0 if result.taken else bad_in_a_row + 1
            counts["skipped_steps"] += not result.taken
            counts["failed_writes"] += undumped + journal.failures - failures
            failures = journal.failures
            recorded = recorded.add(step, result.measured | probes)
            journal.add(result, sum(shares))
            evaluating = is_due(step, config.evaluate.every) and step < config.train.steps
            at_checkpoint = is_due(step, config.train.checkpoint_every) or evaluating or step == config.train.steps
            if step % config.train.log_every == 0 or at_checkpoint:
                lr = learner.optimizer.param_groups[0]["lr"]
                journal.write(step, lr=lr, gamma=float(gamma(torch.tensor(step - 1))), **counts)
            if at_checkpoint:
                journal.draw(step)
                if evaluating:
                    results[f"step {step}"], _ = evaluation()
                save(step)
                if evaluating and group.first:
                    keep_best(folder / "checkpoints", step, results[f"step {step}"], config.evaluate.best)
            if bad_in_a_row >= config.train.max_bad_steps:
                raise TrainingError(
                    f"{bad_in_a_row} steps in a row could not be taken, the last one because {result.reason}; "
                    f"stopped at step {step}. Clips that could not be read are listed in {folder / SKIPPED}, "
                    f"losses and gradients that were not finite in {folder / BAD_STEPS}."
                )
        journal.bar.close()
        if step < config.train.steps:
            journal.write(step, **counts)
            journal.draw(step)
            save(step)
    journal.close()
    interruption.advice = f" at step {step}: the same command with --resume goes on"
    interruption.stop(max(stops))

    # --------------------------------------------------------------------------------------- evaluation and report
    if ema is not None:
        log.info("evaluating the moving average of the weights")
    results["trained"], embedded = evaluation()
    if not group.first:
        return {}
    keep_best(folder / "checkpoints", step, results["trained"], config.evaluate.best)
    counts["unreadable"] = journal.skip(embedded.skipped)
    try:
        write_atomically(folder / "retrieval.json", json.dumps(results, indent=1))
        page = report.write(folder, config, results, embedded, clips, counts, recorded)
    except OSError as error:
        raise TrainingError(f"{error}: training is done and saved; free space, then --resume evaluates") from error
    print(table(results))
    log.info("%d clip(s) not readable, %d step(s) not taken", counts["unreadable"], counts["skipped_steps"])
    log.info("report: %s", page)
    return results


def whole(modules: nn.ModuleDict, config: Config, tokenizer: Tokenizer, device: torch.device) -> nn.ModuleDict:
    """The modules without shards; every process has to take part."""
    state = whole_state(modules)
    with torch.random.fork_rng(devices=[]):  # training goes on with the numbers that it would have drawn
        plain = build(config, tokenizer, {name: tensor.shape for name, tensor in state.items()})
    plain.load_state_dict(state)
    return plain.to(device)


def fingerprint(train: Dataset) -> str:
    """Hash of the ids in their order, on which the order of training rests."""
    digest, separator = hashlib.sha256(), ""
    for rows in train.select_columns("id").iter(ROWS_AT_ONCE):
        digest.update((separator + "\n".join(rows["id"])).encode())
        separator = "\n"
    return digest.hexdigest()


def is_due(step: int, every: int) -> bool:
    """Whether something is done at a step; never where ``every`` is 0."""
    return every > 0 and step % every == 0


def seen_by(train: Dataset, start: Path | None) -> identity.Seen:
    """What identifies the training videos, so that no evaluation takes them; a resumed run knows it already."""
    if start is not None and (start / identity.FILE).is_file():
        return identity.load(start / identity.FILE)
    return identity.seen(train)


def vocabulary_of(train: Dataset, config: Config, start: Path | None = None, group: Processes = ALONE) -> Tokenizer:
    """The words of the training captions: counted by the first process, those of the run for the others and later."""
    if start is not None or not group.first:
        return vocabulary.load((start or config.folder) / VOCABULARY)
    return vocabulary.build(captions(train), config.data.vocabulary)


def facts_of(start: Path, config: Config) -> dict[str, Any]:
    """What a checkpoint says of its run.

    Raises:
        CheckpointError: It is nothing to go on from.
    """
    facts = checkpoint.load_facts(start, data=str, processes=int, counts=dict, results=dict)
    scale, results = facts.get("loss_scale"), facts["results"]
    numbers = (int, float)
    problems = {
        f"step is {facts['step']}, but train.steps={config.train.steps}": facts["step"] > config.train.steps,
        f"processes is {facts['processes']}; expected 1 or more": facts["processes"] < 1,
        "counts are not whole numbers": not all(type(value) is int for value in facts["counts"].values()),
        "results are not figures of tasks": not all(
            isinstance(tasks, dict) and all(isinstance(figures, dict) for figures in tasks.values())
            for tasks in results.values()
        ),
        "loss_scale is not a value and good_steps": scale is not None
        and not (
            isinstance(scale, dict)
            and scale.keys() == {"value", "good_steps"}
            and all(isinstance(value, numbers) for value in scale.values())
        ),
    }
    if wrong := [what for what, holds in problems.items() if holds]:
        raise CheckpointError(f"{start / checkpoint.STATE}: " + "; ".join(wrong))
    return facts


def save_config(config: Config, path: Path) -> None:
    """Write a configuration whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    keys.save(config, temporary)
    os.replace(temporary, path)


def begin(folder: Path, config: Config, splits: Splits) -> None:
    """Make the run's folder; an earlier run of the name is moved aside, nothing is overwritten.

    Raises:
        OSError: What is there is no run, or holds what is to be read; or there is no room.
    """
    if folder.exists():
        videos = (video for part in (splits.train, splits.test) for video in part["video"])
        folders.check(folder, reads=sorted({str(Path(v).parent) for v in videos if not storage.is_url(v)}))
    folders.make(folder)
    keys.save(config, folder / "config.yaml")


def read_by(config: Config) -> list[str]:
    """Local files and folders that a configuration names, to be read."""
    data = config.data
    named = [data.manifest, data.test, data.word_vectors, *(source.manifest for source in data.sources.values())]
    if data.manifest is None and not data.sources:
        named.append(str(corpus_folder(config.corpus)))
    return [name for name in named if name is not None and not storage.is_url(name)]


def check_same(config: Config, group: Processes) -> None:
    """Raise a ConfigError in all processes where one of them has another configuration than the first."""
    theirs = group.decide(lambda: config)
    changed = [line for line in keys.differences(theirs, config) if not line.startswith(OWN)]
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
    """The checkpoint to resume from; None where the run died before its first one."""
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


def run(config: Config, resume: bool = False) -> None:
    """Pre-train, alone or as one of the processes that torchrun started."""
    with Interruption(": nothing was begun; the same command starts the run"), joined() as group:
        if not group.first:
            log.setLevel(logging.WARNING)  # once is enough
        pretrain(config, resume, group)


COMMAND = Command(
    "recipes.pretrain",
    __doc__,
    Config,
    run,
    plan=lambda config: dry_run.table(dry_run.dry_run(config)),
    flags={"resume": "continue the run from its latest checkpoint"},
    needs_config=True,
)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
