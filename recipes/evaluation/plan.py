"""What a run will be, for --dry-run: its model, its schedule, the memory it needs, and the time to its first step.

Everything before the first step is done and timed. No folder is written, nothing is trained.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from recipes.config import ClipFormat, Config
from recipes.data import identity, vocabulary
from recipes.data.clips import EvalClips
from recipes.data.held_out import limited
from recipes.data.index import captions
from recipes.data.layouts import youtube8m
from recipes.errors import DataError
from recipes.evaluation import leakage
from recipes.evaluation.embedding import embed
from recipes.evaluation.results import markdown
from recipes.files import check_place, folders
from recipes.model.build import build, check_patterns, device_of, use_cores
from recipes.model.harmonizer import compares_with_gamma, described, gamma_schedule
from recipes.model.vatt import parameter_counts
from recipes.splits import train_and_test
from recipes.training import checkpoint
from recipes.training.precision import forward_in
from recipes.training.setup import learning_rate

SAMPLE = 8  # clips that are embedded, to know what all take
GIB = 2**30

Phases = dict[str, tuple[float, float]]  # seconds, and the peak of this process's memory in GB when the phase ended


def plan(config: Config) -> str:
    """What a run of a configuration will be, as Markdown tables.

    Raises:
        DataError: Its data cannot be used.
        OSError: Its folder cannot be made.
    """
    folders.check(config.folder)
    check_place(config.folder / "config.yaml")
    phases, train, modules = rehearse(config)
    check_patterns(config, modules["model"])
    seconds, peaks = zip(*phases.values(), strict=True)
    phases |= {"**to step 0**": (sum(seconds), max(peaks))}
    tables = [
        [{"parameters": part, "number": f"{number:,}"} for part, number in parameters(modules).items()],
        [{"training": what, "": text} for what, text in schedule(config, len(train)).items()],
        [
            {"memory of one process": what, "GiB": f"{size / GIB:.3f}"}
            for what, size in memory_needed(config, modules).items()
        ],
        [
            {"phase": name, "s": f"{seconds:.1f}", "peak of memory so far, GB": f"{peak:.2f}"}
            for name, (seconds, peak) in phases.items()
        ],
    ]
    return "\n\n".join(map(markdown, tables))


def rehearse(config: Config) -> tuple[Phases, Dataset, nn.ModuleDict]:
    """Do what comes before the first step; of the evaluation a few clips, and the rest by their rate.

    Returns:
        The phases in order, the training index, and the modules.
    """
    phases: Phases = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        phases[name] = (time.perf_counter() - began, peak)

    use_cores(config.train, config.data)
    try:
        with phase("index and splits"):
            splits = train_and_test(config)
            weights = checkpoint.latest(Path(config.train.init_from)) if config.train.init_from else None
        with phase("vocabulary"):
            file = config.data.vocabulary_file if weights is None else weights / checkpoint.VOCABULARY
            if file is not None:
                tokenizer = vocabulary.load(file)
            else:
                tokenizer = vocabulary.build(captions(splits.train), config.data.vocabulary)
        with phase("clips to evaluate"):
            test = limited(splits.test, tokenizer, config.clip.words, config.evaluate.limit)
            clips = EvalClips(test, tokenizer, config.clip)
        with phase("model"):
            torch.manual_seed(config.train.seed)
            shapes = None if weights is None else checkpoint.saved_shapes(weights)
            modules = build(config, tokenizer, shapes).to(device_of(config.train))
            if weights is not None:
                checkpoint.load_weights(weights, modules)
        with phase("fingerprints of the videos, leakage"):
            leakage.recognised(test, identity.seen(splits.train), index=lambda: splits.train)
        if config.evaluate.untrained:
            with phase(name := f"evaluation of {len(clips)} clips, from {SAMPLE}"):
                one, some = (
                    _seconds_to_embed(modules, limited(test, tokenizer, config.clip.words, number), tokenizer, config)
                    for number in (1, SAMPLE)
                )
            # The first clip pays for the start of the loader.
            rate = max(some - one, 0.0) / max(min(SAMPLE, len(clips)) - 1, 1)
            phases[name] = (one + rate * (len(clips) - 1), phases[name][1])
    except (ValueError, OSError) as error:
        raise error if isinstance(error, DataError) else DataError(str(error)) from error
    return phases, splits.train, modules


def _seconds_to_embed(modules: nn.ModuleDict, index: Dataset, tokenizer: Tokenizer, config: Config) -> float:
    began = time.perf_counter()
    one_worker = replace(config.data, workers=1)
    embed(modules, EvalClips(index, tokenizer, config.clip), config.evaluate.batch_size, one_worker)
    return time.perf_counter() - began


def parameters(modules: nn.ModuleDict) -> dict[str, int]:
    """Number of parameters, part by part, and in all."""
    parts = parameter_counts(modules["model"])
    del parts["table"]  # a sum of some
    parts["heads of the objective"] = sum(p.numel() for p in modules["objective"].parameters())
    parts["all"] = sum(p.numel() for p in modules.parameters())
    parts["trained"] = sum(p.numel() for p in modules.parameters() if p.requires_grad)
    return parts


def schedule(config: Config, videos: int) -> dict[str, str]:
    """What is trained for how long: data, epochs, learning rate and gamma from the first step to the last."""
    train, last = config.train, torch.tensor(config.train.steps - 1)
    rate, gamma = learning_rate(train), gamma_schedule(config.gamma, train.steps)
    facts = {
        "data": config.data_name,
        "clips an epoch": f"{videos:,}, one of each video",
        "steps": f"{train.steps:,} of {train.batch_size} clips, {train.steps * train.batch_size / videos:.1f} epochs",
        "learning rate": f"{float(rate(torch.tensor(0))):.3g} at the first step, {train.lr:g} after "
        f"{train.warmup_steps} steps, {float(rate(last)):.3g} at the last",
        "harmonizer": described(config),
    }
    if compares_with_gamma(config):
        facts["gamma"] = f"{float(gamma(torch.tensor(0))):.3g} at the first step, {float(gamma(last)):.3g} at the last"
    return facts


def memory_needed(config: Config, modules: nn.ModuleDict) -> dict[str, int]:
    """Bytes that training takes, as far as they can be counted, where one process takes whole batches.

    A step that reads gradients of single clips needs more than the activations: see docs/engines.md.
    """
    train = config.train
    trained = sum(p.nbytes for p in modules.parameters() if p.requires_grad)
    clip = blank_clip(config.clip, device_of(config.train))
    batch = train.batch_size * sum(t.nbytes for t in clip.values())
    activations = activation_bytes(modules["model"].train(), clip, train.precision)
    sizes = {
        "weights": sum(t.nbytes for t in modules.state_dict().values()),
        "gradients": trained,
        "optimizer": 2 * trained,
        "moving average": 0 if train.ema is None else trained,
        "activations of one clip": activations,
        f"activations of {train.batch_size} clips": activations * train.batch_size,
        "one batch of clips": batch,
        "batches read ahead, at most": max(int(config.data.prefetch_gib * GIB), config.data.workers * batch),
    }
    return {what: size for what, size in sizes.items() if size}


def blank_clip(clip: ClipFormat, device: torch.device) -> dict[str, Tensor]:
    """A batch of one clip without content, as the model takes it."""
    with device:
        if clip.inputs == "features":
            video, audio = torch.zeros(1, clip.frames, youtube8m.RGB), torch.zeros(1, clip.frames, youtube8m.AUDIO)
        else:
            video = torch.zeros(1, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)
            audio = torch.zeros(1, clip.samples)
        key = torch.ones(1, clip.narrations, dtype=torch.int64)
        text, index = torch.ones(1, clip.narrations, clip.words, dtype=torch.int64), torch.zeros_like(key[:, 0])
    clips = {"video": video, "audio": audio, "text": text, "text_key": key, "index": index}
    return clips | {"audio_valid": index == 0, "text_valid": key > 0}


def activation_bytes(model: nn.Module, inputs: dict[str, Tensor], precision: str) -> int:
    """What the graph of a forward pass keeps for the backward pass, parameters aside."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}  # identifies a storage, also one without values
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(note, lambda tensor: tensor):
        graph = forward_in(precision, inputs["video"].device)(model, inputs)
    del graph  # alive until here, so that no storage was counted twice
    return sum(kept.values())
