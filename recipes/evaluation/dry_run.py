"""What a run takes to reach its first step: all that comes before, timed; no folder is written, nothing is trained."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from recipes.config import Config
from recipes.data import identity, vocabulary
from recipes.data.clips import EvalClips
from recipes.data.held_out import limited
from recipes.data.index import captions
from recipes.errors import DataError
from recipes.evaluation import leakage
from recipes.evaluation.embedding import embed
from recipes.evaluation.results import markdown
from recipes.model.build import build, device_of, use_cores
from recipes.splits import train_and_test

SAMPLE = 8  # clips that are embedded, to know what all take

Phases = dict[str, tuple[float, float]]  # seconds, and the peak of memory in GB when the phase ended


def dry_run(config: Config) -> Phases:
    """Do what comes before the first step; of the evaluation a few clips in this process, and the rest by their rate.

    Args:
        config: A checked configuration.

    Returns:
        {phase: (seconds, peak of this process's memory so far in GB)}, in order.

    Raises:
        DataError: The data cannot be used.
    """
    phases: Phases = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        phases[name] = (time.perf_counter() - began, peak)

    use_cores(config)
    try:
        with phase("index and splits"):
            splits = train_and_test(config)
        with phase("vocabulary"):
            tokenizer = vocabulary.build(captions(splits.train), config.data.vocabulary)
        with phase("clips to evaluate"):
            test = limited(splits.test, tokenizer, config.clip.words, config.evaluate.limit)
            clips = EvalClips(test, tokenizer, config.clip)
        with phase("model"):
            torch.manual_seed(config.train.seed)
            modules = build(config, tokenizer).to(device_of(config))
        with phase("fingerprints of the videos, leakage"):
            leakage.recognised(test, identity.seen(splits.train), index=lambda: splits.train)
        if config.evaluate.untrained:
            sample = EvalClips(limited(test, tokenizer, config.clip.words, SAMPLE), tokenizer, config.clip)
            with phase(name := f"evaluation of {len(clips)} clips, from {len(sample)}"):
                embed(modules, sample, config, workers=0)
            seconds, peak = phases[name]
            phases[name] = (seconds * len(clips) / len(sample), peak)
    except (ValueError, OSError) as error:
        raise error if isinstance(error, DataError) else DataError(str(error)) from error
    return phases


def table(phases: Phases) -> str:
    """A Markdown table of the phases and their sum."""
    rows = [
        {"phase": name, "s": f"{seconds:.1f}", "peak of memory so far, GB": f"{peak:.2f}"}
        for name, (seconds, peak) in phases.items()
    ]
    total = sum(seconds for seconds, _ in phases.values())
    peak = max(peak for _, peak in phases.values())
    rows.append({"phase": "**to step 0**", "s": f"{total:.1f}", "peak of memory so far, GB": f"{peak:.2f}"})
    return markdown(rows)
